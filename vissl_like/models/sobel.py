"""The fixed edge filters in front of DeepCluster's networks (Caron et al. 2018, arXiv:1807.05520, section 4)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from vissl_like.utils.errors import UserError

HORIZONTAL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
VERTICAL = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))


class FixedConvolution(nn.Module):
    """Stride-1 convolution by given filters, bias 0: ``[n, C, H, W] -> [n, filters, H, W]``.

    Filters and bias are buffers: no optimizer, weight decay or unfreezing can reach them, and the state dict has the
    keys of an ordinary convolution.

    Args:
        filters: ``[filters, C, k, k]``, k odd.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, filters: Tensor):
        super().__init__()
        self.register_buffer("weight", filters)
        self.register_buffer("bias", torch.zeros(filters.shape[0]))

    def forward(self, images: Tensor) -> Tensor:
        """Filtered images of the same size, zero-padded, in the filters' precision even under autocast."""
        # Neighbouring pixels are subtracted: rounded to bfloat16 first, faint edges would drown.
        device, padding = images.device.type, self.weight.shape[-1] // 2
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return conv2d(images.to(self.weight.dtype), self.weight, self.bias, padding=padding)


class Sobel(nn.Sequential):
    """Mean of the channels, then the two Sobel filters: ``[n, C, H, W] -> [n, 2, H, W]``, nothing to train.

    It acts on images that are normalised already. Keys are the official ones: ``0.{weight,bias}`` (1x1, weights 1 / C)
    and ``1.{weight,bias}`` (3x3, zero padding 1, bright-left minus bright-right, then bright-top minus bright-bottom).

    Args:
        channels: C, of the images; one channel passes through the mean unchanged.

    Raises:
        UserError: C is neither 1 nor 3.
    """

    out_channels = 2

    def __init__(self, channels: int):
        if channels not in (1, 3):
            raise UserError(
                f"Sobel filters take grey or RGB images, got {channels} channels; set MODEL.TRUNK.sobel=false"
            )
        grey = torch.full((1, channels, 1, 1), 1.0 / channels)
        edges = torch.tensor([HORIZONTAL, VERTICAL]).unsqueeze(1)
        super().__init__(FixedConvolution(grey), FixedConvolution(edges))
