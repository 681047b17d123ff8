"""The central part of an image, for evaluation."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
from PIL import Image

from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.transforms.parameters import ViewParameters
from vissl_like.data.transforms.pixels import RESAMPLING, to_array
from vissl_like.registry import TRANSFORMS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count

LONGEST = 8


@TRANSFORMS.register("center")
class Center(ViewTransform):
    """One view without chance: the shorter side resized, then the central square cut out (evaluation).

    Options:
        size: side of the view, in pixels.
        resize: length of the shorter side before cutting, in pixels, at least ``size``; null for ``size`` itself.
        interpolation: filter of the resizing, with antialiasing.

    Raises:
        UserError: ``resize`` is smaller than ``size``.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: Count = 224,
        resize: Count | None = 256,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ):
        super().__init__(channels)
        self.resize = size if resize is None else resize
        if self.resize < size:
            raise UserError(f"resize is {self.resize}, below the size {size} of the view; it must be at least that")
        if interpolation not in RESAMPLING:
            raise UserError(f"interpolation is {interpolation!r}; it can be {' or '.join(RESAMPLING)}")
        self.size, self.interpolation = size, interpolation
        self.sizes = (size,)

    def draw(self, width: int, height: int, generator: random.Random) -> list[ViewParameters]:
        """The one view: where the square lies in the image, in whole pixels; nothing is drawn."""
        side = max(1, round(min(width, height) * self.size / self.resize))
        return [ViewParameters((height - side) // 2, (width - side) // 2, side, side, self.size, self.interpolation)]

    def render(self, image: Image.Image, views: list[ViewParameters]) -> list[np.ndarray]:
        """Resized as a whole and then cut, as is usual; cutting first would round the square to whole pixels."""
        image = _without_far_ends(image)
        width, height = image.size
        short, long = min(width, height), max(width, height)
        other = int(self.resize * long / short)
        wanted = (self.resize, other) if width <= height else (other, self.resize)
        if wanted != image.size:
            image = image.resize(wanted, RESAMPLING[self.interpolation])
        left, top = round((wanted[0] - self.size) / 2), round((wanted[1] - self.size) / 2)
        return [to_array(image.crop((left, top, left + self.size, top + self.size)))]


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of an image longer than ``LONGEST`` times its width: a thin strip, enlarged, would fill the memory."""
    width, height = image.size
    most = LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, left + min(width, most), top + min(height, most)))
