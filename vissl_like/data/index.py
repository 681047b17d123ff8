"""Paths of any number of files as one byte array: no Python object per file, shared between processes for nothing."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.data.numpy_file import read_array

_BLOB, _OFFSETS = "paths.npy", "offsets.npy"


class PathIndex:
    """N paths: their bytes one after another, and where each begins.

    A Python list of a million paths takes 116 MB and every forked worker copies it as it counts references; this takes
    57 MB once, or none where it is mapped from disk.

    Args:
        blob: ``[total bytes]`` uint8, paths in the file system's encoding.
        offsets: ``[N + 1]`` int64; path i is ``blob[offsets[i]:offsets[i + 1]]``.
    """

    def __init__(self, blob: np.ndarray, offsets: np.ndarray):
        if blob.dtype != np.uint8 or offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) < 1:
            raise ValueError(f"a path index is uint8 bytes and int64 offsets, got {blob.dtype} and {offsets.dtype}")
        if offsets[0] != 0 or offsets[-1] != len(blob):
            raise ValueError(f"offsets run from {offsets[0]} to {offsets[-1]} over {len(blob)} bytes")
        self._blob, self._offsets = blob, offsets
        self._folder: Path | None = None

    @classmethod
    def from_paths(cls, paths: Iterable[str | bytes]) -> PathIndex:
        """Takes paths in one by one."""
        builder = PathIndexBuilder()
        for path in paths:
            builder.add(os.fsencode(path))
        return builder.build()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        return os.fsdecode(self._blob[self._offsets[index] : self._offsets[index + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return int(self._blob.nbytes + self._offsets.nbytes)

    def save(self, folder: Path) -> None:
        """Writes two ``.npy`` files into an existing folder."""
        np.save(folder / _BLOB, self._blob, allow_pickle=False)
        np.save(folder / _OFFSETS, self._offsets, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> PathIndex:
        """Maps an index written by ``save`` from disk; nothing is read until it is asked for.

        Raises:
            OSError, ValueError: the files are missing or damaged.
        """
        index = cls(load_mapped(folder / _BLOB), load_mapped(folder / _OFFSETS))
        index._folder = folder
        return index

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # A spawned worker maps the same file instead of receiving a copy.
        if self._folder is not None:
            return PathIndex.load, (self._folder,)
        return PathIndex, (self._blob, self._offsets)


class PathIndexBuilder:
    """Collects paths, as bytes, without keeping an object for each."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._offsets = array("q", [0])

    def add(self, path: bytes) -> None:
        """Appends one path."""
        self._blob += path
        self._offsets.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def build(self) -> PathIndex:
        """The finished index."""
        return PathIndex(np.frombuffer(bytes(self._blob), np.uint8), np.array(self._offsets, np.int64))


def load_mapped(file: Path) -> np.ndarray:
    """A ``.npy`` file mapped read-only.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    try:
        return read_array(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
