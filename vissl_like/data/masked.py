"""Images with a mask of class numbers: random crops of both to train on, and whole images to be scored on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.decode import decode_file, read_header
from vissl_like.data.readers.masks import VOID, read_mask
from vissl_like.data.transforms.parameters import sample_generator
from vissl_like.data.transforms.pixels import RESAMPLING, to_array
from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError

MOST_UNREADABLE = 100
"""Training images in a row that may be unreadable."""


@dataclass(frozen=True)
class MaskedImages:
    """N images and their masks.

    Attributes:
        images, masks: N files each.
        channels: of the images as they are wanted, 3 or 1.
    """

    images: list[str]
    masks: list[str]
    channels: int

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An image and its mask ``[H, W]`` uint8.

        Raises:
            UnreadableImage: the image cannot be read.
            UserError: the mask cannot, or is of another size.
        """
        image = decode_file(self.images[index], self.channels)
        mask = read_mask(self.masks[index])
        if mask.shape != (image.height, image.width):
            raise UserError(_other_size(self.masks[index], mask, image.size))
        return image, mask

    def check(self, index: int, num_classes: int) -> None:
        """Looks at a mask, without decoding the image.

        Args:
            index: of the image.
            num_classes: C; numbers from C on, other than 255, belong to no class.

        Raises:
            UserError: the mask cannot be read, is of another size than the image, or has a number without a class.
        """
        mask = read_mask(self.masks[index])
        largest = max((int(value) for value in np.unique(mask) if value != VOID), default=0)
        if largest >= num_classes:
            raise UserError(
                f"the mask {self.masks[index]!r} has the class {largest}, and there are only {num_classes - 1} besides "
                "the background 0. Name all of them, in the order of their numbers, as EVALUATION.classes; 255 is for "
                "pixels that do not count."
            )
        try:
            _, size = read_header(self.images[index])
        except UnreadableImage:
            return  # said where it is read
        if sorted(size) != sorted(mask.shape):  # the header does not know of a rotation that is still to be made
            raise UserError(_other_size(self.masks[index], mask, size))


@dataclass(frozen=True)
class Crops:
    """How a square is cut out of an image for training.

    Attributes:
        size: side of the square, in pixels.
        resize: shorter side that every image is brought to first; None leaves images as they are.
        scale: smallest and largest factor on that size, drawn evenly.
        flip: probability of a left-right flip.
        fill: one value per channel, 0..255, where the square is larger than the image; the mask is void there.
    """

    size: int
    resize: int | None
    scale: tuple[float, float]
    flip: float
    fill: tuple[int, ...]

    def __call__(self, image: Image.Image, mask: np.ndarray, draw: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """uint8 ``[C, size, size]`` and ``[size, size]`` of an image and its mask ``[H, W]``."""
        image, mask = resized(image, mask, factor_to(image, self.resize) * draw.uniform(*self.scale))
        left = draw.randint(0, max(0, image.width - self.size))
        top = draw.randint(0, max(0, image.height - self.size))
        right, bottom = min(left + self.size, image.width), min(top + self.size, image.height)
        pixels = np.empty((len(self.fill), self.size, self.size), dtype=np.uint8)
        pixels[:] = np.array(self.fill, dtype=np.uint8)[:, None, None]
        numbers = np.full((self.size, self.size), VOID, dtype=np.uint8)
        pixels[:, : bottom - top, : right - left] = to_array(image.crop((left, top, right, bottom)))
        numbers[: bottom - top, : right - left] = mask[top:bottom, left:right]
        if draw.random() < self.flip:
            pixels, numbers = np.ascontiguousarray(pixels[:, :, ::-1]), np.ascontiguousarray(numbers[:, ::-1])
        return pixels, numbers


@dataclass(frozen=True)
class CropBatches:
    """This process's part of the batch of each step: a function of the seed and the step.

    The images come in a new random order each epoch; a batch may span two. An image that cannot be read is replaced by
    the next readable one in ``order``, cut with what was drawn for the image asked for.

    Attributes:
        images: to learn from.
        order: positions of those that are used.
        crops: see ``Crops``.
        batch_size: images per step of all processes together.
        seed: of the order and the crops.
        rank, world_size: of this process; it takes images ``rank``, ``rank + world_size``, ... of the batch.
    """

    images: MaskedImages
    order: tuple[int, ...]
    crops: Crops
    batch_size: int
    seed: int
    rank: int
    world_size: int

    def __getitem__(self, step: int) -> CropBatch:
        """The batch of a step."""
        views, masks, skipped = [], [], list[Skipped]()
        for place in range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size):
            epoch, position = divmod(place, len(self.order))
            row = int(_permutation(len(self.order), self.seed, epoch)[position])
            try:
                image, mask = self._readable(row, skipped)
            except UserError as error:
                return CropBatch(torch.empty(0), torch.empty(0), str(error))
            view, numbers = self.crops(image, mask, sample_generator(self.seed, epoch, self.order[row]))
            views.append(view)
            masks.append(numbers)
        return CropBatch(torch.from_numpy(np.stack(views)), torch.from_numpy(np.stack(masks)), skipped=skipped)

    def _readable(self, row: int, skipped: list[Skipped]) -> tuple[Image.Image, np.ndarray]:
        """The image at a place of ``order``, or the next that can be read; the others are added to ``skipped``."""
        tried = min(len(self.order), MOST_UNREADABLE)
        for step in range(tried):
            try:
                return self.images.read(self.order[(row + step) % len(self.order)])
            except UnreadableImage as error:
                skipped.append(Skipped(error.path, error.reason))
        last = skipped[-1]
        raise UserError(f"{tried} training images in a row cannot be read, the last is {last.path}: {last.reason}")


@dataclass(frozen=True)
class CropBatch:
    """Crops ``[b, C, size, size]`` and masks ``[b, size, size]``, uint8; or what kept it from being made.

    ``skipped`` names images that could not be read and were replaced.
    """

    images: Tensor
    masks: Tensor
    problem: str | None = None
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class WholeImages:
    """Images to be scored on, one at a time.

    Attributes:
        images: all of them.
        resize: shorter side that the network is to see, in pixels; None leaves images as they are.
    """

    images: MaskedImages
    resize: int | None

    def __getitem__(self, index: int) -> WholeImage:
        """The image of a position."""
        try:
            image, mask = self.images.read(index)
        except UnreadableImage as error:
            return WholeImage(torch.empty(0), torch.empty(0), skipped=Skipped(error.path, error.reason))
        except UserError as error:
            return WholeImage(torch.empty(0), torch.empty(0), problem=str(error))
        factor = factor_to(image, self.resize)
        if factor != 1:
            image = image.resize(_size(image, factor), RESAMPLING["bilinear"])
        return WholeImage(torch.from_numpy(to_array(image)), torch.from_numpy(mask))


@dataclass(frozen=True)
class WholeImage:
    """An image ``[C, h, w]`` as the network sees it and its mask ``[H, W]`` in its own size; or why there is none."""

    image: Tensor
    mask: Tensor
    skipped: Skipped | None = None
    problem: str | None = None


def factor_to(image: Image.Image, shorter: int | None) -> float:
    """What brings an image's shorter side to so many pixels; 1 for None."""
    return 1.0 if shorter is None else shorter / min(image.size)


def resized(image: Image.Image, mask: np.ndarray, factor: float) -> tuple[Image.Image, np.ndarray]:
    """Both made larger or smaller: the image bilinearly with antialiasing, of the mask the nearest number."""
    size = _size(image, factor)
    if size == image.size:
        return image, mask
    smaller = Image.fromarray(np.ascontiguousarray(mask)).resize(size, Image.Resampling.NEAREST)
    return image.resize(size, RESAMPLING["bilinear"]), np.array(smaller, dtype=np.uint8)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(size)


def _size(image: Image.Image, factor: float) -> tuple[int, int]:
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def _other_size(file: str, mask: np.ndarray, size: tuple[int, int]) -> str:
    return (
        f"the mask {file!r} has {mask.shape[1]} x {mask.shape[0]} pixels and its image {size[0]} x {size[1]} (width x "
        "height); they must be of one size"
    )
