"""The group of processes of a run. One process is a group of one: every function works without initialisation.

Collectives here never change their argument, and return it unchanged (not a copy) in a group of one.
"""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vissl_like.utils.errors import UserError

PATIENCE = datetime.timedelta(days=7)
_patient: Any = None
_subgroups: dict[int, tuple[Any, Any]] = {}


def active() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0 for the main one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine (torchrun tells; otherwise all of them)."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def barrier() -> None:
    """Waits for all processes."""
    if active():
        dist.barrier()


def subgroup(size: int) -> Any:
    """The group of ``size`` neighbouring processes that this one belongs to; None for all processes.

    The first call for a size is made by every process. ``size`` divides the number of processes.
    """
    if size == world_size():
        return None
    world, group = _subgroups.get(size, (None, None))
    if world is not dist.group.WORLD:  # groups go with the world that they are part of
        numbers = list(range(world_size()))
        group, _ = dist.new_subgroups_by_enumeration(
            [numbers[first : first + size] for first in range(0, world_size(), size)]
        )
        _subgroups[size] = (dist.group.WORLD, group)
    return group


@torch.no_grad()
def broadcast(tensor: Tensor) -> Tensor:
    """The main process's tensor, everywhere; shape and dtype are equal on all processes."""
    if not active():
        return tensor
    sent = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(sent, src=0)
    return sent


@torch.no_grad()
def all_reduce(tensor: Tensor, op: str = "sum", group: Any = None) -> Tensor:
    """Sum, maximum or minimum over processes, without gradient.

    Args:
        tensor: any shape, equal on all processes.
        op: ``sum``, ``max`` or ``min``.
        group: a ``subgroup``; None for all processes.
    """
    if not active():
        return tensor
    reduced = tensor.detach().clone()
    kinds = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
    dist.all_reduce(reduced, kinds[op], group=group)
    return reduced


class _SumWithGradient(torch.autograd.Function):
    """Sum over processes whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return all_reduce(tensor, group=group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return all_reduce(gradient.contiguous(), group=ctx.group), None


def all_reduce_with_gradient(tensor: Tensor, group: Any = None) -> Tensor:
    """Sum over processes through which gradients flow; gradients are SUMMED over processes on the way back."""
    return _SumWithGradient.apply(tensor, group) if active() else tensor


@torch.no_grad()
def all_gather(tensor: Tensor) -> Tensor:
    """Rows of all processes in rank order: ``[n, ...] -> [W * n, ...]`` (n equal on all), without gradient."""
    if not active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_gather_object(value: Any) -> list[Any]:
    """``value`` of every process, in rank order. Only for small records of our own making (it pickles)."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(problem: str | None, device: torch.device | str = "cpu") -> None:
    """Every process raises what one has met; all call it, and nothing else between them has happened since.

    Args:
        problem: of this process, None if there is none.
        device: where collectives work.

    Raises:
        UserError: a process has a problem.
    """
    if int(all_reduce(torch.tensor(int(problem is not None), device=device), "max")):
        raise UserError(next(text for text in all_gather_object(problem) if text is not None))


def prepare_patience() -> None:
    """Makes the group that ``gather_patiently`` waits in; every process calls it before anything that may take long."""
    global _patient
    if active() and _patient is None:
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)


def gather_patiently(value: Any) -> list[Any]:
    """As ``all_gather_object``, where processes may arrive hours apart: one has been computing alone.

    ``prepare_patience`` comes first.
    """
    if not active():
        return [value]
    assert _patient is not None
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient)
    return values


def forget_patience() -> None:
    """The group goes with those that it stands beside."""
    global _patient
    _patient = None


def broadcast_object(value: Any) -> Any:
    """The main process's value, everywhere. Only for small records of our own making (it pickles)."""
    if not active():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]
