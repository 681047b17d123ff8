"""Semantic segmentation on VOC-like masks by a fully convolutional network (Long et al. 2015, arXiv:1411.4038)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vissl_like.data.datasets.base import evenly_spread
from vissl_like.data.masked import CropBatch, CropBatches, Crops, MaskedImages, WholeImages
from vissl_like.data.normalise import Normalise
from vissl_like.data.processes import iterate_workers
from vissl_like.data.readers.voc import discover_classes, read_voc_masks
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Evaluation, EvaluationResult
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.fcn import Fcn, enlarged
from vissl_like.evaluation.functional.segmentation import (
    VOID,
    confusion,
    intersection_over_union,
    segmentation_metrics,
)
from vissl_like.evaluation.skipped import readable, skipped_by_all
from vissl_like.evaluation.store import cache_key
from vissl_like.evaluation.subjects import Protocol
from vissl_like.evaluation.supervised import Training, keeper_of
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.records import Skipped
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction, Index, NonNegative, Positive

V = TypeVar("V")
FLOOR = "background everywhere"
DEFAULT_SCALE = [0.5, 2.0]


@EVALUATIONS.register("segmentation")
class SegmentationEvaluation(Evaluation):
    """Classes of pixels by 1x1 convolutions on a network's maps; mean intersection over union, with the background.

    Training sees random crops of the images with their masks, by SGD and cross-entropy over all pixels that count (255
    does not); the test sees whole images, scored in their own size. With ``trunk_lr`` 0 the network is frozen; else it
    is trained too, but for the statistics of its BatchNorm. The floor calls every pixel background. The mean is over
    the classes that the test masks contain, the background among them; one that is only predicted does not count. An
    item of the result is one of these classes, so that all networks are compared over the same ones.

    Options:
        path: folder of a VOCdevkit, with SegmentationClass, SegmentationObject and ImageSets/Segmentation
        year: of VOC; the folder is VOC<year>
        train_split: name of the list in ImageSets/Segmentation to learn from
        test_split: name of the list to be scored on
        classes: names in the order of their numbers in the masks, from 1; null for all that have a list
            ImageSets/Main/<class>_<train_split>.txt, sorted (VOC's own order)
        stages: maps that are taken, counted from 1, their scores added up; null for the last (FCN-32s); of a ResNet
            [3, 4] is FCN-16s and [2, 3, 4] FCN-8s
        batch_norm: bring every channel of the maps to mean 0 and variance 1 first
        resize: shorter side in pixels that all images are brought to; null leaves them as they are
        image_size: side of the training crops, in pixels
        scale: smallest and largest factor on the size before a training crop is cut out
        flip: probability of a left-right flip in training
        steps: of SGD
        batch_size: training images per step, of all processes together
        lr: learning rate of the 1x1 convolutions
        trunk_lr: learning rate of the network itself; 0 leaves it frozen
        momentum: of SGD
        weight_decay: pull of all trained weights to 0, times the rate
        power: rates fall as (1 - step / steps) to this power; 0 keeps them as they are
        seed: of the order of the images and the crops
    """

    trains = True

    def __init__(
        self,
        *,
        path: str,
        year: Count = 2012,
        train_split: str = "train",
        test_split: str = "val",
        classes: list[str] | None = None,
        stages: list[Count] | None = None,
        batch_norm: bool = True,
        resize: Count | None = None,
        image_size: Count = 512,
        scale: list[Positive] = DEFAULT_SCALE,
        flip: Fraction = 0.5,
        steps: Count = 10000,
        batch_size: Count = 16,
        lr: Positive = 0.1,
        trunk_lr: NonNegative = 0.0,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 0.0001,
        power: NonNegative = 0.9,
        seed: Index = 0,
    ):
        if len(scale) != 2 or scale[0] > scale[1]:
            raise UserError(f"EVALUATION.scale is {list(scale)}; give the smallest and the largest factor, as [0.5, 2]")
        for name, values in (("stages", stages), ("classes", classes)):
            if values is not None and not values:
                raise UserError(f"EVALUATION.{name} is empty; name at least one, or give null")
        self.path, self.year, self.classes = path, str(year), classes
        self.splits = train_split, test_split
        self.stages, self.batch_norm = stages, batch_norm
        self.resize, self.image_size, self.scale, self.flip = resize, image_size, (scale[0], scale[1]), flip
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.lr, self.trunk_lr, self.power = lr, trunk_lr, power
        self.momentum, self.weight_decay = momentum, weight_decay

    def run(self, bench: Bench) -> EvaluationResult | None:
        """Trains the convolutions, then scores the test images; see ``Evaluation``.

        Raises:
            UserError: files are missing or wrong, the network gives no maps, or training diverged.
        """
        if bench.subject.network is None:
            raise UserError(f"{bench.subject.name} have no maps that could be segmented")
        names = self._names()
        train, test = (self._images(split, bench) for split in self.splits)
        most = bench.protocol.max_images
        orders = [evenly_spread(len(found), most or len(found)).tolist() for found in (train, test)]
        for found, order in zip((train, test), orders, strict=True):
            check_all(found, order, len(names) + 1, bench.protocol.device)
        if self.batch_size < comm.world_size():
            raise UserError(
                f"EVALUATION.batch_size is {self.batch_size}, and {comm.world_size()} processes take part; each needs "
                "an image a step"
            )
        model = self._model(bench, len(names) + 1)
        keeper = keeper_of(bench, vars(self), self.identity(bench))
        skipped: dict[str, Skipped] = {}
        facts = self._training(bench, model, train, orders[0], keeper, skipped).run()
        unread = skipped_by_all(skipped.values())
        table, unseen = self._scored(bench, model, test, orders[1], len(names) + 1)
        if not comm.is_main():
            return None
        result = self._result(table, names)
        result.details = {**facts, "trunk": "trained" if self.trunk_lr else "frozen", **result.details}
        result.train_images = readable([train.images[row] for row in orders[0]], unread)
        result.test_images, result.skipped = len(orders[1]) - len(unseen), [*unread, *unseen]
        return result

    def identity(self, bench: Bench) -> str:
        """Images and masks of both splits, and the names of the classes."""
        found = [self._images(split, bench) for split in self.splits]
        files = [[bench.images(part.images).identity, bench.images(part.masks).identity] for part in found]
        return cache_key({"files": files, "classes": self._names()})

    def typical_images(self) -> list[str]:
        """See ``Evaluation``: the training images."""
        return [entry.image for entry in read_voc_masks(self.path, self.splits[0], year=self.year)]

    def _names(self) -> list[str]:
        return self.classes or discover_classes(self.path, self.splits[0], year=self.year)

    def _images(self, split: str, bench: Bench) -> MaskedImages:
        entries = read_voc_masks(self.path, split, year=self.year)
        return MaskedImages(
            [entry.image for entry in entries], [entry.class_mask for entry in entries], bench.look.channels
        )

    def _model(self, bench: Bench, num_classes: int) -> Fcn:
        assert bench.subject.network is not None
        device = bench.protocol.device
        model = Fcn(
            copy.deepcopy(bench.subject.network()),
            self.stages,
            num_classes,
            torch.zeros(1, bench.look.channels, self.image_size, self.image_size, device=device),
            trained=self.trunk_lr > 0,
            batch_norm=self.batch_norm,
        )
        if comm.active():
            synchronise_batch_norm(model.classifiers, device.type)
        return model

    def _training(
        self,
        bench: Bench,
        model: Fcn,
        images: MaskedImages,
        order: list[int],
        keeper: Any,
        skipped: dict[str, Skipped],
    ) -> Training:
        """Images that this process cannot read are noted in ``skipped``, by their paths."""
        protocol, look = bench.protocol, bench.look
        fill = tuple(round(255 * value) for value in look.mean)
        crops = Crops(self.image_size, self.resize, self.scale, self.flip, fill)
        batches = CropBatches(images, tuple(order), crops, self.batch_size, self.seed, comm.rank(), comm.world_size())

        def draw(first: int) -> Iterator[CropBatch]:
            for batch in _loaded(batches.__getitem__, range(first, self.steps), protocol):
                if batch.problem is not None:
                    raise UserError(batch.problem)
                skipped.update({item.path: item for item in batch.skipped})
                yield batch

        groups: list[dict[str, Any]] = [{"params": list(model.classifiers.parameters()), "lr": self.lr}]
        if self.trunk_lr:
            groups.append({"params": list(model.trunk.parameters()), "lr": self.trunk_lr})
        normalise = Normalise(look.mean, look.std, protocol.device, protocol.channels_last)
        return Training(
            model,
            torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay),
            draw,
            partial(pixel_cross_entropy, normalise=normalise),
            self.steps,
            lambda step: (1 - step / self.steps) ** self.power,
            self.seed,
            f"segmentation, {bench.subject.name}",
            keeper=keeper,
        )

    @torch.no_grad()
    def _scored(
        self, bench: Bench, model: Fcn, images: MaskedImages, order: list[int], num_classes: int
    ) -> tuple[Tensor, list[Skipped]]:
        """Confusions of all test pixels ``[K, K]`` and the images left out, the same on every process."""
        protocol, look = bench.protocol, bench.look
        normalise = Normalise(look.mean, look.std, protocol.device, protocol.channels_last)
        table = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=protocol.device)
        skipped, problems = [], []
        model.eval()
        own = order[comm.rank() :: comm.world_size()]
        for whole in _loaded(WholeImages(images, self.resize).__getitem__, own, protocol):
            if whole.skipped is not None:
                skipped.append(whole.skipped)
            elif whole.problem is not None:
                problems.append(whole.problem)
            else:
                scores = model(normalise(whole.image[None]))
                if scores.shape[-2:] != whole.mask.shape:
                    scores = enlarged(scores, *whole.mask.shape)
                table += confusion(whole.mask.to(protocol.device), scores[0].argmax(dim=0), num_classes)
        comm.raise_together(next(iter(problems), None), protocol.device)
        return comm.all_reduce(table).cpu(), skipped_by_all(skipped)

    def _result(self, table: Tensor, names: list[str]) -> EvaluationResult:
        if not int(table.sum()):
            raise UserError(f"no pixel of the split {self.splits[1]!r} counts: all are 255, or no image is readable")
        result = as_result("segmentation", table)
        blind = torch.zeros_like(table)
        blind[:, 0] = table.sum(dim=1)
        result.chance = as_result(FLOOR, blind)
        overlap = intersection_over_union(table)
        labelled = dict(zip(["background", *names], overlap.tolist(), strict=True))
        absent = [name for name, value in labelled.items() if value != value]
        result.details = {
            "iou_by_class": {name: 100 * value for name, value in labelled.items() if value == value},
            "splits": list(self.splits),
            "notices": [f"classes that no test image shows do not count: {', '.join(absent)}"] * bool(absent),
        }
        return result


def _loaded(make: Callable[[int], V], keys: Sequence[int], protocol: Protocol) -> Iterator[V]:
    return iterate_workers(make, keys, protocol.workers, plugins=protocol.plugins, start_method=protocol.start_method)


def pixel_cross_entropy(
    model: nn.Module, batch: CropBatch, *, normalise: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Mean over all pixels that count in the batches of all processes.

    What is returned is this process's sum over their number in a process's batch on average, so that the mean over
    processes, which the training takes, is the mean over pixels.
    """
    scores = model(normalise(batch.images))
    masks = batch.masks.to(scores.device).long()
    counted = comm.all_reduce((masks != VOID).sum().float()) / comm.world_size()
    loss = functional.cross_entropy(scores.float(), masks, ignore_index=VOID, reduction="sum")
    return {"cross_entropy": loss / counted.clamp(min=1.0)}


def check_all(images: MaskedImages, order: list[int], num_classes: int, device: torch.device) -> None:
    """Looks at every mask before hours are spent; the processes share them.

    Raises:
        UserError: on every process alike, what the first of them found.
    """
    problem = None
    for index in order[comm.rank() :: comm.world_size()]:
        try:
            images.check(index, num_classes)
        except UserError as error:
            problem = str(error)
            break
    comm.raise_together(problem, device)


def as_result(name: str, table: Tensor) -> EvaluationResult:
    """Measures of confusions ``[K, K]``; the items are classes."""
    overlap = 100 * intersection_over_union(table).numpy()
    there = ~np.isnan(overlap)
    result = EvaluationResult(name, segmentation_metrics(table), main="mIoU", items=overlap[there])
    result.item_ids = np.flatnonzero(there).astype(np.int64)
    return result
