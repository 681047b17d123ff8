"""The contract of an evaluation of frozen features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError


@dataclass
class Features:
    """Features of N images of a dataset.

    Attributes:
        features: ``[N, F]`` float32 on the CPU.
        labels: ``[N]`` int64, or None where the dataset has none.
        indices: ``[N]`` int64 positions in the dataset, increasing.
        skipped: images that could not be read; they have no row.
    """

    features: Tensor
    labels: Tensor | None
    indices: Tensor
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def select(self, rows: Tensor) -> Features:
        """The given rows (positions in these features, not in the dataset) and all skipped images."""
        labels = None if self.labels is None else self.labels[rows]
        return Features(self.features[rows], labels, self.indices[rows], self.skipped)


@dataclass
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        name: of the evaluation.
        metrics: percentages by name; ``top1`` is always there.
        predictions: ``[M]`` int64 predicted class of each test row.
        details: how it was reached, for the record (JSON types only); ``notices`` lists what the user should know.
    """

    name: str
    metrics: dict[str, float]
    predictions: Tensor
    details: dict[str, Any] = field(default_factory=dict)


class Evaluation:
    """Learns from labelled train features, predicts the labels of test features.

    The test labels may be used for the final measures only, never for choosing anything.

    Attributes:
        device: where large products may be computed; features come and predictions go on the CPU.
    """

    device = torch.device("cpu")

    def __call__(self, train: Features, test: Features, num_classes: int) -> EvaluationResult:
        """Evaluates.

        Args:
            train: labelled features to learn from.
            test: labelled features to predict.
            num_classes: C; labels of both lie in 0..C-1.

        Raises:
            UserError: the data cannot be evaluated in this way (no labels, one class only, ...).
        """
        raise NotImplementedError


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor, list[int]]:
    """Splits N labelled samples so that every class is held out in about the same proportion.

    Args:
        labels: ``[N]`` int64.
        share: part to hold out, in (0, 1); at least one sample and at most all but one of each class.
        seed: of the choice, which depends on nothing else.

    Returns:
        positions kept, positions held out (both increasing), and the classes with a single sample, which is kept.
    """
    generator = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []
    single: list[int] = []
    for label in labels.unique(sorted=True).tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) == 1:
            single.append(label)
            continue
        wanted = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    mask = torch.zeros(len(labels), dtype=torch.bool)
    if held:
        mask[torch.cat(held)] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten(), single


def required_labels(features: Features, role: str) -> Tensor:
    """The labels, which must be there.

    Raises:
        UserError: there are none, or no rows.
    """
    if features.labels is None:
        raise UserError(
            f"the {role} images have no labels, and this evaluation needs them. Point DATA.PROBE_TRAIN (and "
            "DATA.PROBE_TEST) at a folder with one sub-folder per class, or at a list with labels."
        )
    if len(features) == 0:
        raise UserError(f"there is no readable {role} image to evaluate")
    return features.labels
