"""Whole images without chance, for measures that must not cut anything off."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.transforms.parameters import ViewParameters
from vissl_like.data.transforms.pixels import RESAMPLING, to_array


class Squashed(ViewTransform):
    """The whole image as a square, whatever its shape was (copy detection, VOC07 with linear machines).

    Args:
        channels: of the images.
        size: side of the square, in pixels.
        resize: length of the shorter side of a first resizing that keeps the shape; None leaves it out.
        interpolation: ``bilinear`` or ``bicubic``, with antialiasing.
    """

    def __init__(self, channels: int, size: int, resize: int | None = None, interpolation: str = "bilinear"):
        super().__init__(channels)
        self.size, self.resize, self.interpolation, self.sizes = size, resize, interpolation, (size,)

    def draw(self, width: int, height: int, generator: random.Random) -> list[ViewParameters]:
        """The one view, which is all of the image; nothing is drawn."""
        return [ViewParameters(0, 0, height, width, self.size, self.interpolation)]

    def render(self, image: Image.Image, views: list[ViewParameters]) -> list[np.ndarray]:
        """One or two resizings."""
        filtering = RESAMPLING[self.interpolation]
        if self.resize is not None:
            factor = self.resize / min(image.size)
            wanted = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            image = image.resize(wanted, filtering)
        return [to_array(image.resize((self.size, self.size), filtering))]


class Longest(ViewTransform):
    """The whole image in its shape, its longer side at most so long; small images stay as they are (retrieval).

    Args:
        channels: of the images.
        size: length of the longer side, in pixels.
    """

    free_shape = True

    def __init__(self, channels: int, size: int):
        super().__init__(channels)
        self.size, self.sizes = size, (size,)

    def draw(self, width: int, height: int, generator: random.Random) -> list[ViewParameters]:
        """The one view, which is all of the image; nothing is drawn."""
        return [ViewParameters(0, 0, height, width, self.size, "lanczos")]

    def render(self, image: Image.Image, views: list[ViewParameters]) -> list[np.ndarray]:
        """PIL's thumbnail with Lanczos, as the official code has it."""
        image = image.copy()
        image.thumbnail((self.size, self.size), Image.Resampling.LANCZOS)
        return [to_array(image)]
