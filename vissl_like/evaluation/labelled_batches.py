"""Batches of labelled images with augmentation, for evaluations that train."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.data.loader import TrainLoader
from vissl_like.data.normalise import Normalise
from vissl_like.data.samplers.base import BatchSampler, Key
from vissl_like.data.samplers.shuffled import ShuffledSampler
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.evaluation.skipped import skipped_by_all
from vissl_like.evaluation.subjects import Look, Protocol
from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError

Finish = Callable[[Tensor, Tensor, int, list[Key]], tuple[Tensor, Tensor]]
"""(images, labels, step, key of each image) -> what the network is given and what it is to answer."""


class LabelledOrder(BatchSampler):
    """Batches of a set that may be small: the last batch of an epoch may be kept, images may be repeated.

    Process r of W takes every W-th image of a batch from place r on. The last batch, smaller than the others, is
    brought to a multiple of ``multiple * W`` images by leaving some out, and left out if a process had fewer than two
    of it (BatchNorm needs two). A set that is smaller than a batch is one batch.

    Args:
        size: images in the set.
        batch_size: images per step, of all processes.
        rank, world_size: number of this process, and of processes, W.
        seed: of the order of every epoch.
        drop_last: leave out the last batch where it is smaller.
        repeats: every image comes so many times in a row, and an epoch has as many images as without: those that come
            later have no turn in it (repeated augmentation, Hoffer et al. 2020, as DeiT does it).
        multiple: every process's share of a batch is a multiple of it.

    Raises:
        UserError: a batch cannot be shared equally, or there are too few images.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        *,
        drop_last: bool = False,
        repeats: int = 1,
        multiple: int = 1,
    ):
        unit = multiple * world_size
        if batch_size % unit:
            raise UserError(
                f"EVALUATION.batch_size is {batch_size}, which {world_size} process(es) cannot share in equal parts"
                f"{f' of a multiple of {multiple} images' if multiple > 1 else ''}; make it a multiple of {unit}"
            )
        if size < batch_size and not drop_last:
            batch_size = max(unit, size // unit * unit)
            if size < max(unit, 2):
                raise UserError(
                    f"{size} labelled image(s) are too few to train with in {world_size} process(es); give more images "
                    "(or a larger EVALUATION.share), or start fewer processes"
                )
        super().__init__(size, batch_size // world_size, 1, rank, world_size, seed)
        self.repeats = repeats
        rest = 0 if drop_last else size % batch_size // unit * unit
        rest = rest if rest >= 2 * world_size else 0
        self.steps_per_epoch += rest > 0
        self.used = size // batch_size * batch_size + rest
        self._shuffled = ShuffledSampler(size, batch_size // world_size, 1, rank, world_size, seed)

    def order(self, epoch: int) -> np.ndarray:
        """As ``shuffled`` has it."""
        return self._shuffled.order(epoch)

    def batches(self, start_step: int, total_steps: int) -> Iterator[list[Key]]:
        """This process's share of every step; repetitions of an image have keys of their own."""
        known, order = -1, np.empty(0, np.int64)
        for step in range(start_step, total_steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != known:
                known, order = epoch, self.order(epoch)
            begin = number * self.global_batch
            end = min(begin + self.global_batch, self.used)
            yield [
                (epoch * self.repeats + place % self.repeats, int(order[place // self.repeats]))
                for place in range(begin + self.rank, end, self.world_size)
            ]


class LabelledBatches:
    """This process's training batches of labelled images, from any step on; see ``supervised.Draw``.

    What happens to an image is a function of (seed, epoch, its number) alone, whatever the number of processes and of
    loading workers. Unreadable images are replaced by the next readable ones of the set, with the labels of those.

    Args:
        dataset: labelled images.
        transform: one random view of each.
        look: how the network wants them.
        protocol: device and loading.
        order: which images make up which batch.
        epochs: passes over the set.
        seed: of the views.
        finish: what is done to a batch on the device at last; None for nothing.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: ViewTransform,
        look: Look,
        protocol: Protocol,
        order: LabelledOrder,
        *,
        epochs: int,
        seed: int,
        finish: Finish | None = None,
    ):
        assert dataset.labels is not None and transform.num_views == 1
        self.dataset, self.transform, self.protocol, self.order = dataset, transform, protocol, order
        self.steps, self.seed, self.finish = epochs * order.steps_per_epoch, seed, finish
        self.normalise = Normalise(look.mean, look.std, protocol.device, protocol.channels_last)
        self._skipped: list[Skipped] = []

    def __call__(self, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images ``[b, C, S, S]`` and labels ``[b]``, or what ``finish`` makes of them, and numbers ``[b]`` of images.

        Raises:
            UserError: no image can be read, or a worker died.
        """
        protocol = self.protocol
        loader = TrainLoader(
            self.dataset,
            self.transform,
            self.order,
            workers=protocol.workers,
            start_step=first,
            total_steps=self.steps,
            seed=self.seed,
            plugins=protocol.plugins,
            max_skipped="100%",
            pin_memory=protocol.device.type == "cuda",
            start_method=protocol.start_method,
        )
        keys = self.order.batches(first, self.steps)
        for step, (batch, wanted) in enumerate(zip(loader, keys, strict=False), first):
            if batch.skipped:
                self._skipped = loader.skipped
            assert batch.label is not None
            images, labels = self.normalise(batch.views[0]), batch.label.to(protocol.device, non_blocking=True)
            if self.finish is not None:
                images, labels = self.finish(images, labels, step, wanted)
            yield images, labels, batch.index.to(protocol.device)

    def skipped(self) -> list[Skipped]:
        """The different images that no process could read; every process must call it."""
        return skipped_by_all(self._skipped)
