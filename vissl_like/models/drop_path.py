"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382), a whole residual branch dropped for single images."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops the branch of each image with a probability and divides what is kept by the probability of keeping it.

    In eval mode, and with a probability of 0, it is the identity and draws no random number. ``drop_prob`` may be
    changed at any time: a teacher's copy has it set to 0.

    Args:
        drop_prob: probability that an image's branch is dropped, in [0, 1].
    """

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = float(drop_prob)

    def forward(self, branch: Tensor) -> Tensor:
        """``[n, ...]`` -> the same shape; images are along the first dimension."""
        if self.drop_prob == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.drop_prob
        mask = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(keep)
        return branch * (mask.div_(keep) if keep > 0 else mask)

    def extra_repr(self) -> str:
        """The probability, for printing."""
        return f"drop_prob={self.drop_prob:g}"
