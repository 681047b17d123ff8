"""Images in a numpy array."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from vissl_like.data.numpy_file import read_numpy
from vissl_like.data.sources import ArrayImages, existing_path
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError, nearest
from vissl_like.utils.kinds import Count

_CHANNEL_COUNTS = (1, 3, 4)


@DATASETS.register("array")
class NumpyImages(ArrayImages):
    """Images in a numpy file: uint8 ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` with 1, 3 or 4 channels.

    A ``.npy`` file is mapped from disk, not read; the arrays of an ``.npz`` file are read into memory.

    Options:
        path: the ``.npy`` or ``.npz`` file.
        key: name of the images in an ``.npz`` file; null for the only array of three or four dimensions.
        labels_path: class numbers ``[N]``: a ``.npy`` file, or the name of an array in the ``.npz``; null for none.
        layout: ``hwc`` or ``chw`` for the order of the dimensions of one image; ``auto`` tells by which is 1, 3 or 4.
        channels: 3 for colour, 1 for grey; every image is converted.
        mean: one value per channel in 0..1; null for ImageNet's (colour) or 0.5 (grey).
        std: one value per channel in 0..1; null for ImageNet's (colour) or 0.25 (grey).
        limit: use this many images, evenly spread over all and always the same ones; null for all.
        cache: ``ram`` keeps converted images in memory, up to 2 GiB in every process; ``none`` converts each time.

    Raises:
        UserError: no such file; not uint8 images in one of these shapes; a layout that cannot be told; labels that are
            not one whole number per image.
    """

    def __init__(
        self,
        *,
        path: str,
        key: str | None = None,
        labels_path: str | None = None,
        layout: Literal["auto", "hwc", "chw"] = "auto",
        channels: Literal[1, 3] = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        limit: Count | None = None,
        cache: Literal["none", "ram"] = "none",
    ):
        self.file = existing_path(path)
        opened = _open(self.file)
        if isinstance(opened, dict):
            self.key = _image_key(self.file, opened, key)
            images = opened[self.key]
        else:
            if key is not None:
                raise UserError(f"key is {key!r}, but {path!r} holds a single array without a name; leave 'key' out")
            self.key, images = "", opened
        super().__init__(
            f"{self.file}:{self.key}" if self.key else self.file,
            images,
            _channels_first(self.file, images, layout),
            _labels(opened, labels_path),
            None,
            channels=channels,
            mean=mean,
            std=std,
            limit=limit,
            cache=cache,
        )

    def open_array(self) -> np.ndarray:
        opened = _open(self.file)
        return opened[self.key] if isinstance(opened, dict) else opened


def _open(file: str) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a ``.npy`` file, mapped, or those of an ``.npz`` file by name."""
    try:
        return read_numpy(file)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{file!r} cannot be read as a numpy file (.npy or .npz without pickled objects): {error}"
        ) from error


def _image_key(file: str, arrays: dict[str, np.ndarray], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in arrays:
            raise UserError(
                f"there is no array {wanted!r} in {file!r}.{nearest(wanted, arrays)} It holds: {_shapes(arrays)}."
            )
        return wanted
    candidates = [name for name, values in arrays.items() if values.ndim in (3, 4)]
    if len(candidates) != 1:
        raise UserError(
            f"{file!r} holds {len(candidates)} arrays of three or four dimensions; set 'key' to the one that is the "
            f"images. It holds: {_shapes(arrays)}."
        )
    return candidates[0]


def _shapes(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {values.dtype} {list(values.shape)}" for name, values in arrays.items()) or "nothing"


def _channels_first(file: str, images: np.ndarray, layout: str) -> bool:
    """Whether ``images`` is ``[N, C, H, W]``; checks that it is images at all."""
    shape = list(images.shape)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in shape:
        raise UserError(
            f"{file!r} is {images.dtype} of shape {shape}; images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] "
            "with C in 1, 3, 4. Convert other values to 0..255 first."
        )
    if images.ndim == 3:
        return False
    first, last = shape[1] in _CHANNEL_COUNTS, shape[3] in _CHANNEL_COUNTS
    if layout == "auto" and first == last:
        why = "both" if first else "neither"
        raise UserError(
            f"{file!r} has the shape {shape}: {why} of dimension 1 and 3 can be 1, 3 or 4 channels. "
            + ("Set 'layout' to 'hwc' or 'chw'." if first else "")
        )
    channels_first = layout == "chw" or (layout == "auto" and first)
    if not (first if channels_first else last):
        raise UserError(f"{file!r} has the shape {shape}, which has not 1, 3 or 4 channels in the layout {layout!r}")
    return channels_first


def _labels(opened: np.ndarray | dict[str, np.ndarray], labels_path: str | None) -> np.ndarray | None:
    if labels_path is None:
        return None
    if isinstance(opened, dict) and labels_path in opened:
        labels = opened[labels_path]
    else:
        if isinstance(opened, dict) and not os.path.splitext(labels_path)[1]:
            raise UserError(
                f"labels_path is {labels_path!r}, which is no array of the .npz file.{nearest(labels_path, opened)} "
                f"It holds: {_shapes(opened)}."
            )
        read = _open(existing_path(labels_path))
        if isinstance(read, dict):
            raise UserError(
                f"labels_path is {labels_path!r}; labels are a .npy file, or an array of the images' own .npz file"
            )
        labels = read
    if labels.dtype.kind not in "iu":
        raise UserError(f"the labels {labels_path!r} are {labels.dtype}; they must be whole numbers")
    return labels
