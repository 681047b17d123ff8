"""From a teacher's scores to target distributions."""

from __future__ import annotations

import torch
from torch import Tensor


def sharpen(scores: Tensor, temperature: float) -> Tensor:
    """Softmax at a temperature; at 0 its limit, all mass on the highest score (the first of equal ones).

    Args:
        scores: ``[n, K]``.
        temperature: >= 0.

    Returns:
        ``[n, K]`` float32, rows sum to 1.
    """
    if temperature == 0:
        return torch.zeros(scores.shape, dtype=torch.float32, device=scores.device).scatter_(
            1, scores.argmax(1, keepdim=True), 1.0
        )
    return torch.softmax(scores.float() / temperature, dim=1)


def mean_entropy(probabilities: Tensor) -> Tensor:
    """Mean over rows of ``-sum p ln p`` in nats; ``[n, K] -> []``."""
    return torch.special.entr(probabilities).sum(1).mean()
