"""Bars of several measures, side by side for several networks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vissl_like.visualize.picture import GREY, PALETTE, Picture, chart_png, stacked_charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOOR_SHADES = ("#9ca3af", "#cbd0d8", "#e2e5ea", "#6b7280")
WIDTH, HEIGHT = 10.4, 2.7
"""Inches of a chart as wide as the page, and of a row of it."""
BAR_INCHES, GAP_INCHES = 0.19, 0.25


def result_bars(
    values: Mapping[str, Mapping[str, float]], floors: Sequence[str] = (), caption: str = ""
) -> Picture | None:
    """A group of bars for each measure, in as many rows as it takes for the numbers to be read.

    Args:
        values: by name of network and then of measure, percentages; a network may lack some.
        floors: names among them that are drawn in grey.
        caption: said below, after what the chart shows.

    Returns:
        the chart, None if there is no value.
    """
    measures = list(dict.fromkeys(measure for row in values.values() for measure in row))
    if not measures:
        return None
    group = GAP_INCHES + BAR_INCHES * len(values)
    rows = math.ceil(len(measures) / max(1, int(WIDTH / group)))
    per_row = math.ceil(len(measures) / rows)
    width = WIDTH if rows > 1 else min(WIDTH, max(6.4, 1.2 + group * per_row))
    figure, drawn = stacked_charts(rows, width, HEIGHT)
    for number, axes in enumerate(drawn):
        _draw_groups(axes, values, measures[number * per_row : (number + 1) * per_row], per_row, floors)
    handles, names = drawn[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=min(len(names), 5), fontsize=8, frameon=False)
    said = [f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in row.items()) for name, row in values.items()]
    told = " ".join(part for part in ("What counts of every measure, in percent; floors in grey.", caption) if part)
    return Picture(chart_png(figure), f"Results in percent. {'; '.join(said)}.", told)


def _draw_groups(
    axes: Axes, values: Mapping[str, Mapping[str, float]], measures: list[str], per_row: int, floors: Sequence[str]
) -> None:
    """The bars of some measures, as wide as in every other row."""
    width = 0.86 / len(values)
    colours = iter(PALETTE * (1 + len(values) // len(PALETTE)))
    shades = iter(FLOOR_SHADES * (1 + len(values) // len(FLOOR_SHADES)))
    for number, (name, row) in enumerate(values.items()):
        heights = [row.get(measure, np.nan) for measure in measures]
        places = np.arange(len(measures)) + (number - (len(values) - 1) / 2) * width
        bars = axes.bar(places, heights, 0.94 * width, label=name, color=next(shades if name in floors else colours))
        written = [f"{height:.0f}" if np.isfinite(height) else "" for height in heights]
        axes.bar_label(bars, written, fontsize=7, color=GREY)
    axes.set_xlim(-0.6, per_row - 0.4)
    axes.set_ylim(0, 1.1 * max((value for row in values.values() for value in row.values()), default=1.0) or 1)
    axes.set_xticks(range(len(measures)), [_folded(measure, per_row) for measure in measures], fontsize=8)
    axes.grid(False, axis="x")
    axes.set_ylabel("percent")


def _folded(name: str, per_row: int) -> str:
    """A name on as many lines as its place is narrow."""
    return "\n".join(textwrap.wrap(name.replace("_", " "), max(8, int(WIDTH / per_row / 0.085)))) or name
