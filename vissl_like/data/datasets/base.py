"""What a dataset of images offers to the rest of the program; plain Python, numpy and PIL, picklable, no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError

DEFAULT_MEAN = {3: (0.485, 0.456, 0.406), 1: (0.5,)}
DEFAULT_STD = {3: (0.229, 0.224, 0.225), 1: (0.25,)}
"""By number of channels: ImageNet's for colour, neutral values for grey."""

MAX_PIXELS = 178_956_970
"""Width times height above which a picture is taken for a decompression bomb (about 13,400 x 13,400)."""

SAMPLED_HEADERS = 200


class UnreadableImage(Exception):
    """An image that cannot be decoded: ``path`` says which, ``reason`` why."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ImageDataset(ABC):
    """N images addressed by 0 .. N-1, with or without labels.

    A subclass gives ``__len__``, ``read`` and ``path``, and may set ``labels``, ``classes`` and ``skipped``. It is
    copied to worker processes, so everything it holds must be picklable.

    Attributes:
        channels: 3 (images of mode RGB) or 1 (mode L).
        mean, std: one value per channel, in units of the 0..1 range.
        labels: ``[N]`` int64 class numbers, or None; training never needs them.
        classes: name of class 0, 1, ...; None where there are no labels or no names.
        skipped: files left out when the dataset was opened, with the reason.
        thread_safe: whether several threads may call ``read`` and ``read_pixels`` at a time; a subclass says so.

    Raises:
        UserError: channels, mean and std do not fit together.
    """

    labels: np.ndarray | None = None
    classes: list[str] | None = None
    thread_safe = False

    def __init__(self, *, channels: int = 3, mean: list[float] | None = None, std: list[float] | None = None):
        if channels not in DEFAULT_MEAN:
            raise UserError(f"channels is {channels!r}; it must be 3 (colour) or 1 (grey)")
        self.channels = channels
        self.mean = _per_channel("mean", mean, DEFAULT_MEAN[channels], low_open=False)
        self.std = _per_channel("std", std, DEFAULT_STD[channels], low_open=True)
        self.skipped: list[Skipped] = []

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The decoded image, mode RGB or L according to ``channels``; the caller must not change it in place.

        Raises:
            UnreadableImage: it cannot be decoded.
        """

    def read_pixels(self, index: int) -> np.ndarray:
        """The decoded image as C-contiguous uint8 ``[H, W, 3]``, or ``[H, W]`` with one channel. Not to be changed.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        return np.asarray(self.read(index))

    @abstractmethod
    def path(self, index: int) -> str:
        """Where image ``index`` lives, for messages and reports."""

    def source_file(self, index: int) -> str:
        """The file that image ``index`` comes from, whose change may change it; its path where that is a file."""
        return self.path(index)

    def header(self, index: int) -> tuple[str, tuple[int, int]]:
        """Format name and (width, height) of the stored image; cheaper than ``read`` where the source allows it.

        Raises:
            UnreadableImage: it cannot be opened.
        """
        return "image", self.read(index).size

    def describe(self) -> dict[str, Any]:
        """Facts for the start banner and the report.

        Returns:
            ``images`` (N), ``channels``, ``labels`` ("none" or "<K> classes"), ``class_counts`` ({name: images} or
            None), ``formats`` ({name: images}), ``width`` and ``height`` (smallest, 25 %, median, 75 %, largest, in
            pixels) and ``unreadable_headers``, these last over ``headers_sampled`` evenly spread headers (at most 200);
            ``first_paths`` (up to three), ``skipped`` (number of files left out on opening), ``skipped_files`` (first
            ten).
        """
        sizes: list[tuple[int, int]] = []
        formats: Counter[str] = Counter()
        positions = evenly_spread(len(self), SAMPLED_HEADERS)
        for index in positions:
            try:
                name, size = self.header(int(index))
            except UnreadableImage:
                continue
            formats[name] += 1
            sizes.append(size)
        quantiles = np.quantile(np.array(sizes), [0, 0.25, 0.5, 0.75, 1], axis=0).round() if sizes else None
        return {
            "images": len(self),
            "channels": self.channels,
            "labels": "none" if self.labels is None else f"{_num_classes(self)} classes",
            "class_counts": _class_counts(self),
            "formats": dict(formats.most_common()),
            "width": None if quantiles is None else quantiles[:, 0].astype(int).tolist(),
            "height": None if quantiles is None else quantiles[:, 1].astype(int).tolist(),
            "headers_sampled": len(positions),
            "unreadable_headers": len(positions) - len(sizes),
            "first_paths": [self.path(index) for index in range(min(3, len(self)))],
            "skipped": len(self.skipped),
            "skipped_files": [f"{item.path}: {item.reason}" for item in self.skipped[:10]],
        }


def evenly_spread(total: int, wanted: int) -> np.ndarray:
    """``min(total, wanted)`` ascending positions in 0 .. total-1, one from each of as many equal stretches.

    The place inside its stretch is pseudo-random but always the same: a fixed stride would meet periodic data (labels
    0, 1, ..., 9, 0, 1, ...) at one class only.
    """
    if wanted >= total:
        return np.arange(total)
    edges = np.arange(wanted + 1, dtype=np.int64) * total // wanted
    return edges[:-1] + (np.random.Generator(np.random.PCG64(0)).random(wanted) * np.diff(edges)).astype(np.int64)


def _per_channel(name: str, given: list[float] | None, default: tuple[float, ...], low_open: bool) -> tuple[float, ...]:
    values = default if given is None else tuple(float(value) for value in given)
    if len(values) != len(default):
        raise UserError(f"{name} has {len(values)} values for {len(default)} channel(s): {list(values)}")
    if not all((value > 0 if low_open else value >= 0) and value <= 1 for value in values):
        raise UserError(
            f"{name} is {list(values)}; each value must be {'above' if low_open else 'at least'} 0 and at most 1, in "
            "units of the 0..1 range of pixels. Divide values meant for 0..255 by 255."
        )
    return values


def _num_classes(dataset: ImageDataset) -> int:
    assert dataset.labels is not None
    return len(dataset.classes) if dataset.classes is not None else len(np.unique(dataset.labels))


def _class_counts(dataset: ImageDataset) -> dict[str, int] | None:
    if dataset.labels is None:
        return None
    numbers, counts = np.unique(dataset.labels, return_counts=True)
    names = dataset.classes
    return {
        names[number] if names is not None and 0 <= number < len(names) else str(number): count
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    }
