"""The central part of an image, for evaluation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from vissl_like.data.transforms import native
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.transforms.parameters import ViewParameters
from vissl_like.data.transforms.pixels import RESAMPLING
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

    @property
    def takes_arrays(self) -> bool:
        """Whether the native kernel is in use."""
        return native.available()

    def render(self, image: Image.Image, views: list[ViewParameters]) -> list[np.ndarray]:
        """Resized as a whole and then cut, as is usual; cutting first would round the square to whole pixels."""
        row = np.empty((self.channels, self.size, self.size), np.uint8)
        self.render_into(np.asarray(image), views, [row])
        return [row]

    def render_into(self, pixels: np.ndarray, views: list[ViewParameters], rows: Sequence[np.ndarray]) -> None:
        """See ``ViewTransform.render_into``; ``views`` say nothing that the transform does not know."""
        box = _without_far_ends(*pixels.shape[:2])
        _, _, height, width = box
        other = int(self.resize * max(height, width) / min(height, width))
        whole = (other, self.resize) if width <= height else (self.resize, other)
        place = (round((whole[0] - self.size) / 2), round((whole[1] - self.size) / 2))
        native.window_into(pixels, box, whole, place, self.size, self.interpolation, rows[0])


def _without_far_ends(height: int, width: int) -> tuple[int, int, int, int]:
    """The middle (top, left, height, width) of an image, which is all of it unless its longer side is over ``LONGEST``
    times the shorter one: a thin strip, enlarged, would fill the memory."""
    most = LONGEST * min(width, height)
    return max(0, (height - most) // 2), max(0, (width - most) // 2), min(height, most), min(width, most)
