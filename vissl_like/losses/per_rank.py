"""How state that belongs to single processes is divided among them, so that another number of processes can go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Division:
    """How the images of a step are dealt out to processes and forwards (see ``data/samplers/base.py``).

    Micro-batch m of rank r has the images at places (m * W + r) * b ... (m * W + r + 1) * b - 1 of the global batch.

    Attributes:
        global_batch: images per optimizer step over all processes.
        world_size: W, number of processes.
        accumulation: A, forwards per optimizer step and process.
    """

    global_batch: int
    world_size: int
    accumulation: int

    @property
    def per_rank_batch(self) -> int:
        """Images in one forward of one process, b."""
        return self.global_batch // (self.world_size * self.accumulation)

    @property
    def rows_per_step(self) -> int:
        """Images of one step that each process has, A * b."""
        return self.global_batch // self.world_size


class Layout(Protocol):
    """What a loss says about a buffer that differs between processes.

    ``join`` gives what all processes hold together, in an order that does not depend on how they are divided, and
    ``split`` what one process of a division holds of it: ``split(join(parts, old), new, rank)`` is what process
    ``rank`` of the new division would have had, had it run from the start.
    """

    def join(self, parts: list[Tensor], division: Division) -> Tensor:
        """The whole, from the buffers of all processes in rank order."""
        ...

    def split(self, whole: Tensor, division: Division, rank: int) -> Tensor:
        """The buffer of one process, a copy."""
        ...


@dataclass(frozen=True)
class StepRows:
    """Rows for every image of some whole steps, step after step: a process holds its images' rows of each.

    The whole has, for each step, the rows in the order of the global batch.

    Attributes:
        dim: dimension of the rows; its length is a multiple of the images that a process has in a step.
        newest_first: micro-batches of a step stand last one first, as in a queue that grows at its front.
    """

    dim: int = 0
    newest_first: bool = False

    def join(self, parts: list[Tensor], division: Division) -> Tensor:
        """``[..., W * n, ...]`` from W times ``[..., n, ...]``."""
        shape = list(parts[0].shape)
        shape[self.dim] *= len(parts)
        whole = parts[0].new_empty(shape)
        for rank, part in enumerate(parts):
            whole.index_copy_(self.dim, self._places(part.shape[self.dim], division, rank), part)
        return whole

    def split(self, whole: Tensor, division: Division, rank: int) -> Tensor:
        """``[..., n, ...]`` from ``[..., W * n, ...]``."""
        rows = whole.shape[self.dim] // division.world_size
        return whole.index_select(self.dim, self._places(rows, division, rank))

    def _places(self, rows: int, division: Division, rank: int) -> Tensor:
        """``[rows]`` places in the whole of the rows that a process holds, in its order."""
        assert rows % division.rows_per_step == 0, (rows, division)
        micro = torch.arange(division.accumulation)
        if self.newest_first:
            micro = micro.flip(0)
        first = (micro * division.world_size + rank) * division.per_rank_batch
        in_step = (first[:, None] + torch.arange(division.per_rank_batch)).flatten()
        steps = torch.arange(rows // division.rows_per_step) * division.global_batch
        return (steps[:, None] + in_step).flatten()


@dataclass(frozen=True)
class RowCount:
    """A number of rows, the same on every process; the whole is their sum."""

    def join(self, parts: list[Tensor], division: Division) -> Tensor:
        """Rows of all processes together."""
        return torch.stack(parts).sum(0)

    def split(self, whole: Tensor, division: Division, rank: int) -> Tensor:
        """Rows of each process."""
        return whole // division.world_size
