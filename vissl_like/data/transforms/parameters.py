"""What happens to an image, drawn from a generator keyed by (seed, epoch, index): pure functions, away from the pixels.

The laws are those of torchvision's ``RandomResizedCrop`` and ``ColorJitter`` with PIL's ``GaussianBlur`` and
``solarize``, as in the multi-crop of SwAV (Caron et al. 2020) and DINO (Caron et al. 2021). Every view is drawn from
the whole image.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_ATTEMPTS = 10
_BITS = 64


@dataclass(frozen=True)
class JitterSpec:
    """Ranges of a colour jitter.

    Attributes:
        brightness, contrast, saturation: b >= 0; the factor is uniform in [max(0, 1 - b), 1 + b]; 0 is off.
        hue: h in 0..0.5 turns; the shift is uniform in [-h, h]; 0 is off.
        p: probability of any jitter at all.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0


@dataclass(frozen=True)
class BlurSpec:
    """Gaussian blur with probability ``p``, its radius (used as sigma, in pixels of the view) uniform in ``sigma``."""

    p: float
    sigma: tuple[float, float]


@dataclass(frozen=True)
class ViewSpec:
    """How one kind of view is drawn.

    Attributes:
        count: views of this kind.
        size: side of the view, in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height of the crop; uniform on a logarithmic scale.
        interpolation: ``bilinear`` or ``bicubic``.
        flip, vertical_flip, grayscale, solarize: probabilities.
        jitter, blur: None is off.
    """

    count: int
    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip: float = 0.0
    vertical_flip: float = 0.0
    jitter: JitterSpec | None = None
    grayscale: float = 0.0
    blur: BlurSpec | None = None
    solarize: float = 0.0


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """What makes one view out of an image, in the order in which it is done.

    Attributes:
        top, left, height, width: the crop, in pixels of the image.
        size: side of the view after resizing, in pixels.
        interpolation: ``bilinear`` or ``bicubic``.
        flip, vertical_flip: mirrored left-right, top-bottom.
        jitter: steps in order, each ``(brightness | contrast | saturation | hue, factor or shift)``.
        grayscale: made grey.
        blur: radius in pixels of the view, or None.
        solarize: values from 128 on inverted.
    """

    top: int
    left: int
    height: int
    width: int
    size: int
    interpolation: str = "bilinear"
    flip: bool = False
    vertical_flip: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur: float | None = None
    solarize: bool = False


def sample_generator(seed: int, epoch: int, index: int) -> random.Random:
    """The generator of one sample: the same for the same (seed, epoch, index), whatever process asks.

    Args:
        seed, epoch, index: 0 or more, below 2^64.
    """
    return random.Random(((seed << _BITS | epoch) << _BITS) | index)


def draw_views(specs: tuple[ViewSpec, ...], width: int, height: int, generator: random.Random) -> list[ViewParameters]:
    """Parameters of all views of one image of ``width`` x ``height`` pixels, kind by kind."""
    return [draw_view(spec, width, height, generator) for spec in specs for _ in range(spec.count)]


def draw_view(spec: ViewSpec, width: int, height: int, generator: random.Random) -> ViewParameters:
    """Parameters of one view."""
    chance = generator.random
    top, left, crop_height, crop_width = draw_crop(width, height, spec.scale, spec.ratio, generator)
    flip = spec.flip > 0 and chance() < spec.flip
    vertical_flip = spec.vertical_flip > 0 and chance() < spec.vertical_flip
    jitter: tuple[tuple[str, float], ...] = ()
    if spec.jitter is not None and chance() < spec.jitter.p:
        jitter = draw_jitter(spec.jitter, generator)
    grayscale = spec.grayscale > 0 and chance() < spec.grayscale
    blur = None
    if spec.blur is not None and chance() < spec.blur.p:
        blur = generator.uniform(*spec.blur.sigma)
    solarize = spec.solarize > 0 and chance() < spec.solarize
    return ViewParameters(
        top,
        left,
        crop_height,
        crop_width,
        spec.size,
        spec.interpolation,
        flip,
        vertical_flip,
        jitter,
        grayscale,
        blur,
        solarize,
    )


def draw_crop(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], generator: random.Random
) -> tuple[int, int, int, int]:
    """Crop (top, left, height, width): area uniform in ``scale``, aspect log-uniform in ``ratio``, place uniform.

    Ten tries to fit such a rectangle into the image; then the largest central one whose aspect is within ``ratio``.
    """
    chance = generator.random
    area = width * height
    low, high = scale
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        target = area * (low + (high - low) * chance())
        aspect = math.exp(log_low + (log_high - log_low) * chance())
        crop_width = round(math.sqrt(target * aspect))
        crop_height = round(math.sqrt(target / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(chance() * (height - crop_height + 1))
            left = int(chance() * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        crop_width = min(width, round(height * ratio[1]))
    # An image one pixel thin can round a side down to nothing.
    crop_width, crop_height = max(1, crop_width), max(1, crop_height)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def draw_jitter(spec: JitterSpec, generator: random.Random) -> tuple[tuple[str, float], ...]:
    """Steps that are on, with their factors, every order equally likely (as within a uniform order of all four)."""
    factors = {}
    for name, strength in (
        ("brightness", spec.brightness),
        ("contrast", spec.contrast),
        ("saturation", spec.saturation),
    ):
        if strength > 0:
            factors[name] = generator.uniform(max(0.0, 1 - strength), 1 + strength)
    if spec.hue > 0:
        factors["hue"] = generator.uniform(-spec.hue, spec.hue)
    order = list(factors)
    generator.shuffle(order)
    return tuple((name, factors[name]) for name in order)
