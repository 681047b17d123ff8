"""MNIST-style IDX files."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from typing import Literal

import numpy as np

from vissl_like.data.sources import ArrayImages, existing_path
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count

_UNSIGNED_BYTES = 0x08
_PREFIXES = {"train": "train", "test": "t10k"}
_FOLDERS = ("", "raw")


@DATASETS.register("idx")
class IdxImages(ArrayImages):
    """MNIST-style IDX files (MNIST, Fashion-MNIST, EMNIST, ...), plain or ``.gz``.

    Options:
        path: a folder with ``train-images...``, ``train-labels...``, ``t10k-images...``, ``t10k-labels...`` (or with
            these in ``raw``), or one file of images.
        split: ``train`` or ``test`` (the ``t10k`` files); null for train. Only for a folder.
        labels: ``auto`` for the file of labels beside the images, if there is one; ``none`` to leave it.
        channels: 3 for colour (grey repeated), 1 for grey.
        mean: one value per channel in 0..1; null for ImageNet's (colour) or 0.5 (grey).
        std: one value per channel in 0..1; null for ImageNet's (colour) or 0.25 (grey).
        limit: use this many images, evenly spread over all and always the same ones; null for all.
        cache: ``ram`` keeps converted images in memory, up to 2 GiB in every process; ``none`` converts each time.

    Raises:
        UserError: no such file or folder; no images in the folder; not an IDX file, or a damaged one; labels of another
            number than the images; ``split`` beside a file.
    """

    def __init__(
        self,
        *,
        path: str,
        split: Literal["train", "test"] | None = None,
        labels: Literal["auto", "none"] = "auto",
        channels: Literal[1, 3] = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        limit: Count | None = None,
        cache: Literal["none", "ram"] = "none",
    ):
        self.file = _images_file(path, split)
        images = read_idx(self.file)
        if images.ndim != 3:
            raise UserError(f"{self.file!r} holds an array of shape {list(images.shape)}; images are [N, H, W]")
        labels_file = labels_beside(self.file) if labels == "auto" else None
        super().__init__(
            self.file,
            images,
            False,
            None if labels_file is None else read_idx(labels_file),
            None,
            channels=channels,
            mean=mean,
            std=std,
            limit=limit,
            cache=cache,
        )

    def open_array(self) -> np.ndarray:
        return read_idx(self.file)


def read_idx(file: str) -> np.ndarray:
    """The array of an IDX file of unsigned bytes: mapped from disk, or read into memory where it is compressed.

    Raises:
        UserError: it is not an IDX file of unsigned bytes, or is cut off.
    """
    packed = file.endswith(".gz")
    try:
        with gzip.open(file) if packed else open(file, "rb") as stream:
            zero, kind, dims = struct.unpack(">HBB", stream.read(4))
            if zero != 0 or kind != _UNSIGNED_BYTES or not 1 <= dims <= 4:
                raise ValueError(
                    f"it begins with {zero:#06x} {kind:#04x} {dims:#04x}, not 0x0000 0x08 and 1 to 4 dimensions"
                )
            shape = struct.unpack(f">{dims}I", stream.read(4 * dims))
            size, begin = math.prod(shape), 4 + 4 * dims
            if not size:
                raise ValueError(f"it is empty: its shape is {list(shape)}")
            # At most one byte more than is wanted, lest a small compressed file fills the memory.
            held = np.frombuffer(stream.read(size + 1), np.uint8) if packed else None
            if (len(held) if held is not None else os.path.getsize(file) - begin) != size:
                raise ValueError(f"it does not hold the {size} bytes that its shape {list(shape)} takes")
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise UserError(f"{file!r} is not an IDX file of unsigned bytes, or is damaged: {error}") from error
    if held is not None:
        return held.reshape(shape)
    return np.asarray(np.memmap(file, np.uint8, "r", offset=begin, shape=shape))


def images_in(folder: str, prefix: str) -> str | None:
    """The file of images that begins with ``prefix`` in a folder or in ``raw`` below it; None if there is none."""
    for below in _FOLDERS:
        place = os.path.join(folder, below)
        if os.path.isdir(place):
            for name in sorted(os.listdir(place)):
                if re.fullmatch(rf"{prefix}-images[-.]idx3-ubyte(\.gz)?", name):
                    return os.path.join(place, name)
    return None


def holds_idx(folder: str) -> bool:
    """Whether a folder has images in IDX files under their usual names."""
    return any(images_in(folder, prefix) is not None for prefix in _PREFIXES.values())


def labels_beside(images: str) -> str | None:
    """The file of labels that belongs to a file of images; None if there is none, or no telling."""
    folder, name = os.path.split(images)
    plain = name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    if plain == name.removesuffix(".gz"):
        return None
    candidates = (os.path.join(folder, plain + ending) for ending in ("", ".gz"))
    return next((file for file in candidates if os.path.isfile(file)), None)


def _images_file(path: str, split: str | None) -> str:
    place = existing_path(path)
    if not os.path.isdir(place):
        if split is not None:
            raise UserError(f"split is {split!r}, but {path!r} is a file; give its folder, or leave 'split' out")
        return place
    if split not in (None, *_PREFIXES):
        raise UserError(f"split is {split!r}; it can be 'train' or 'test'")
    prefix = _PREFIXES[split or "train"]
    found = images_in(place, prefix)
    if found is None:
        raise UserError(f"there is no {prefix}-images-idx3-ubyte[.gz] in {path!r}, nor in 'raw' below it")
    return found
