"""Which images make up which optimizer step: a pure function of (seed, step), the same however the work is divided."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from vissl_like.utils.errors import UserError

Key = tuple[int, int]
"""(epoch, index in the dataset)."""


class Order(Protocol):
    """Indices in the order of an epoch: an array, or something that computes the slices it is asked for."""

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """``[n]`` indices at the places of a slice."""


class BatchSampler(ABC):
    """Hands this process its share of every optimizer step.

    Step s of an epoch takes the images at places s * G ... (s + 1) * G - 1 of the epoch's order, G being the global
    batch; what is left at the end of an epoch is dropped. Micro-batch m of rank r is the slice of b images at
    (m * W + r) * b of these G: so W processes of batch b see in every micro-batch, in rank order, what one process of
    batch W * b sees. A subclass gives ``order``.

    Args:
        dataset_size: images in the dataset.
        per_rank_batch: images in one forward of one process, b.
        accumulation: forwards per optimizer step and process, A.
        rank, world_size: number of this process, and of processes, W.
        seed: whatever is random is a function of it and the epoch.

    Attributes:
        global_batch: G = b * A * W.
        steps_per_epoch: whole steps in one pass over the dataset.

    Raises:
        UserError: the dataset is smaller than the global batch.
    """

    def __init__(
        self, dataset_size: int, per_rank_batch: int, accumulation: int, rank: int, world_size: int, seed: int
    ):
        assert 0 <= rank < world_size and per_rank_batch >= 1 and accumulation >= 1
        self.dataset_size, self.per_rank_batch, self.accumulation = dataset_size, per_rank_batch, accumulation
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.global_batch = per_rank_batch * accumulation * world_size
        self.steps_per_epoch = dataset_size // self.global_batch
        if self.steps_per_epoch < 1:
            raise UserError(
                f"the dataset has {dataset_size} images, fewer than one global batch of {self.global_batch} "
                f"({per_rank_batch} per process x {accumulation} accumulated x {world_size} process(es)). "
                f"Set the global batch to at most {dataset_size}, or give more images."
            )

    @abstractmethod
    def order(self, epoch: int) -> Order:
        """``[dataset_size]`` indices in the order in which an epoch goes through them; a pure function of the epoch."""

    def batches(self, start_step: int, total_steps: int) -> Iterator[list[Key]]:
        """This process's micro-batches of steps ``start_step`` ... ``total_steps`` - 1, ``accumulation`` for each step.

        Starting later gives exactly the later part of what starting at 0 gives.
        """
        epoch = -1
        order: Order = np.empty(0, np.int64)
        for step in range(start_step, total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            first = step % self.steps_per_epoch * self.global_batch
            for micro in range(self.accumulation):
                begin = first + (micro * self.world_size + self.rank) * self.per_rank_batch
                yield [(epoch, index) for index in order[begin : begin + self.per_rank_batch].tolist()]
