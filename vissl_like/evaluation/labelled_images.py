"""Which labelled images an evaluation that trains learns from and is scored on, and what its classifier reached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vissl_like.data.datasets.base import ImageDataset, evenly_spread
from vissl_like.evaluation.base import (
    EvaluationResult,
    Features,
    majority_result,
    required_labels,
    stratified_split,
)
from vissl_like.evaluation.bench import Bench
from vissl_like.meters.accuracy import AccuracyMeter
from vissl_like.utils.errors import UserError


class ChosenImages(ImageDataset):
    """Some images of a dataset.

    Args:
        dataset: all images.
        rows: ``[N]`` int64 positions in it; image i is the one at ``rows[i]``.
    """

    def __init__(self, dataset: ImageDataset, rows: Tensor):
        super().__init__(channels=dataset.channels, mean=list(dataset.mean), std=list(dataset.std))
        self.dataset, self.rows = dataset, rows.numpy()
        self.classes = dataset.classes
        self.labels = None if dataset.labels is None else np.asarray(dataset.labels)[self.rows].astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Image.Image:
        return self.dataset.read(int(self.rows[index]))

    def path(self, index: int) -> str:
        return self.dataset.path(int(self.rows[index]))

    def source_file(self, index: int) -> str:
        return self.dataset.source_file(int(self.rows[index]))

    def select(self, places: Tensor) -> ChosenImages:
        """The images at some places of this set."""
        return ChosenImages(self.dataset, torch.from_numpy(self.rows)[places])

    @property
    def targets(self) -> Tensor:
        """``[N]`` int64 labels, which must be there."""
        assert self.labels is not None
        return torch.from_numpy(self.labels)


@dataclass
class Split:
    """Labelled images to train with and to be scored on.

    Attributes:
        train, test: the images.
        test_ids: ``[M]`` int64 positions of the test images in the dataset that they come from.
    """

    train: ChosenImages
    test: ChosenImages
    test_ids: Tensor


def split_of(bench: Bench) -> Split:
    """The labelled images of a bench; without test images the share that all evaluations hold out is scored on.

    Raises:
        UserError: there are no labels, or nothing can be held out.
    """
    probe, most = bench.labelled, bench.protocol.max_images
    if probe.train.labels is None or (probe.test is not None and probe.test.labels is None):
        raise UserError(
            "training needs labels, and the images have none. Point DATA.PROBE_TRAIN (and DATA.PROBE_TEST) at a folder "
            "with one sub-folder per class, or at a list with labels."
        )
    train = _rows(probe.train.dataset, most)
    if probe.test is not None:
        source, test = probe.test.dataset, _rows(probe.test.dataset, most)
    else:
        kept, held, _ = stratified_split(probe.train.labels[train], bench.holdout, bench.protocol.seed)
        if not len(held):
            raise UserError(
                "every class of DATA.PROBE_TRAIN has a single image, so none can be held out to be scored on. Give a "
                "DATA.PROBE_TEST, or more images."
            )
        source, train, test = probe.train.dataset, train[kept], train[held]
    return Split(ChosenImages(probe.train.dataset, train), ChosenImages(source, test), test)


def draw_share(labels: Tensor, *, share: float | None, shots: int | None, seed: int) -> tuple[Tensor, list[str]]:
    """Some of N labelled samples, of every class by chance.

    Args:
        labels: ``[N]`` int64.
        share: part of each class, rounded, at least one sample.
        shots: samples of each class instead, or all of a class that has fewer; None for a share.
        seed: of the choice, which depends on nothing else.

    Returns:
        positions, increasing, and remarks.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Tensor] = []
    single, short = 0, 0
    for label in labels.unique(sorted=True).tolist():
        members = (labels == label).nonzero().flatten()
        if shots is not None:
            wanted = min(shots, len(members))
            short += len(members) < shots
        else:
            asked = int((1.0 if share is None else share) * len(members) + 0.5)
            wanted = max(1, asked)
            single += asked < 1
        chosen.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    rows = torch.cat(chosen).sort().values
    notices = []
    if single:
        notices.append(f"the share {share:g} rounds to no image of {single} class(es), which keep one each")
    if short:
        notices.append(f"{short} class(es) have fewer than {shots} images, all of which are taken")
    return rows, notices


def classified(
    name: str, scores: Tensor, test: Features, train: Tensor, ids: Tensor, num_classes: int
) -> EvaluationResult:
    """The result of a classifier, with what the most frequent class would reach.

    Args:
        name: of the evaluation.
        scores: ``[M, C]`` of the test images.
        test: which images they are, and their labels.
        train: ``[N]`` labels of the training images.
        ids: what the numbers of test images stand for in the dataset.
        num_classes: C.

    Raises:
        UserError: the scores are not finite.
    """
    if not scores.isfinite().all():
        raise UserError(f"{name}: training diverged, the scores are not finite; give smaller learning rates")
    labels = required_labels(test, "test")
    meter = AccuracyMeter(num_classes)
    meter.update(scores, labels)
    result = EvaluationResult(name, meter.value(), scores.argmax(dim=1))
    result.chance = majority_result(train, labels, num_classes)
    for found in (result, result.chance):
        assert found.predictions is not None
        found.labels, found.item_ids = labels, ids[test.indices].numpy()
        found.items = 100.0 * (found.predictions == labels).double().numpy()
    result.train_images, result.test_images = len(train), len(test)
    unseen = sorted(set(labels.tolist()) - set(train.tolist()))
    lacking = f"{len(unseen)} class(es) of the test images have no training image: numbers {unseen[:5]}"
    result.details["notices"] = [lacking] if unseen else []
    return result


def _rows(dataset: ImageDataset, most: int | None) -> Tensor:
    return torch.from_numpy(evenly_spread(len(dataset), len(dataset) if most is None else most))
