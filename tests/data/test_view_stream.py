"""Whole streams of views, ours and the official pipeline's (torchvision on PIL images), told apart by statistics.

Same images, different random numbers. The same test must notice two well-known short cuts: a hue shift that turns YIQ
instead of HSV, and a resize without antialiasing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from torchvision import transforms as tv

from vissl_like.data.transforms import native
from vissl_like.data.transforms.parameters import BlurSpec, JitterSpec, ViewSpec, draw_view, sample_generator

IMAGES, VIEWS, SIDE = 500, 8, 48
ALPHA = 1e-3
SPEC = ViewSpec(
    count=VIEWS,
    size=SIDE,
    scale=(0.14, 1.0),
    flip=0.5,
    jitter=JitterSpec(0.8, 0.8, 0.8, 0.2, p=0.8),
    grayscale=0.2,
    blur=BlurSpec(0.5, (0.1, 2.0)),
)
THUMBNAILS, PERMUTATIONS = 800, 199

View = Callable[[Image.Image, int, int], np.ndarray]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Colourful noise with structure of all sizes, 120 x 90 pixels."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(90)[:, None], np.fft.rfftfreq(120)[None])
    frequency[0, 0] = 1.0
    made = []
    for _ in range(IMAGES):
        waves = np.exp(2j * np.pi * generator.random((3, *frequency.shape))) / frequency
        planes = np.fft.irfft2(waves, s=(90, 120))
        planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
        level = generator.uniform(20, 235, size=(3, 1, 1))
        made.append(Image.fromarray(np.clip(level + 30 * planes, 0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return made


class PillowBlur:
    """Gaussian blur of the official code."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def official(crop: Callable[[Image.Image], Image.Image], jitter: Callable[[Image.Image], Image.Image]) -> View:
    """The official order of transforms."""
    whole = tv.Compose(
        [
            crop,
            tv.RandomHorizontalFlip(0.5),
            tv.RandomApply([jitter], p=0.8),
            tv.RandomGrayscale(0.2),
            tv.RandomApply([PillowBlur()], p=0.5),
        ]
    )
    return lambda image, _number, _view: np.asarray(whole(image))


def their_crop() -> Callable[[Image.Image], Image.Image]:
    return tv.RandomResizedCrop(SIDE, (0.14, 1.0))


def their_jitter() -> Callable[[Image.Image], Image.Image]:
    return tv.ColorJitter(0.8, 0.8, 0.8, 0.2)


def ours(image: Image.Image, number: int, view: int) -> np.ndarray:
    """One view by what a training would use here."""
    parameters = draw_view(SPEC, image.width, image.height, sample_generator(1, view, number))
    row = np.empty((3, SIDE, SIDE), np.uint8)
    native.render_into(np.asarray(image).copy(), [parameters], [row])
    return row.transpose(1, 2, 0)


def turned_in_yiq(image: Image.Image) -> Image.Image:
    """The jitter whose hue shift is a rotation of the two colour axes of YIQ."""
    order, bright, contrast, saturation, hue = tv.ColorJitter.get_params(
        (0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2)
    )
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    angle = 2 * np.pi * hue
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    matrix = np.linalg.inv(to_yiq) @ turn @ to_yiq
    for step in order.tolist():
        if step == 3:
            values = np.clip(np.asarray(image, dtype=np.float64) @ matrix.T, 0, 255)
            image = Image.fromarray(values.astype(np.uint8))
        else:
            name, factor = (("brightness", bright), ("contrast", contrast), ("saturation", saturation))[step]
            image = getattr(tv.functional, f"adjust_{name}")(image, factor)
    return image


class SharpCrop:
    """RandomResizedCrop that takes the four nearest pixels only."""

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left, height, width = tv.RandomResizedCrop.get_params(image, [0.14, 1.0], [3 / 4, 4 / 3])
        crop = torch.from_numpy(np.asarray(image)[top : top + height, left : left + width].copy())
        small = torch.nn.functional.interpolate(
            crop.permute(2, 0, 1)[None].float(), (SIDE, SIDE), mode="bilinear", antialias=False
        )
        return Image.fromarray(small[0].round().byte().permute(1, 2, 0).numpy())


def stream(images: list[Image.Image], view: View, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Statistics of all views, and thumbnails ``[views, 192]``."""
    random.seed(seed), torch.manual_seed(seed)
    views = [view(image, number, k) for number, image in enumerate(images) for k in range(VIEWS)]
    values = np.stack(views).astype(np.float32)
    found = {f"mean of {c}": values[..., i].mean((1, 2)) for i, c in enumerate("RGB")}
    found |= {f"deviation of {c}": values[..., i].std((1, 2)) for i, c in enumerate("RGB")}
    steps = np.abs(np.diff(values, axis=1)).mean((1, 2, 3)) + np.abs(np.diff(values, axis=2)).mean((1, 2, 3))
    found["gradient"] = steps
    found["colour"] = (values.max(-1) - values.min(-1)).mean((1, 2))
    found["value"] = values.max(-1).mean((1, 2))
    blocks = values.reshape(len(values), 8, SIDE // 8, 8, SIDE // 8, 3).mean((2, 4))
    return found, blocks.reshape(len(values), -1)


def smallest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> tuple[float, str]:
    """The Kolmogorov-Smirnov p value that speaks most against one law."""
    return min((stats.ks_2samp(one[name], other[name]).pvalue, name) for name in one)


def mmd_p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Permutation test of the maximum mean discrepancy, RBF kernel at the median distance."""
    generator = np.random.default_rng(0)
    chosen = [generator.choice(len(x), THUMBNAILS, replace=False) for x in (one, other)]
    both = np.concatenate([one[chosen[0]], other[chosen[1]]])
    squares = (both**2).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0)
    kernel = np.exp(-distances / np.median(distances))
    signs = np.repeat([1.0, -1.0], THUMBNAILS)
    trials = [signs, *(generator.permutation(signs) for _ in range(PERMUTATIONS))]
    discrepancies = [float(s @ kernel @ s) for s in trials]
    return float(np.mean(np.array(discrepancies) >= discrepancies[0]))


@pytest.fixture(scope="module")
def reference(images: list[Image.Image]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The official stream."""
    return stream(images, official(their_crop(), their_jitter()), seed=0)


@pytest.mark.slow
def test_our_stream_is_the_official_one(images, reference):
    found, thumbnails = stream(images, ours, seed=1)
    assert len(thumbnails) == IMAGES * VIEWS
    p_value, name = smallest(reference[0], found)
    assert p_value > ALPHA, (p_value, name)
    assert mmd_p_value(reference[1], thumbnails) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("short_cut", ["hue in YIQ", "resize without antialiasing"])
def test_the_comparison_notices_a_short_cut(images, reference, short_cut):
    wrong = {
        "hue in YIQ": lambda: official(their_crop(), turned_in_yiq),
        "resize without antialiasing": lambda: official(SharpCrop(), their_jitter()),
    }[short_cut]()
    found, _ = stream(images, wrong, seed=2)
    p_value, name = smallest(reference[0], found)
    assert p_value < ALPHA / 10, (p_value, name)
