"""Several random crops of different sizes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from PIL import Image

from vissl_like.data.transforms import native
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.transforms.parameters import ViewParameters, draw_views
from vissl_like.data.transforms.specs import SpecReader
from vissl_like.registry import TRANSFORMS
from vissl_like.utils.errors import SettingsError
from vissl_like.utils.kinds import Count, Fraction, NonNegative, Positive


class Jitter(TypedDict, total=False):
    """Strengths of the colour changes, and the probability of making them at all."""

    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: NonNegative
    p: Fraction


class Blur(TypedDict, total=False):
    """Probability of blurring, and the range of sigma in pixels."""

    p: Fraction
    sigma: list[NonNegative]


class View(TypedDict, total=False):
    """One kind of views: how many, how large, of which share of the image; and what differs from the shared options."""

    count: Count
    size: Count
    scale: list[Fraction]
    ratio: list[Positive]
    interpolation: Literal["bilinear", "bicubic"]
    flip: Fraction
    vertical_flip: Fraction
    jitter: Jitter | None
    grayscale: Fraction
    blur: Blur | None
    solarize: Fraction


VIEWS: list[View] = [
    {"count": 2, "size": 224, "scale": [0.14, 1.0]},
    {"count": 6, "size": 96, "scale": [0.05, 0.14]},
]
JITTER: Jitter = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8}
BLUR: Blur = {"p": 0.5, "sigma": [0.1, 2.0]}
ASPECT = [0.75, 1.3333333333333333]


@TRANSFORMS.register("multi_crop")
class MultiCrop(ViewTransform):
    """Several random crops of different sizes with colour changes, each drawn from the whole image (SwAV, DINO).

    Order inside a view: crop and resize, flips, jitter, grayscale, blur, solarize. The defaults are SwAV's.

    Options:
        views: kinds of views, big ones first: ``{count, size, scale: [lo, hi]}`` with ``size`` the side in pixels and
            ``scale`` the share of the image's area in (0, 1]; a kind may have its own ``flip``, ``vertical_flip``,
            ``ratio``, ``interpolation``, ``jitter``, ``grayscale``, ``blur`` or ``solarize`` in place of those below.
        flip: probability of mirroring left-right.
        vertical_flip: probability of mirroring top-bottom (for images without an up and down).
        ratio: smallest and largest width / height of a crop.
        interpolation: filter of the resizing, with antialiasing.
        jitter: ``{brightness, contrast, saturation, hue, p}``: factors from [max(0, 1 - b), 1 + b], hue shifts from
            [-h, h] turns (h up to 0.5), in random order, with probability ``p`` (1 if left out); a strength left out is
            0; null is off.
        grayscale: probability of making a view grey.
        blur: ``{p, sigma: [lo, hi]}``: probability (1 if left out), and range of the Gaussian's sigma in pixels of the
            view; null is off.
        solarize: probability of inverting values from 128 on.

    Raises:
        SettingsError: a view, range or probability makes no sense, or a colour option is set for images of one channel.
    """

    def __init__(
        self,
        channels: int,
        *,
        views: list[View] = VIEWS,
        flip: Fraction = 0.5,
        vertical_flip: Fraction = 0.0,
        ratio: list[float] = ASPECT,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        jitter: Jitter | None = JITTER,
        grayscale: Fraction = 0.2,
        blur: Blur | None = BLUR,
        solarize: Fraction = 0.0,
    ):
        super().__init__(channels)
        shared = {
            "flip": flip,
            "vertical_flip": vertical_flip,
            "ratio": ratio,
            "interpolation": interpolation,
            "jitter": jitter,
            "grayscale": grayscale,
            "blur": blur,
            "solarize": solarize,
        }
        reader = SpecReader(channels)
        self.view_specs = reader.read(views, shared)
        if reader.problems:
            raise SettingsError(reader.problems)
        self.sizes = tuple(spec.size for spec in self.view_specs for _ in range(spec.count))

    def draw(self, width: int, height: int, generator: random.Random) -> list[ViewParameters]:
        return draw_views(self.view_specs, width, height, generator)

    @property
    def takes_arrays(self) -> bool:
        """Whether the native kernel is in use."""
        return native.available()

    def render(self, image: Image.Image, views: list[ViewParameters]) -> list[np.ndarray]:
        """Views by their parameters, made by the native kernel or, to the same bit, by Pillow."""
        if not native.available():
            return super().render(image, views)
        rows = [np.empty((self.channels, view.size, view.size), np.uint8) for view in views]
        native.render_into(np.asarray(image), views, rows)
        return rows

    def render_into(self, pixels: np.ndarray, views: list[ViewParameters], rows: Sequence[np.ndarray]) -> None:
        """See ``ViewTransform.render_into``."""
        native.render_into(pixels, views, rows)
