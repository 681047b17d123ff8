"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382), a whole residual branch dropped for single images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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

    def forward(self, branch: Tensor, layout: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """``[n, ...]`` -> the same shape.

        Args:
            branch: images are along the first dimension.
            layout: number of images, and rows of each, in every stretch of a branch where they have several.
        """
        if self.drop_prob == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.drop_prob
        images = len(branch) if layout is None else sum(number for number, _ in layout)
        mask = branch.new_empty(images, *[1] * (branch.dim() - 1)).bernoulli_(keep)
        if keep > 0:
            mask.div_(keep)
        if layout is not None:
            stretches = zip(mask.split([number for number, _ in layout]), layout, strict=True)
            mask = torch.cat([stretch.repeat_interleave(rows, dim=0) for stretch, (_, rows) in stretches])
        return branch * mask

    def extra_repr(self) -> str:
        """The probability, for printing."""
        return f"drop_prob={self.drop_prob:g}"
