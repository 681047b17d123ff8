"""Numpy files that may be damaged, or made to do harm: never a pickled object, and one kind of error."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError

import numpy as np

_DAMAGE = (
    *(ValueError, EOFError, TypeError, KeyError, IndexError, AttributeError, SyntaxError, TokenError, RecursionError),
    *(MemoryError, OverflowError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile let through from a damaged header, shape or compressed part."""


def read_numpy(file: str | Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a ``.npy`` file, mapped read-only, or those of an ``.npz`` file by name, read into memory.

    Raises:
        ValueError: it is neither, or is damaged.
        OSError: it cannot be read.
    """
    try:
        try:
            opened = np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError:
            opened = np.load(file, allow_pickle=False)  # an empty array cannot be mapped
        if isinstance(opened, np.ndarray):
            # The memmap subclass makes every slice several times slower than a plain array over the same mapping.
            return np.asarray(opened)
        with opened:
            return {name: np.asarray(opened[name]) for name in opened.files}
    except _DAMAGE as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def read_array(file: str | Path) -> np.ndarray:
    """The array of a ``.npy`` file, mapped read-only; otherwise as ``read_numpy``."""
    opened = read_numpy(file)
    if isinstance(opened, dict):
        raise ValueError("it holds several arrays (.npz), where a single one (.npy) is wanted")
    return opened
