"""What the built-in datasets share: a part of a source chosen, decoded images kept, files and arrays made images."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vissl_like.data.cache import DecodedImages
from vissl_like.data.datasets.base import MAX_PIXELS, ImageDataset, UnreadableImage, evenly_spread
from vissl_like.data.decode import EXTENSIONS, decode_file, file_pixels, read_header, to_channels
from vissl_like.data.index import PathIndex
from vissl_like.utils.errors import UserError, nearest

ACCEPTED = (
    f"a folder of images ({', '.join(EXTENSIONS)}; class folders optional), a list of paths (.txt, .csv with a column "
    "'path', .npy of text), an array of images (.npy or .npz, uint8), MNIST-style IDX files, or archives of "
    "images (.tar)"
)
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Names of tar archives; the compressed ones are known only to say that they must be unpacked."""

_CHECKED_HEADERS = 32


def existing_path(path: str) -> str:
    """The absolute form of a path that a user gave; ``~`` is the home folder.

    Raises:
        UserError: nothing is there; the message names the first missing part, and the entry beside it most like it.
    """
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if place.exists():
        return str(place)
    missing = next(part for part in reversed([place, *place.parents]) if not part.exists())
    try:
        beside = os.listdir(missing.parent)
    except OSError:
        beside = []
    raise UserError(
        f"the path {path!r} does not exist: there is no {missing.name!r} in {str(missing.parent)!r}."
        f"{nearest(missing.name, beside)} Relative paths count from {os.getcwd()!r}."
    )


class StoredImages(ImageDataset):
    """A dataset over ``count`` stored images, addressed by position; ``limit`` makes the dataset a part of them.

    A subclass gives ``load``, ``name_of`` and, where a header can be read without the pixels, ``header_of``; where
    pixels come faster without PIL, also ``load_pixels``.

    Args:
        count: images stored.
        labels: ``[count]`` class numbers, or None.
        classes: names of the classes, or None.
        channels, mean, std: as in ``ImageDataset``.
        limit: use this many of them, evenly spread over all and always the same ones; None for all.
        cache: ``none``, or ``ram`` to keep decoded images in the memory of each process.
    """

    def __init__(
        self,
        count: int,
        labels: np.ndarray | None,
        classes: list[str] | None,
        *,
        channels: int,
        mean: list[float] | None,
        std: list[float] | None,
        limit: int | None,
        cache: str,
    ):
        super().__init__(channels=channels, mean=mean, std=std)
        if limit is not None and limit < 1:
            raise UserError(f"limit is {limit}; it must be at least 1, or null for all images")
        if cache not in ("none", "ram"):
            raise UserError(f"cache is {cache!r}; it can be 'none' or 'ram'")
        self._count = count if limit is None else min(limit, count)
        self._positions = evenly_spread(count, self._count) if self._count < count else None
        if labels is not None:
            chosen = labels if self._positions is None else labels[self._positions]
            self.labels = np.ascontiguousarray(chosen, dtype=np.int64)
        self.classes = classes
        self._decoded = DecodedImages() if cache == "ram" else None

    @abstractmethod
    def load(self, position: int) -> Image.Image:
        """Decodes a stored image.

        Raises:
            UnreadableImage: it cannot be decoded.
        """

    def load_pixels(self, position: int) -> np.ndarray:
        """What ``load`` gives, as C-contiguous uint8 ``[H, W]`` or ``[H, W, 3]``."""
        return np.asarray(self.load(position))

    @abstractmethod
    def name_of(self, position: int) -> str:
        """Where a stored image lives."""

    def header_of(self, position: int) -> tuple[str, tuple[int, int]]:
        """Format and (width, height) of a stored image."""
        return "image", self.load(position).size

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Image.Image:
        position = self._position(index)
        if self._decoded is None:
            return self.load(position)
        return Image.fromarray(self._decoded.get(position, self.load_pixels))

    def read_pixels(self, index: int) -> np.ndarray:
        """See ``ImageDataset``."""
        position = self._position(index)
        return self.load_pixels(position) if self._decoded is None else self._decoded.get(position, self.load_pixels)

    def path(self, index: int) -> str:
        return self.name_of(self._position(index))

    def header(self, index: int) -> tuple[str, tuple[int, int]]:
        return self.header_of(self._position(index))

    def require_an_image(self) -> None:
        """Looks at up to 32 evenly spread headers until one is good.

        Raises:
            UserError: none of them is.
        """
        failures = []
        for index in evenly_spread(len(self), _CHECKED_HEADERS):
            try:
                self.header(int(index))
                return
            except UnreadableImage as error:
                failures.append(str(error))
        raise UserError(
            f"none of the {len(failures)} files tried (of {len(self)}) can be read as an image:\n"
            + "\n".join(f"  {failure}" for failure in failures[:5])
        )

    def _position(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        return int(index) if self._positions is None else int(self._positions[index])


class FileImages(StoredImages):
    """Image files listed in a path index.

    Args:
        paths: relative to ``root``, or absolute.
        root: what they are relative to.
        max_pixels: largest width times height accepted.
        options: as in ``StoredImages``.

    Raises:
        UserError: none of 32 evenly spread files can be opened as an image.
    """

    thread_safe = True

    def __init__(
        self,
        paths: PathIndex,
        root: str,
        labels: np.ndarray | None,
        classes: list[str] | None,
        *,
        max_pixels: int = MAX_PIXELS,
        **options: Any,
    ):
        super().__init__(len(paths), labels, classes, **options)
        self.paths, self.root, self.max_pixels = paths, root, max_pixels
        self.require_an_image()

    def load(self, position: int) -> Image.Image:
        return decode_file(self.name_of(position), self.channels, self.max_pixels)

    def load_pixels(self, position: int) -> np.ndarray:
        """See ``StoredImages``."""
        return file_pixels(self.name_of(position), self.channels, self.max_pixels)

    def name_of(self, position: int) -> str:
        return os.path.join(self.root, self.paths[position])

    def header_of(self, position: int) -> tuple[str, tuple[int, int]]:
        return read_header(self.name_of(position), self.max_pixels)


class ArrayImages(StoredImages):
    """Images that lie in one array ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` of uint8 values, C in {1, 3, 4}.

    The array is not copied to workers: they open the source again. A subclass gives ``open_array``.

    Args:
        source: file that holds the array; images are called ``source[position]``.
        channels_first: whether a four-dimensional array is ``[N, C, H, W]``.
        array: the opened array.
        options: as in ``StoredImages``.
    """

    thread_safe = True

    def __init__(
        self,
        source: str,
        array: np.ndarray,
        channels_first: bool,
        labels: np.ndarray | None,
        classes: list[str] | None,
        **options: Any,
    ):
        if labels is not None and labels.shape != (len(array),):
            raise UserError(f"{source!r} holds {len(array)} images, but the labels have the shape {list(labels.shape)}")
        super().__init__(len(array), labels, classes, **options)
        self.source, self.channels_first = source, channels_first
        self._array: np.ndarray | None = array

    @abstractmethod
    def open_array(self) -> np.ndarray:
        """Opens the array again, in another process."""

    def load(self, position: int) -> Image.Image:
        return to_channels(Image.fromarray(self._stored(position)), self.channels)

    def load_pixels(self, position: int) -> np.ndarray:
        """See ``StoredImages``."""
        pixels = self._stored(position)
        fits = pixels.shape[2:] == ((3,) if self.channels == 3 else ())
        return pixels if fits else np.asarray(to_channels(Image.fromarray(pixels), self.channels))

    def _stored(self, position: int) -> np.ndarray:
        """``[H, W]`` or ``[H, W, C]``, C-contiguous."""
        pixels = self._opened()[position]
        if pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0) if self.channels_first else pixels
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        return np.ascontiguousarray(pixels)

    def name_of(self, position: int) -> str:
        return f"{self.source}[{position}]"

    def header_of(self, position: int) -> tuple[str, tuple[int, int]]:
        shape = self._opened().shape
        height, width = shape[2:4] if len(shape) == 4 and self.channels_first else shape[1:3]
        return "array", (width, height)

    def _opened(self) -> np.ndarray:
        if self._array is None:
            self._array = self.open_array()
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}
