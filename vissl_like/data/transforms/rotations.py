"""One random crop in four orientations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from vissl_like.data.transforms.multi_crop import ASPECT, MultiCrop
from vissl_like.data.transforms.parameters import ViewParameters
from vissl_like.registry import TRANSFORMS
from vissl_like.utils.kinds import Count, Fraction

ORIENTATIONS = 4
SCALE = [0.08, 1.0]


@TRANSFORMS.register("rotations")
class Rotations(MultiCrop):
    """A random crop, mirrored or not, turned by 0, 90, 180 and 270 degrees: four views (Gidaris et al. 2018).

    View r is turned counter-clockwise by r right angles, after cropping and mirroring. No colour is changed: the pixels
    of the four views are the same. Source: arXiv:1803.07728, section 2.

    Options:
        size: side of the views, in pixels
        scale: smallest and largest share of the image's area in a crop, in (0, 1]
        ratio: smallest and largest width / height of a crop
        flip: probability of mirroring left-right
        interpolation: filter of the resizing, with antialiasing

    Raises:
        SettingsError: a range or a probability makes no sense.
    """

    gives_views = ORIENTATIONS
    gives_orientations = True

    def __init__(
        self,
        channels: int,
        *,
        size: Count = 224,
        scale: list[Fraction] = SCALE,
        ratio: list[float] = ASPECT,
        flip: Fraction = 0.5,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ):
        super().__init__(
            channels,
            views=[{"count": 1, "size": size, "scale": scale}],
            flip=flip,
            ratio=ratio,
            interpolation=interpolation,
            jitter=None,
            grayscale=0.0,
            blur=None,
        )
        self.sizes = (size,) * ORIENTATIONS

    def draw(self, width: int, height: int, generator: random.Random) -> list[ViewParameters]:
        """The parameters of the crop, once for each orientation."""
        return super().draw(width, height, generator) * ORIENTATIONS

    def render(self, image: Image.Image, views: list[ViewParameters]) -> list[np.ndarray]:
        """See ``ViewTransform.render``."""
        (upright,) = super().render(image, views[:1])
        return [upright, *(np.ascontiguousarray(np.rot90(upright, turn, (1, 2))) for turn in range(1, ORIENTATIONS))]

    def render_into(self, pixels: np.ndarray, views: list[ViewParameters], rows: Sequence[np.ndarray]) -> None:
        """See ``ViewTransform.render_into``."""
        super().render_into(pixels, views[:1], rows[:1])
        for turn in range(1, ORIENTATIONS):
            rows[turn][...] = np.rot90(rows[0], turn, (1, 2))
