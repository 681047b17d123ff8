"""Curves of a run from its event records: loss, learning rate, k-NN, speed, rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vissl_like.visualize.picture import BLUE, GREEN, GREY, INK, ORANGE, RED, Picture, chart_png, new_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS, MOST_MARKED = 600, 30
Records = Sequence[Mapping[str, Any]]


def series(records: Records, kind: str, *path: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a number in the records of a kind.

    Args:
        records: of the event stream.
        kind: of record.
        path: keys that lead to the number, such as ``memory_mib``, ``process``.

    Returns:
        two float arrays of one length, steps increasing; values that are not finite or absent are left out.
    """
    found: dict[float, float] = {}
    for record in records:
        if record.get("kind") != kind:
            continue
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value):
            found[float(record["step"])] = float(value)
    steps = np.array(sorted(found))
    return steps, np.array([found[step] for step in steps])


def thinned(steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points, each the mean of a stretch."""
    if len(steps) <= most:
        return steps, values
    stretches = np.array_split(np.arange(len(steps)), most)
    return (
        np.array([steps[part].mean() for part in stretches]),
        np.array([values[part].mean() for part in stretches]),
    )


def loss_curve(records: Records, trivial: float | None) -> Picture | None:
    """Training loss with the value that it has when the network has collapsed; None without a record."""
    steps, losses = series(records, "step", "loss")
    if not len(steps):
        return None
    figure, axes = new_chart()
    _line(axes, steps, losses, BLUE, "loss")
    alt = f"Training loss: {losses[0]:.4g} at step {steps[0]:.0f}, {losses[-1]:.4g} at step {steps[-1]:.0f}."
    caption = "Loss. "
    if trivial is not None:
        axes.axhline(trivial, color=RED, linestyle="--", linewidth=1.2, label=f"trivial value {trivial:.4g}")
        alt += f" The trivial value is {trivial:.4g}."
        caption += "A loss that stays at the dashed line means that all outputs are the same (collapse)."
    axes.legend(loc="best", frameon=False)
    _label(axes, steps, "loss")
    return Picture(chart_png(figure), alt, caption)


def rate_curve(records: Records) -> Picture | None:
    """Learning rate over steps; None without a record."""
    steps, rates = series(records, "step", "lr")
    if not len(steps):
        return None
    figure, axes = new_chart()
    _line(axes, steps, rates, ORANGE)
    axes.set_ylim(bottom=0)
    _label(axes, steps, "learning rate")
    alt = f"Learning rate: at most {rates.max():.4g}, {rates[-1]:.4g} at step {steps[-1]:.0f}."
    return Picture(chart_png(figure), alt, "Learning rate.")


def knn_curve(records: Records, floors: Mapping[str, float] | None = None) -> Picture | None:
    """k-NN accuracy during training, in percent, with floors as lines; None without a measurement."""
    steps, accuracy = series(records, "knn", "top1")
    if not len(steps):
        return None
    figure, axes = new_chart()
    _line(axes, steps, accuracy, GREEN, "during training")
    styles = ["--", ":", "-."]
    for number, (name, value) in enumerate((floors or {}).items()):
        line_style = styles[number % len(styles)]
        axes.axhline(value, color=GREY, linestyle=line_style, linewidth=1.2, label=f"{name} {value:.1f}")
    axes.legend(loc="best", frameon=False)
    _label(axes, steps, "k-NN top-1, %")
    alt = f"k-NN accuracy: {accuracy[0]:.1f} % at step {steps[0]:.0f}, {accuracy[-1]:.1f} % at step {steps[-1]:.0f}."
    if floors:
        alt += " Floors: " + ", ".join(f"{name} {value:.1f} %" for name, value in floors.items()) + "."
    return Picture(chart_png(figure), alt, "k-NN accuracy of the features while they were learnt.")


def speed_curve(records: Records) -> Picture | None:
    """Images per second and the share of time spent waiting for data; None without a record."""
    steps, speed = series(records, "step", "images_per_s")
    if not len(steps):
        return None
    figure, axes = new_chart()
    _line(axes, steps, speed, BLUE)
    axes.set_ylim(bottom=0)
    _label(axes, steps, "images per second")
    alt = f"Speed: {np.median(speed):.4g} images per second in the middle of all records."
    wait_steps, wait = series(records, "step", "data_wait")
    if len(wait_steps):
        other = axes.twinx()
        _line(other, wait_steps, 100 * wait, ORANGE)
        for side in ("top", "left", "bottom"):
            other.spines[side].set_visible(False)
        other.set_ylim(0, 100)
        other.grid(False)
        other.set_ylabel("waiting for data, %", color=ORANGE)
        axes.set_ylabel("images per second", color=BLUE)
        alt += f" Waiting for data: {100 * wait.mean():.0f} % of the time on average."
    return Picture(chart_png(figure), alt, "Speed, and the share of the time spent waiting for data.")


def rank_curve(records: Records) -> Picture | None:
    """Effective number of directions (RankMe) of features and embeddings; None without a measurement."""
    lines = {
        "features": series(records, "collapse_watch", "feature_rankme"),
        "embeddings": series(records, "collapse_watch", "rankme"),
    }
    lines = {name: line for name, line in lines.items() if len(line[0])}
    if not lines:
        return None
    figure, axes = new_chart()
    for (name, (steps, ranks)), color in zip(lines.items(), (BLUE, ORANGE), strict=False):
        _line(axes, steps, ranks, color, name)
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", frameon=False)
    steps = next(iter(lines.values()))[0]
    _label(axes, steps, "effective rank")
    alt = "Effective rank: " + ", ".join(
        f"{name} {ranks[0]:.1f} at first, {ranks[-1]:.1f} at last" for name, (_, ranks) in lines.items()
    )
    caption = "Effective number of directions (RankMe) that a batch's outputs use; near 1 means collapse."
    return Picture(chart_png(figure), f"{alt}.", caption)


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str | None = None) -> None:
    """A curve; with few points each is marked, since one alone would not be seen."""
    marker = "o" if len(steps) <= MOST_MARKED else ""
    axes.plot(*thinned(steps, values), color=color, linewidth=1.6, marker=marker, markersize=4, label=label)


def _label(axes: Axes, steps: np.ndarray, quantity: str) -> None:
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel(quantity)
    last = float(steps[-1])
    axes.set_xlim(min(0.0, float(steps[0])), 1.015 * last if last > 0 else 1.0)
