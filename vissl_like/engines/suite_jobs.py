"""What a suite is to do: every entry of every checkpoint with its checked settings. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from vissl_like.config.load import LoadedSettings, load_settings
from vissl_like.evaluation.names import MAJORITY, PIXELS, RANDOM, slug_of
from vissl_like.utils.errors import SettingsError, UserError

OF_THE_SUITE = ("config.ENGINE", "config.OUTPUT_DIR", "config.DISTRIBUTED", "config.REPORT")
ONLY = "checkpoint"
"""Name of the checkpoint where ENGINE.checkpoints names none."""
REFERENCE = "reported"
CHANCE = "chance"
"""Name under which tables show what is reached without looking, whatever an evaluation calls it."""


class OfMetric(TypedDict):
    """A figure from elsewhere that is not of the metric that counts: of which one, and the percentage."""

    metric: str
    value: float


class Entry(TypedDict, total=False):
    """One evaluation of a suite: ``arguments`` as on a command line, and figures from elsewhere to stand beside it.

    A figure is a percentage (of the metric that counts) or an ``OfMetric``.
    """

    arguments: list[str]
    references: dict[str, float | OfMetric]


@dataclass
class Job:
    """One entry of one checkpoint with its settings."""

    entry: str
    checkpoint: str
    loaded: LoadedSettings
    references: Mapping[str, float | OfMetric] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Both names."""
        return self.entry if self.checkpoint == ONLY else f"{self.entry}, {self.checkpoint}"


def jobs_of(
    below: LoadedSettings, entries: Mapping[str, Entry | None], checkpoints: Mapping[str, str | Sequence[str]] | None
) -> list[Job]:
    """Every entry of every checkpoint, entry by entry.

    Args:
        below: what the suite's own command line says.
        entries, checkpoints: see ``SuiteEngine``.

    Raises:
        SettingsError: something is wrong; problems of all entries are told.
    """
    wanted = {name: entry for name, entry in entries.items() if entry is not None}
    if not wanted:
        raise SettingsError(["ENGINE.entries is empty: name at least one evaluation"])
    given: Mapping[str, str | Sequence[str]] = checkpoints or {ONLY: []}
    chosen_by = {name: _arguments(value) for name, value in given.items()}
    jobs: list[Job] = []
    problems = [*_name_problems(wanted, "entries"), *_name_problems(chosen_by, "checkpoints")]
    for name, entry in wanted.items():
        for checkpoint, chosen in chosen_by.items():
            arguments = [*entry.get("arguments", []), *chosen]
            where = f"ENGINE.entries.{name} ({checkpoint})"
            problems += [
                f"{where}: {argument} has no effect here, only on the command line"
                for argument in arguments
                if argument.startswith(OF_THE_SUITE)
            ]
            try:
                loaded = load_settings([*arguments, "config.ENGINE=evaluate"], below)
            except UserError as error:
                told = error.problems if isinstance(error, SettingsError) else [str(error)]
                problems += [f"{where}: {text}" for text in told]
                continue
            jobs.append(Job(name, checkpoint, loaded, entry.get("references", {})))
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))
    return jobs


def _arguments(checkpoint: str | Sequence[str]) -> list[str]:
    """Arguments that choose a checkpoint, of its path or of themselves."""
    return [f"config.EVALUATE.weights={checkpoint}"] if isinstance(checkpoint, str) else list(checkpoint)


def _name_problems(names: Iterable[str], what: str) -> list[str]:
    """Names that would be taken for a floor's in a table, or share a folder."""
    problems, folders = [], dict[str, str]()
    for name in names:
        if name in (RANDOM, PIXELS, MAJORITY, CHANCE) or name.startswith(REFERENCE):
            problems.append(f"ENGINE.{what}: {name!r} is what a floor is called; take another name")
        slug = slug_of(name)
        if not slug or slug in folders:
            other = f"names the same folder as {folders[slug]!r}" if slug else "has none of them"
            problems.append(f"ENGINE.{what}: folders are named by Latin letters and digits, and {name!r} {other}")
        folders[slug] = name
    return problems
