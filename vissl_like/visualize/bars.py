"""Bars of several measures, side by side for several networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vissl_like.visualize.picture import GREY, PALETTE, Picture, chart_png, new_chart

FLOOR_SHADES = ("#9ca3af", "#cbd0d8", "#e2e5ea")


def result_bars(values: Mapping[str, Mapping[str, float]], floors: Sequence[str] = ()) -> Picture | None:
    """A group of bars for each measure.

    Args:
        values: by name of network and then of measure, percentages; a network may lack some.
        floors: names among them that are drawn in grey.

    Returns:
        the chart, None if there is no value.
    """
    measures = list(dict.fromkeys(measure for row in values.values() for measure in row))
    if not measures:
        return None
    figure, axes = new_chart(max(6.4, 1.2 + 0.9 * len(measures) * max(1.0, len(values) / 4)), 3.8)
    width = 0.82 / len(values)
    colours = iter(PALETTE * (1 + len(values) // len(PALETTE)))
    shades = iter(FLOOR_SHADES * (1 + len(values) // len(FLOOR_SHADES)))
    for number, (name, row) in enumerate(values.items()):
        heights = [row.get(measure, np.nan) for measure in measures]
        places = np.arange(len(measures)) + (number - (len(values) - 1) / 2) * width
        bars = axes.bar(places, heights, 0.94 * width, label=name, color=next(shades if name in floors else colours))
        written = [f"{height:.0f}" if np.isfinite(height) else "" for height in heights]
        axes.bar_label(bars, written, fontsize=7, color=GREY)
    crowded = len(measures) > 4
    axes.set_xticks(range(len(measures)), measures, rotation=20 * crowded, ha="right" if crowded else "center")
    axes.grid(False, axis="x")
    axes.set_ylabel("percent")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    rows = [f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in row.items()) for name, row in values.items()]
    caption = "What counts of every measure, in percent; floors in grey."
    return Picture(chart_png(figure), f"Results in percent. {'; '.join(rows)}.", caption)
