"""From uint8 pixels to what a network sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalise:
    """``(pixel / 255 - mean) / std`` on the device: uint8 travels, so a copy to the GPU is four times smaller.

    Args:
        mean: per channel, in units of 0..1.
        std: per channel, > 0, in units of 0..1.
        device: where the result lives.
        channels_last: whether the result's channels vary fastest in memory (faster convolutions).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool = False):
        self.device = device
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.scale = torch.tensor(std, device=device).mul(255).reciprocal().view(1, -1, 1, 1)
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, view: Tensor) -> Tensor:
        """uint8 ``[b, C, H, W]`` -> float32 of the same shape."""
        pixels = view.to(self.device, torch.float32, non_blocking=True, memory_format=self.format)
        return pixels.sub_(self.mean * 255).mul_(self.scale)
