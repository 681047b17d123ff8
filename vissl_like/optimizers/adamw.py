"""AdamW (Loshchilov & Hutter 2019)."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from vissl_like.optimizers.groups import decay_groups
from vissl_like.registry import OPTIMIZERS
from vissl_like.utils.kinds import Fraction, NonNegative, Positive


@OPTIMIZERS.register("adamw")
def adamw(
    named_parameters: list[tuple[str, Parameter]],
    lr: float,
    *,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.04,
    decay_vectors: bool = False,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, in torch's fused form.

    Options:
        beta1: decay of the running mean of gradients
        beta2: decay of the running mean of squared gradients
        eps: added to the denominator
        weight_decay: decoupled decay, multiplied by the learning rate
        decay_vectors: also decay biases and norm scales
    """
    groups = decay_groups(named_parameters, weight_decay, decay_vectors)
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=True)
