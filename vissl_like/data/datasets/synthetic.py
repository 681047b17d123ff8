"""Drawn shapes: a learnable dataset that needs no files."""

from __future__ import annotations

import math
import random
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from vissl_like.data.sources import StoredImages
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Index

SHAPES = ("disc", "square", "triangle", "ring", "cross", "star")
TEXTURES = ("plain", "stripes", "checks", "dots")
CLASSES = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)
_OVERSAMPLING = 2


@DATASETS.register("synthetic")
class SyntheticShapes(StoredImages):
    """Drawn shapes with textures on noisy ground, in classes; always the same for the same seed.

    Image i belongs to class i mod ``classes``, a pair of shape and texture; colour, size, place, angle and ground vary
    from image to image and say nothing about the class.

    Options:
        count: number of images.
        size: side in pixels.
        classes: number of classes, 2 to 24: 6 shapes plain, then the same with stripes, checks and dots.
        seed: another seed, other images.
        channels: 3 for colour, 1 for grey.
        mean: one value per channel in 0..1; null for ImageNet's (colour) or 0.5 (grey).
        std: one value per channel in 0..1; null for ImageNet's (colour) or 0.25 (grey).
        cache: ``ram`` keeps drawn images in memory, up to 2 GiB in every process; ``none`` draws each time.

    Raises:
        UserError: more or fewer classes than that, or images smaller than 8 pixels.
    """

    def __init__(
        self,
        *,
        count: Count = 512,
        size: Count = 64,
        classes: Count = 6,
        seed: Index = 0,
        channels: Literal[1, 3] = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        cache: Literal["none", "ram"] = "none",
    ):
        if not 2 <= classes <= len(CLASSES):
            raise UserError(f"classes is {classes}; there are 2 to {len(CLASSES)}")
        if size < 8:
            raise UserError(f"size is {size}; shapes need at least 8 pixels")
        self.size, self.seed = size, seed
        labels = np.arange(count) % classes
        super().__init__(
            count,
            labels,
            list(CLASSES[:classes]),
            channels=channels,
            mean=mean,
            std=std,
            limit=None,
            cache=cache,
        )

    def load(self, position: int) -> Image.Image:
        assert self.labels is not None
        shape, texture = shape_and_texture(int(self.labels[position]))
        image = draw(random.Random((self.seed << 64) + position), self.size, shape, texture)
        return image if self.channels == 3 else image.convert("L")

    def name_of(self, position: int) -> str:
        return f"synthetic[{position}]"

    def header_of(self, position: int) -> tuple[str, tuple[int, int]]:
        return "drawn", (self.size, self.size)


def shape_and_texture(number: int) -> tuple[str, str]:
    """Shape and texture of a class."""
    return SHAPES[number % len(SHAPES)], TEXTURES[number // len(SHAPES)]


def draw(generator: random.Random, size: int, shape: str, texture: str) -> Image.Image:
    """One RGB image of ``size`` pixels a side; everything but shape and texture comes from the generator."""
    full = size * _OVERSAMPLING
    ground, figure = _colours(generator)
    radius = full * generator.uniform(0.22, 0.36)
    centre = (generator.uniform(radius, full - radius), generator.uniform(radius, full - radius))
    angle = generator.uniform(0, 2 * math.pi)
    mask = Image.new("L", (full, full), 0)
    _draw_shape(ImageDraw.Draw(mask), shape, centre, radius, angle)
    pattern = Image.fromarray(_pattern(generator, full, texture, radius))
    inside = Image.composite(Image.new("RGB", mask.size, figure), Image.new("RGB", mask.size, _darker(figure)), pattern)
    image = Image.composite(inside, Image.new("RGB", mask.size, ground), mask).resize(
        (size, size), Image.Resampling.BOX
    )
    noise = np.random.Generator(np.random.PCG64(generator.getrandbits(64))).normal(0, 8, (size, size, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _colours(generator: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ground and figure, the figure lighter, so that grey images show it too."""
    ground = tuple(generator.randrange(10, 90) for _ in range(3))
    figure = tuple(generator.randrange(150, 256) for _ in range(3))
    return ground, figure  # type: ignore[return-value]


def _darker(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return colour[0] // 2, colour[1] // 2, colour[2] // 2


def _pattern(generator: random.Random, full: int, texture: str, radius: float) -> np.ndarray:
    """``[full, full]`` uint8, 255 where the figure has its own colour and 0 where it is darker."""
    period = max(4.0, radius / 2)
    y, x = np.mgrid[0:full, 0:full] + generator.uniform(0, period)
    angle = generator.uniform(0, math.pi)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    first, second = along % period < period / 2, across % period < period / 2
    if texture == "plain":
        light = np.ones_like(first)
    elif texture == "stripes":
        light = first
    elif texture == "checks":
        light = first ^ second
    else:
        light = np.hypot(along % period - period / 2, across % period - period / 2) > period / 3
    return np.where(light, 255, 0).astype(np.uint8)


def _draw_shape(
    canvas: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float, angle: float
) -> None:
    x, y = centre
    if shape in ("disc", "ring"):
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            inner = radius * 0.6
            canvas.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
        return
    # Corners as (angle in turns, distance in radii).
    corners = {
        "square": [(turn / 4, 1.0) for turn in range(4)],
        "triangle": [(turn / 3, 1.0) for turn in range(3)],
        "star": [(turn / 10, 1.0 if turn % 2 == 0 else 0.42) for turn in range(10)],
        "cross": [(k / 4 + d, r) for k in range(4) for d, r in ((-0.046, 1.0), (0.046, 1.0), (0.125, 0.405))],
    }[shape]
    points = [
        (x + radius * r * math.cos(angle + 2 * math.pi * t), y + radius * r * math.sin(angle + 2 * math.pi * t))
        for t, r in corners
    ]
    canvas.polygon(points, fill=255)
