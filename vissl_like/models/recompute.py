"""Activation checkpointing: blocks keep only their inputs for the backward pass and compute the rest a second time.

Chen et al. 2016, arXiv:1604.06174. Less memory for one more forward pass; nothing that is computed changes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vissl_like.models.blocks import blocks_of
from vissl_like.utils.errors import UserError


def recompute_blocks(trunk: nn.Module) -> int:
    """Makes every block of a trunk (``blocks_of``) compute its inside again in the backward pass.

    A block gets a subclass of its class, so that copies, keys and ``isinstance`` stay as they are. Without gradient and
    in eval mode it works as before. Random numbers (dropout, drop path) are drawn alike in both passes, and
    BatchNorm's running statistics move once.

    Returns:
        the number of blocks.

    Raises:
        UserError: the trunk has no blocks.
    """
    blocks = blocks_of(trunk)
    if not blocks:
        raise UserError(
            f"MODEL.ACTIVATION_CHECKPOINTING: {type(trunk).__name__} has no repeated blocks to compute a second time. "
            "Set it to false, or take a trunk that has (resnet, regnet_y, vit, xcit, most of timm's)."
        )
    for block in blocks:
        block.__class__ = _recomputing(type(block))
    return len(blocks)


class Recomputing(nn.Module):
    """Mixed in before a block's own class."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the block gives."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*inputs, **named)
        contexts = lambda: (contextlib.nullcontext(), _KeptStatistics(self))  # noqa: E731
        return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}


def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    if issubclass(kind, Recomputing):
        return kind
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Recomputing{kind.__name__}", (Recomputing, kind), {})
    return _KINDS[kind]


class _KeptStatistics:
    """Surrounds the second forward pass, so that it does not count again in the norms' running statistics.

    Momentum 0 leaves mean and variance as they are; absent statistics would change what autograd saves.
    """

    def __init__(self, block: nn.Module):
        self.norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm, (_, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = 0.0
            norm.num_batches_tracked = None if count is None else count.clone()

    def __exit__(self, *_error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
