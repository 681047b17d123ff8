"""Limits on gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

EPS = 1e-6
"""Added to a norm before dividing, as torch does."""


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
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        norms = torch.stack(torch._foreach_norm(gradients)) if self.each_tensor else norm
        factors = (self.largest / (norms + EPS)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()) if self.each_tensor else factors)
