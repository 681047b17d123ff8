"""What every drawing function returns, and what charts have in common."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

BLUE, ORANGE, GREEN, RED, GREY = "#1f6fb4", "#d9730d", "#2a8a57", "#c0392b", "#6b7280"
PALETTE = (BLUE, ORANGE, GREEN, "#8e5bb5", "#b8860b", "#0f8b8d", RED, "#4b5563", "#d16ba5", "#7a9a01")
INK, FAINT, PAPER = "#1f2937", "#e5e7eb", "#ffffff"
MARKERS = "os^Dv<>pP*"

STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.color": INK,
}


@dataclass(frozen=True)
class Picture:
    """A PNG image.

    Attributes:
        png: its bytes.
        alt: what it shows, in words, with the numbers that matter.
        caption: line below it.
    """

    png: bytes
    alt: str
    caption: str = ""

    @property
    def data_uri(self) -> str:
        """The image as text that a page can hold."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def new_chart(width: float = 6.4, height: float = 3.4) -> tuple[Figure, Axes]:
    """A figure of its own (pyplot, which keeps figures, is not involved) with one set of axes; sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
    return figure, axes


def stacked_charts(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` sets of axes, one below the other, each of this height; sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height * count), layout="constrained")
        drawn = [figure.add_subplot(count, 1, number + 1) for number in range(count)]
        for axes in drawn:
            axes.set_axisbelow(True)
    return figure, drawn


def chart_png(figure: Figure, dpi: int = 144) -> bytes:
    """The drawn figure."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER)
    figure.clear()
    return buffer.getvalue()


def image_png(image: Image.Image) -> bytes:
    """A PIL image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
