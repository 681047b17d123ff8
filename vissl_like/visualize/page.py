"""The page about a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from vissl_like.visualize.picture import Picture

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ResultRow:
    """A line of a result table: name, cells as text, and whether it is the subject of the run rather than a floor."""

    name: str
    cells: Sequence[str]
    is_subject: bool = False


@dataclass(frozen=True)
class ResultTable:
    """Results of one evaluation.

    Attributes:
        title: what was evaluated how.
        columns: headings after the first.
        rows: subject first, then its floors.
        notes: lines below.
        first: heading of the names.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[ResultRow]
    notes: Sequence[str] = ()
    first: str = "features"


@dataclass(frozen=True)
class Section:
    """Pictures under a heading, or why there are none.

    Attributes:
        title: heading.
        pictures: shown one below the other, or side by side where there is room and ``wide`` is off.
        missing: said instead where there is no picture.
        wide: whether a picture takes the page's whole width.
    """

    title: str
    pictures: Sequence[Picture]
    missing: str = ""
    wide: bool = True


@dataclass(frozen=True)
class Message:
    """Something that the run said: when (step and time as text), level (info, warning, error), text."""

    when: str
    level: str
    text: str


@dataclass(frozen=True)
class Page:
    """What the page shows; every text is plain and escaped by the template."""

    title: str
    subtitle: str
    status: str
    status_level: str = "info"
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[ResultTable] = ()
    tables_missing: str = ""
    sections: Sequence[Section] = ()
    messages: Sequence[Message] = ()
    settings: Sequence[tuple[str, str]] = field(default_factory=tuple)
    versions: Sequence[tuple[str, str]] = ()
    footer: str = ""

    @property
    def alerts(self) -> list[Message]:
        """Warnings and errors."""
        return [message for message in self.messages if message.level != "info"]


def render_page(page: Page) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, StrictUndefined

    # Always escaped: paths, messages and settings come from outside.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = files("vissl_like.visualize").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text).render(page=page)
