"""Parameter groups: which tensors are decayed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.nn import Parameter


def decay_groups(
    named_parameters: Iterable[tuple[str, Parameter]], weight_decay: float, decay_vectors: bool
) -> list[dict[str, Any]]:
    """Trainable parameters in one or two groups; those marked ``decayed`` follow a schedule of the weight decay.

    Args:
        named_parameters: of the model.
        weight_decay: of the decayed group.
        decay_vectors: False puts biases and norm scales (tensors with at most one dimension) in a group without decay.
    """
    trainable = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    if decay_vectors:
        return [{"params": trainable, "weight_decay": weight_decay, "decayed": True}]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay, "decayed": True},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0, "decayed": False},
    ]
    return [group for group in groups if group["params"]]
