"""The contract of an evaluation: one way to measure a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vissl_like.distributed import comm
from vissl_like.evaluation.names import MAJORITY
from vissl_like.meters.accuracy import AccuracyMeter
from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError

if TYPE_CHECKING:
    from vissl_like.evaluation.bench import Bench
    from vissl_like.evaluation.subjects import Encoding


class LeftOut(Exception):
    """A floor that cannot be measured here, and why; the others are. Every process raises it alike."""


@dataclass
class Features:
    """Features of N images of a dataset.

    Attributes:
        features: ``[N, F]`` float32 on the CPU; perhaps mapped from a file and larger than the memory, so whoever wants
            to change or copy them does so a part at a time.
        labels: ``[N]`` int64, or None where the dataset has none.
        indices: ``[N]`` int64 positions in the dataset, increasing.
        skipped: images that could not be read; they have no row.
        file: temporary file that the rows are mapped from, which a store may take over; None where there is none.
    """

    features: Tensor
    labels: Tensor | None
    indices: Tensor
    skipped: list[Skipped] = field(default_factory=list)
    file: Path | None = None

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def select(self, rows: Tensor) -> Features:
        """The given rows (positions in these features, not in the dataset) and all skipped images."""
        labels = None if self.labels is None else self.labels[rows]
        return Features(self.features[rows], labels, self.indices[rows], self.skipped)


@dataclass
class EvaluationResult:
    """What an evaluation found of one subject.

    Attributes:
        name: of the evaluation.
        metrics: percentages by name, the one that counts (``main``) among them.
        predictions: ``[M]`` int64 predicted class of each test row; None where nothing is classified.
        details: how it was reached, for the record (JSON types only); ``notices`` lists what the user should know.
        main: name of the metric that counts.
        labels: ``[M]`` int64 right answers; None where nothing is classified.
        items: ``[M]`` float64, what each test item (an image, a query, a class) contributes in percent: their mean is
            the main metric. None where it is not a mean; then no interval is given.
        item_ids: ``[M]`` int64 which items they are, so that subjects are compared item by item.
        chance: what is reached on the same items without looking at them; None where nothing can be said.
        train_images, test_images: how many it learnt from, and was scored on.
        skipped: images that could not be read.
    """

    name: str
    metrics: dict[str, float]
    predictions: Tensor | None = None
    details: dict[str, Any] = field(default_factory=dict)
    main: str = "top1"
    labels: Tensor | None = None
    items: np.ndarray | None = None
    item_ids: np.ndarray | None = None
    chance: EvaluationResult | None = None
    train_images: int = 0
    test_images: int = 0
    skipped: list[Skipped] = field(default_factory=list)


class Evaluation:
    """One way to measure a network.

    Attributes:
        pixels: whether the images themselves can be measured too, as a floor besides the same network untrained.
        labelled: whether it needs the labelled images of DATA.PROBE_TRAIN (and PROBE_TEST).
        trains: whether it trains a network, which several processes do a little differently from one.
    """

    pixels = False
    labelled = False
    trains = False

    def run(self, bench: Bench) -> EvaluationResult | None:
        """Measures the subject on the bench; every process of the run calls this.

        Returns:
            the result, on the main process; None on the others.

        Raises:
            UserError: the subject or the images cannot be measured in this way.
        """
        raise NotImplementedError

    def identity(self, bench: Bench) -> str:
        """Text that differs whenever the images, their labels or the lists that are measured on do."""
        raise NotImplementedError

    def typical_images(self) -> list[str]:
        """Files of images like those that are measured on, for the BatchNorm statistics of an untrained network.

        Not asked of evaluations of labelled images, which have those.
        """
        return []


class FeatureEvaluation(Evaluation):
    """Learns from labelled train features, predicts the labels of test features; ``__call__`` is the measure itself.

    The test labels may be used for the final measures only, never for choosing anything.

    Attributes:
        device: where large products may be computed; features come and predictions go on the CPU.
        encoding: what is taken of the network; None for its output.
    """

    pixels = True
    labelled = True
    device = torch.device("cpu")
    encoding: Encoding | None = None

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

    def run(self, bench: Bench) -> EvaluationResult | None:
        """Features of the probe images, then the measure, on the main process; see ``Evaluation``."""
        train, test = bench.probe_features(self.encoding)
        if not comm.is_main():
            return None
        self.device = bench.protocol.device
        result = self(train, test, bench.num_classes)
        result.train_images, result.test_images = len(train), len(test)
        result.skipped = [*train.skipped, *test.skipped]
        labels = required_labels(test, "test")
        result.chance = majority_result(required_labels(train, "training"), labels, bench.num_classes)
        for found in (result, result.chance):
            found.labels, found.item_ids = labels, test.indices.numpy()
            if found.predictions is not None:
                found.items = 100.0 * (found.predictions == labels).double().numpy()
        return result

    def identity(self, bench: Bench) -> str:
        """The probe images and their labels."""
        return bench.probe_identity()


def majority_result(train: Tensor, test: Tensor, num_classes: int) -> EvaluationResult:
    """Answers every image with the most frequent class of the training images.

    Args:
        train, test: ``[N]`` and ``[M]`` labels.
        num_classes: C.
    """
    counts = train.bincount(minlength=num_classes).float()
    meter = AccuracyMeter(num_classes, top=[1])
    meter.update(counts.expand(len(test), -1), test)
    predictions = torch.full_like(test, int(counts.argmax()))
    return EvaluationResult(MAJORITY, meter.value(), predictions, {"class": int(counts.argmax())}, labels=test)


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
