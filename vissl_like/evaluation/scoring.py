"""Scoring subjects on one split: labels, hold-out, floors, and the table of results."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.evaluation.base import Evaluation, EvaluationResult, Features, required_labels, stratified_split
from vissl_like.evaluation.compare import PairedInterval, paired_interval
from vissl_like.evaluation.names import slug_of
from vissl_like.utils.errors import UserError

if TYPE_CHECKING:
    from vissl_like.evaluation.bench import Bench


def train_and_test(train: Features, test: Features | None, holdout: float, seed: int) -> tuple[Features, Features]:
    """Features to learn from and to be scored on.

    Args:
        train: of PROBE_TRAIN.
        test: of PROBE_TEST; None holds out a stratified share of ``train``, the same for every subject.
        holdout: that share.
        seed: of its choice.
    """
    if test is not None:
        return train, test
    kept, held, _ = stratified_split(required_labels(train, "probe"), holdout, seed)
    if not len(held):
        raise UserError(
            "every class of DATA.PROBE_TRAIN has a single image, so none can be held out to be scored on. Give a "
            "DATA.PROBE_TEST, or more images."
        )
    return train.select(kept), train.select(held)


def align_classes(train: ImageDataset, test: ImageDataset) -> ImageDataset:
    """The test images with the class numbers of the training images, matched by name where both have names.

    Raises:
        UserError: a test class is not among the training classes.
    """
    if train.labels is None or test.labels is None or train.classes is None or test.classes is None:
        return test
    if list(train.classes) == list(test.classes):
        return test
    numbers = {name: number for number, name in enumerate(train.classes)}
    strange = [name for name in test.classes if name not in numbers]
    if strange:
        raise UserError(
            f"{len(strange)} classes of DATA.PROBE_TEST are not among those of DATA.PROBE_TRAIN: "
            f"{', '.join(strange[:5])}. The training images have {', '.join(list(train.classes)[:8])}."
        )
    table = np.array([numbers[name] for name in test.classes], dtype=np.int64)
    test.labels, test.classes = table[np.asarray(test.labels)], list(train.classes)
    return test


def count_classes(train: ImageDataset, test: ImageDataset | None) -> int:
    """C: named classes of the training images, or one more than the largest label of either set.

    Raises:
        UserError: there are no labels.
    """
    sets = [("PROBE_TRAIN", train)] + ([("PROBE_TEST", test)] if test is not None else [])
    for role, dataset in sets:
        if dataset.labels is None:
            raise UserError(
                f"the images of DATA.{role} have no labels, and an evaluation needs them. Point it at a folder with "
                "one sub-folder per class (two classes at least), or at a list with labels."
            )
    largest = max(int(np.max(dataset.labels)) for _, dataset in sets)  # type: ignore[arg-type]
    return max(largest + 1, len(train.classes or []))


def centred(train: Features, test: Features) -> tuple[Features, Features]:
    """Both without the mean training row.

    Raw pixels all point the same way, and the cosine of k-NN hardly tells them apart; without the mean image they are
    the stronger floor (ELPV, 96 px: 74.5 instead of 72.0 %).
    """
    mean = train.features.mean(dim=0)
    return (
        Features(train.features - mean, train.labels, train.indices, train.skipped),
        Features(test.features - mean, test.labels, test.indices, test.skipped),
    )


@dataclass
class Scored:
    """A subject's result.

    Attributes:
        name: of the subject.
        result: see ``EvaluationResult``.
        seconds: that the evaluation took, features included; 0 if nothing was computed.
        written: when it was measured, in UTC, if it was kept.
        versions: what it was measured with, if it was kept.
    """

    name: str
    result: EvaluationResult
    seconds: float = 0.0
    written: str = ""
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as it appears in files."""
        return slug_of(self.name)


def score(bench: Bench, evaluation: Evaluation) -> Scored | None:
    """Measures the subject on the bench; None on processes other than the main one."""
    start = time.perf_counter()
    result = evaluation.run(bench)
    return None if result is None else Scored(bench.subject.name, result, time.perf_counter() - start)


def compare_with(first: Scored, other: Scored) -> PairedInterval | None:
    """First minus other in percentage points of what counts, over the test items that both have (one seed).

    None where it is not a mean over items, or they have none in common.
    """
    own, theirs = first.result, other.result
    if own.items is None or theirs.items is None or own.item_ids is None or theirs.item_ids is None:
        return None
    _, left, right = np.intersect1d(own.item_ids, theirs.item_ids, return_indices=True)
    return paired_interval(own.items[left] / 100, theirs.items[right] / 100) if len(left) else None


def format_table(scored: list[Scored]) -> str:
    """Aligned text: a row for each subject, percentages, and how far the first is ahead of each other."""
    first = scored[0]
    columns = list(first.result.metrics)
    rows = [["", *columns, f"{first.name} - this [95 %]"]]
    for row in scored:
        values = [f"{row.result.metrics[name]:.1f}" if name in row.result.metrics else "-" for name in columns]
        ahead = None if row is first else compare_with(first, row)
        rows.append([row.name, *values, "" if ahead is None else str(ahead)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for label, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
