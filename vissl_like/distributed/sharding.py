"""Tensors of which each process has some rows: what the floors above the collectives need to know of them.

A run divides its network by torch's ``fully_shard`` (FSDP2; ``trainer.sharding``). Optimizers never see torch's
distributed tensors. They get plain tensors that share memory with this process's rows, so that fused and multi-tensor
forms work; a shard carries ``whole_shape``. What works element by element is right as it is, and whoever needs the norm
of a whole tensor asks ``whole_norms``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.distributed import comm


def is_divided(tensor: Tensor) -> bool:
    """Whether this process has only some rows of a tensor (torch's DTensor; asking by name spares its import)."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a divided tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local().detach() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def is_shard(parameter: Tensor) -> bool:
    """Whether a parameter that an optimizer holds is some rows of a tensor."""
    return hasattr(parameter, "whole_shape")


def own_rows(count: int) -> tuple[int, int]:
    """First and one after the last of the rows that this process has of ``count``: equal parts, the last ones less."""
    part = -(-count // comm.world_size())
    return min(comm.rank() * part, count), min((comm.rank() + 1) * part, count)


@torch.no_grad()
def whole_norms(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The l2 norm of each tensor, ``[n]``: of all its rows, also where this process has only some.

    Args:
        tensors: parameters, gradients or updates; every process must ask for the same ones.
        parameters: the parameter that each belongs to.
    """
    norms = torch.stack(list(torch._foreach_norm(list(tensors))))
    shards = [is_shard(parameter) for parameter in parameters]
    if not any(shards):
        return norms
    summed = comm.all_reduce(norms.double().square()).sqrt().to(norms.dtype)
    return torch.where(torch.tensor(shards, device=norms.device), summed, norms)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside, a divided network is whole on every process, and forwards in eval mode need no other process.

    Every process must enter. A network that is not divided is left alone. Weights must not be changed inside.
    """
    groups: list[Any] = [part for part in module.modules() if hasattr(part, "set_requires_gradient_sync")]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.set_reshard_after_forward(True, recurse=False)
            group.reshard()


@torch.no_grad()
def whole_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every tensor whole, on the CPU, on the main process; empty elsewhere. All processes call it."""
    found = {}
    for name, tensor in state.items():
        full = tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]
        if comm.is_main():
            found[name] = full.detach().cpu()
    return found
