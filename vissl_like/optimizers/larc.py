"""LARC: SGD whose gradient is rescaled tensor by tensor (You et al. 2017), in the form that SwAV uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vissl_like.distributed.sharding import whole_norms
from vissl_like.optimizers.groups import decay_groups
from vissl_like.optimizers.momentum import FusedSGD
from vissl_like.registry import OPTIMIZERS
from vissl_like.utils.kinds import Fraction, NonNegative, Positive


@OPTIMIZERS.register("larc")
class LARC(FusedSGD):
    """SGD with momentum on layer-wise rescaled gradients, for very large batches.

    For each tensor with norms p = |w| > 0 and g = |gradient| > 0 the gradient becomes
    ``trust * p / (g + weight_decay * p + eps) * (gradient + weight_decay * w)``. A tensor whose norm or gradient is
    zero keeps its raw gradient and is not decayed in that step (fresh zero biases step with the full rate).

    Options:
        momentum: share of the last step that is kept
        weight_decay: L2 pull towards zero, inside the rescaling
        trust: trust coefficient (0.001)
        clip: never exceed the plain rate: factor min(trust ratio / lr, 1); off in the official recipes
        eps: added to the denominator
        decay_vectors: also decay biases and norm scales (they are rescaled in any case)
    """

    def __init__(
        self,
        named_parameters: list[tuple[str, Parameter]],
        lr: float,
        *,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 1e-6,
        trust: Positive = 1e-3,
        clip: bool = False,
        eps: Positive = 1e-8,
        decay_vectors: bool = True,
    ):
        groups = decay_groups(named_parameters, weight_decay, decay_vectors)
        super().__init__(groups, lr=lr, momentum=momentum, fused=True)
        self.trust, self.clip, self.eps = trust, clip, eps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Rescales the gradients in place, then takes one step of SGD. No value is brought to the host."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moving:
                gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
                norms = whole_norms([*moving, *gradients], [*moving, *moving]).chunk(2)
                for parameter, weight_norm, gradient_norm in zip(moving, *norms, strict=True):
                    self._rescale(parameter, weight_norm, gradient_norm, group["weight_decay"], group["lr"])
            group["weight_decay"] = 0.0  # the rescaled gradient has it: SGD must not decay again
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def _rescale(
        self, parameter: Parameter, weight_norm: Tensor, gradient_norm: Tensor, decay: float, lr: float
    ) -> None:
        gradient = parameter.grad
        assert gradient is not None
        ratio = self.trust * weight_norm / (gradient_norm + decay * weight_norm + self.eps)
        if self.clip:
            # At lr 0 (first warm-up step) the update is zero whatever the factor: torch.clamp turns x / 0 into 1.
            ratio = (ratio / lr).clamp(max=1.0) if lr > 0 else torch.ones_like(ratio)
        applies = (weight_norm > 0) & (gradient_norm > 0)
        rescaled = gradient.add(parameter, alpha=decay).mul_(ratio)
        gradient.copy_(torch.where(applies, rescaled, gradient))
