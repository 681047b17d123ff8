"""LARS: momentum on updates whose length follows each tensor's norm (You et al. 2017, arXiv:1708.03888), as in DINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vissl_like.distributed.sharding import whole_norms
from vissl_like.optimizers.groups import decay_groups
from vissl_like.registry import OPTIMIZERS
from vissl_like.utils.kinds import Fraction, NonNegative, Positive


@OPTIMIZERS.register("lars")
class LARS(torch.optim.Optimizer):
    """Layer-wise scaled momentum for very large batches, in the form of DINO's ResNet-50 runs.

    For a tensor w of other than one dimension, ``d = gradient + weight_decay * w`` and, where both norms are above 0,
    ``d *= trust * |w| / |d|`` (no epsilon). A one-dimensional tensor (bias, norm scale) takes its plain gradient. Then
    ``m = momentum * m + d`` and ``w -= lr * m``: the rate is outside the buffer. LARC differs in what it divides by
    (|gradient| + weight_decay * |w|) and in scaling the vectors too.

    Options:
        momentum: share of the last step that is kept
        weight_decay: L2 pull towards zero, inside the scaling; never on one-dimensional tensors
        trust: trust coefficient eta (0.001)
    """

    works_on_shards = True

    def __init__(
        self,
        named_parameters: list[tuple[str, Parameter]],
        lr: float,
        *,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 1e-6,
        trust: Positive = 1e-3,
    ):
        groups = decay_groups(named_parameters, weight_decay, decay_vectors=False)
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of every parameter that has a gradient. No value is brought to the host.

        A parameter without a gradient (frozen) is left alone: no decay, no momentum. Its buffer starts with its first
        gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            # Two lists of one kind each: torch's multi-tensor kernels do a list in a few launches.
            scaled = [parameter for parameter in moving if parameter.ndim != 1]
            plain = [parameter for parameter in moving if parameter.ndim == 1]
            if scaled:
                self._move(scaled, _scaled_updates(scaled, group["weight_decay"], group["trust"]), group)
            if plain:
                self._move(plain, _gradients(plain), group)
        return loss

    def _move(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _scaled_updates(parameters: list[Tensor], decay: float, trust: float) -> list[Tensor]:
    """``(gradient + decay * w)`` times ``trust * |w| / |gradient + decay * w|``, tensor by tensor."""
    updates = list(torch._foreach_add(_gradients(parameters), parameters, alpha=decay))
    weight_norms, update_norms = whole_norms([*parameters, *updates], [*parameters, *parameters]).chunk(2)
    applies = (weight_norms > 0) & (update_norms > 0)
    # Division by zero gives infinities only where they are thrown away.
    factors = torch.where(applies, trust * weight_norms / update_norms, 1.0)
    torch._foreach_mul_(updates, list(factors.unbind()))
    return updates
