"""SGD with momentum."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from vissl_like.optimizers.groups import decay_groups
from vissl_like.optimizers.momentum import FusedSGD
from vissl_like.registry import OPTIMIZERS
from vissl_like.utils.kinds import Fraction, NonNegative


@OPTIMIZERS.register("sgd")
def sgd(
    named_parameters: list[tuple[str, Parameter]],
    lr: float,
    *,
    momentum: Fraction = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 1e-4,
    decay_vectors: bool = True,
) -> torch.optim.Optimizer:
    """SGD with momentum, in torch's fused form.

    Options:
        momentum: share of the last step that is kept
        nesterov: Nesterov's form of momentum
        weight_decay: L2 pull towards zero, added to the gradient
        decay_vectors: also decay biases and norm scales
    """
    groups = decay_groups(named_parameters, weight_decay, decay_vectors)
    return FusedSGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
