"""Limits on gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from vissl_like.distributed.sharding import whole_norms

EPS = 1e-6
"""Added to a norm before dividing, as torch does."""


def total_norm(parameters: Iterable[Parameter]) -> Tensor:
    """The l2 norm of the whole gradient, over all parameters and all rows of each; 0 if there is none."""
    moving = [parameter for parameter in parameters if parameter.grad is not None]
    if not moving:
        return torch.tensor(0.0)
    return torch.linalg.vector_norm(whole_norms(_gradients(moving), moving))


@dataclass(frozen=True)
class Clipping:
    """Scales gradients down to a largest l2 norm, in place; smaller ones are left alone.

    Attributes:
        largest: the limit.
        each_tensor: limit the norm of every tensor by itself, not that of the whole gradient.
    """

    largest: float
    each_tensor: bool = False

    @torch.no_grad()
    def __call__(self, parameters: Iterable[Parameter], norm: Tensor) -> None:
        """Clips; ``norm`` is that of the whole gradient. No value is brought to the host."""
        moving = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = _gradients(moving)
        if not gradients:
            return
        norms = whole_norms(gradients, moving) if self.each_tensor else norm
        factors = (self.largest / (norms + EPS)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()) if self.each_tensor else factors)


def _gradients(parameters: list[Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
