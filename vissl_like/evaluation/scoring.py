"""Scoring subjects on one split: labels, hold-out, floors, and the table of results."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.evaluation.base import Evaluation, EvaluationResult, Features, required_labels, stratified_split
from vissl_like.evaluation.compare import PairedInterval, paired_interval
from vissl_like.evaluation.subjects import Subject, slug_of
from vissl_like.meters.accuracy import AccuracyMeter
from vissl_like.utils.errors import UserError

MAJORITY = "majority class"


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


def majority_result(train: Features, test: Features, num_classes: int) -> EvaluationResult:
    """Answers every image with the most frequent class of the training images."""
    labels, test_labels = required_labels(train, "training"), required_labels(test, "test")
    counts = labels.bincount(minlength=num_classes).float()
    meter = AccuracyMeter(num_classes, top=[1])
    meter.update(counts.expand(len(test_labels), -1), test_labels)
    predictions = torch.full_like(test_labels, int(counts.argmax()))
    return EvaluationResult(MAJORITY, meter.value(), predictions, {"class": int(counts.argmax())})


@dataclass
class Scored:
    """A subject's result with the test images it belongs to.

    Attributes:
        name: of the subject.
        result: see ``EvaluationResult``.
        labels: ``[M]`` of the test images.
        indices: ``[M]`` positions in the test dataset.
        seconds: that the evaluation took.
    """

    name: str
    result: EvaluationResult
    labels: Tensor
    indices: Tensor
    seconds: float = 0.0

    @property
    def slug(self) -> str:
        """The name as it appears in files."""
        return slug_of(self.name)

    @property
    def correct(self) -> np.ndarray:
        """``[M]`` bool, whether each test image was classified right."""
        return (self.result.predictions == self.labels).numpy()


def score(subject: Subject, evaluation: Evaluation, train: Features, test: Features, num_classes: int) -> Scored:
    """Evaluates one subject's features."""
    start = time.perf_counter()
    result = evaluation(*(centred(train, test) if subject.pixels else (train, test)), num_classes)
    return Scored(subject.name, result, required_labels(test, "test"), test.indices, time.perf_counter() - start)


def score_majority(train: Features, test: Features, num_classes: int) -> Scored:
    """The floor without any features."""
    return Scored(MAJORITY, majority_result(train, test, num_classes), required_labels(test, "test"), test.indices, 0.0)


def compare_with(first: Scored, other: Scored) -> PairedInterval:
    """First minus other in percentage points of top-1, over the test images that both have (one seed)."""
    _, own, theirs = np.intersect1d(first.indices.numpy(), other.indices.numpy(), return_indices=True)
    return paired_interval(first.correct[own], other.correct[theirs])


def format_table(scored: list[Scored]) -> str:
    """Aligned text: a row for each subject, percentages, and how far the first is ahead of each other."""
    first = scored[0]
    columns = list(first.result.metrics)
    rows = [["", *columns, f"{first.name} - this [95 %]"]]
    for row in scored:
        values = [f"{row.result.metrics[name]:.1f}" if name in row.result.metrics else "-" for name in columns]
        rows.append([row.name, *values, "" if row is first else str(compare_with(first, row))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for label, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
