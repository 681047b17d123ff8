"""One entry of one checkpoint: what was found, and how far it is ahead of what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vissl_like.engines.suite_jobs import OfMetric
from vissl_like.evaluation.record import differences
from vissl_like.evaluation.scoring import Scored

OF_THE_NETWORK = ("channels", "mean", "std")
"""What a checkpoint decides of how images are brought to it; the images are the same."""


@dataclass
class Cell:
    """One entry of one checkpoint: results (the trained network first, then its floors), or why there are none.

    Attributes:
        entry, checkpoint: names.
        scored: results.
        problem: why there are none.
        notices: what the user should know.
        references: percentages from elsewhere, by name: of the metric that counts, or of one that is named.
        made: weights, images and settings that the results come from.
        ahead: how far the network is ahead of each floor, and of the first checkpoint; see ``ahead_of``.
    """

    entry: str
    checkpoint: str
    scored: list[Scored] = field(default_factory=list)
    problem: str = ""
    notices: list[str] = field(default_factory=list)
    references: Mapping[str, float | OfMetric] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    ahead: dict[str, dict[str, float]] = field(default_factory=dict)

    def reported(self, main: str) -> list[tuple[str, str, float]]:
        """Figures from elsewhere: name, metric and percentage; ``main`` is the metric of those that name none."""
        return [
            (name, main, float(given)) if isinstance(given, int | float) else (name, given["metric"], given["value"])
            for name, given in self.references.items()
        ]

    def counted_elsewhere(self) -> list[tuple[str, float]]:
        """Figures from elsewhere of the metric that counts: name and percentage."""
        main = self.scored[0].result.main if self.scored else ""
        return [(name, value) for name, metric, value in self.reported(main) if metric == main]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        rows = {
            row.name: {
                "metrics": row.result.metrics,
                "main": row.result.main,
                "details": {key: value for key, value in row.result.details.items() if key != "notices"},
                "train_images": row.result.train_images,
                "test_images": row.result.test_images,
                "skipped": len(row.result.skipped),
                "seconds": round(row.seconds, 2),
                "written": row.written,
                "versions": row.versions,
            }
            for row in self.scored
        }
        return {
            "entry": self.entry,
            "checkpoint": self.checkpoint,
            "problem": self.problem or None,
            "subjects": rows,
            "differences": self.ahead,
            "references": dict(self.references),
            **self.made,
            "notices": [*self.notices, *remarks_of(self)],
        }


def ahead_of(cell: Cell, first: Cell | None) -> dict[str, dict[str, float]]:
    """How far a checkpoint is ahead of its floors, and of the first checkpoint where both were tested on the same.

    Args:
        cell: the checkpoint.
        first: the same entry of the first checkpoint; None where it is this one.

    Returns:
        differences in points with intervals, paired over what was tested, by name.
    """
    if not cell.scored:
        return {}
    found = differences(cell.scored)
    if first is None or not first.scored or _tested_on(first) != _tested_on(cell):
        return found
    return found | differences([cell.scored[0], Scored(first.checkpoint, first.scored[0].result)])


def _tested_on(cell: Cell) -> tuple[Any, ...]:
    """What must be equal for items of two cells to be the same ones, and to be measured in the same way."""
    data = {
        role: {key: value for key, value in said.items() if key not in OF_THE_NETWORK}
        if isinstance(said, dict)
        else said
        for role, said in cell.made.get("data", {}).items()
    }
    evaluation = cell.made.get("settings", {}).get("EVALUATION", {})
    return data, evaluation.get("path"), evaluation.get("images"), cell.scored[0].result.main


def remarks_of(cell: Cell) -> list[str]:
    """What evaluations noticed, with the subject that it holds for."""
    return [f"{row.name}: {text}" for row in cell.scored for text in row.result.details.get("notices", [])]
