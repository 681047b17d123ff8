"""Augmentation of training with labels: one random crop, and the stronger kind that vision transformers are given."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vissl_like.data.samplers.base import Key
from vissl_like.data.transforms.multi_crop import MultiCrop
from vissl_like.data.transforms.pixels import RESAMPLING, crop_and_resize, to_array
from vissl_like.utils.errors import UserError

_PARTS = {"erase": 1, "mix": 2}


def random_crop(
    channels: int, size: int, scale: list[float], flip: float, interpolation: Literal["bilinear", "bicubic"]
) -> MultiCrop:
    """One random crop, brought to a square and mirrored by chance; colours stay.

    Args:
        channels: of the images.
        size: side of the square, in pixels.
        scale: smallest and largest share of the image's area, in (0, 1].
        flip: probability of mirroring left-right.
        interpolation: filter of the resizing.
    """
    return MultiCrop(channels, **_crop_options(size, scale, flip, interpolation))


class RandAugmentCrop(MultiCrop):
    """The random crop followed by RandAugment (Cubuk et al. 2020) as the timm package does it.

    Args:
        channels, size, scale, flip, interpolation: see ``random_crop``.
        policy: text in timm's language, such as ``rand-m9-mstd0.5-inc1``.
        mean: per channel in 0..1: the colour of what comes in from outside of the image.

    Raises:
        UserError: timm is not there, or does not understand the policy.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        scale: list[float],
        flip: float,
        interpolation: Literal["bilinear", "bicubic"],
        policy: str,
        mean: tuple[float, ...],
    ):
        super().__init__(channels, **_crop_options(size, scale, flip, interpolation))
        make = _timm("auto_augment").rand_augment_transform
        colour = tuple(min(255, round(255 * value)) for value in (mean if channels == 3 else 3 * tuple(mean)))
        hints = {"translate_const": int(size * 0.45), "img_mean": colour, "interpolation": RESAMPLING[interpolation]}
        try:
            self.augment = make(policy, hints)
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(
                f"EVALUATION.rand_augment is {policy!r}, which timm does not understand ({error}); an example is "
                "rand-m9-mstd0.5-inc1"
            ) from error

    def __call__(self, image: Image.Image, generator: random.Random) -> list[np.ndarray]:
        """The view of an image of mode L or RGB; grey ones are augmented as colour ones and made grey again."""
        (view,) = self.draw(*image.size, generator)
        cropped = crop_and_resize(image, view)
        if view.flip:
            cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        with seeded(generator.getrandbits(64)):
            augmented = self.augment(cropped.convert("RGB"))
        return [to_array(augmented if image.mode == "RGB" else augmented.convert("L"))]


class Mixing:
    """Random erasing (Zhong et al. 2020), then mixup and CutMix, as the timm package does them; a ``Finish``.

    What is erased is a function of seed and key of an image; what is mixed, of seed, step and process: images of a
    process's own share of the batch are mixed with each other.

    Args:
        classes: C.
        mixup, cutmix: alpha of each, 0 for none; where there are both, each batch gets either, by chance.
        smoothing: of labels.
        erasing: probability that a rectangle of an image becomes noise.
        seed, rank: see above.

    Raises:
        UserError: timm is not there.
    """

    def __init__(
        self, classes: int, *, mixup: float, cutmix: float, smoothing: float, erasing: float, seed: int, rank: int
    ):
        self.seed, self.rank = seed, rank
        self.erase = self.mix = None
        if erasing > 0:
            made = _timm("random_erasing").RandomErasing
            self.erase = made(probability=erasing, mode="pixel", max_count=1, device="cpu")
        if mixup > 0 or cutmix > 0:
            made = _timm("mixup").Mixup
            self.mix = made(
                mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=classes, mode="batch"
            )

    def __call__(self, images: Tensor, labels: Tensor, step: int, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Images ``[b, C, S, S]``, changed in place, and labels ``[b]``, or soft ones ``[b, classes]`` if mixed."""
        if self.erase is not None:
            for image, key in zip(images, keys, strict=True):
                with seeded(_PARTS["erase"], self.seed, *key):
                    self.erase(image)
        if self.mix is not None:
            with seeded(_PARTS["mix"], self.seed, step, self.rank):
                images, labels = self.mix(images, labels)
        return images, labels


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """The global generators of Python, numpy and torch (CPU) seeded inside, and as they were afterwards."""
    python, numbers, tensors = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    words = np.random.SeedSequence(list(key)).generate_state(4)
    random.seed(int.from_bytes(words.tobytes(), "little"))
    np.random.seed(words)
    torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.random.set_rng_state(tensors)


def _crop_options(size: int, scale: list[float], flip: float, interpolation: str) -> dict[str, Any]:
    views = [{"count": 1, "size": size, "scale": list(scale)}]
    plain = {"jitter": None, "grayscale": 0.0, "blur": None, "solarize": 0.0}
    return {"views": views, "flip": flip, "interpolation": interpolation, **plain}


def _timm(module: str) -> Any:
    try:
        from timm.data import auto_augment, mixup, random_erasing
    except ImportError as error:
        raise UserError(
            f"RandAugment, random erasing, mixup and CutMix need the timm package ({error}): pip install "
            '"vissl_like[timm]", or leave them out (EVALUATION.rand_augment: null, the others 0)'
        ) from error
    return {"auto_augment": auto_augment, "mixup": mixup, "random_erasing": random_erasing}[module]
