"""Features that are too many for memory: a file that grows as they come, and is mapped into memory to be read.

It is a safetensors file like the small ones of the store (``features``, ``indices``), but what only the end tells, the
skipped images, stands behind the rows, in the tensor ``skipped``, instead of in the header.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import sys
import uuid
import weakref
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vissl_like.evaluation.base import Features
from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError

HEADER_BYTES = 4096
"""Room for the header, which is written last: a file without it is no safetensors file and never taken for one."""
TEMPORARY = ".tmp"
KINDS = {"F32": torch.float32, "U8": torch.uint8}


class FeatureFile:
    """Rows on their way into a file with a temporary name.

    Args:
        folder: where it lies; made if it is not there.

    Raises:
        UserError: the file cannot be made. The other methods raise it where it cannot be written (a full disk).
    """

    def __init__(self, folder: Path):
        self.path = folder / f".{uuid.uuid4().hex}{TEMPORARY}"
        self._row_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.path, "xb")  # noqa: SIM115  # it lives as long as this object
        except OSError as error:
            raise _cannot_write(folder, error) from error
        self._rows = 0

    def append(self, rows: Tensor) -> None:
        """Adds rows ``[n, F]``, float32 on the CPU, after all others."""
        self.place(torch.arange(self._rows, self._rows + len(rows)), rows)

    def place(self, positions: Tensor, rows: Tensor) -> None:
        """Puts rows where they belong; in the end there must be no gap.

        Args:
            positions: ``[n]`` int64 numbers of the rows, each used once.
            rows: ``[n, F]`` float32 on the CPU.
        """
        if not len(rows):
            return
        if bool((positions.diff() < 0).any()):
            order = positions.argsort()
            positions, rows = positions[order], rows[order]
        values = np.ascontiguousarray(rows.numpy(), dtype="<f4")
        self._row_bytes = values[0].nbytes
        cuts = (positions.diff() != 1).nonzero().flatten() + 1
        edges = [0, *cuts.tolist(), len(values)]
        try:
            for begin, end in pairwise(edges):
                self._stream.seek(HEADER_BYTES + int(positions[begin]) * self._row_bytes)
                self._stream.write(values[begin:end].data)
        except OSError as error:
            raise _cannot_write(self.path.parent, error) from error
        self._rows = max(self._rows, int(positions[-1]) + 1)

    def complete(self, indices: Tensor, labels: Tensor | None, skipped: list[Skipped]) -> Features:
        """Ends the file and maps it; it is removed when the features are no longer used, unless a store takes it.

        Args:
            indices: ``[N]`` int64, one for each row.
            labels: ``[N]`` int64 or None; not kept in the file.
            skipped: images without a row.
        """
        listing = json.dumps([[item.path, item.reason] for item in skipped]).encode()
        places = np.ascontiguousarray(indices.numpy(), dtype="<i8")
        tensors = [
            ("features", "F32", [self._rows, self._row_bytes // 4], self._rows * self._row_bytes),
            ("indices", "I64", [len(places)], places.nbytes),
            ("skipped", "U8", [len(listing)], len(listing)),
        ]
        try:
            self._stream.seek(HEADER_BYTES + self._rows * self._row_bytes)
            self._stream.write(places.data)
            self._stream.write(listing)
            self._stream.flush()
            self._stream.seek(0)
            self._stream.write(_header(tensors))
            self._stream.close()
            rows, _, _ = read_features(self.path)
        except OSError as error:
            raise _cannot_write(self.path.parent, error) from error
        found = Features(rows, labels, indices, skipped, self.path)
        weakref.finalize(found, _remove, self.path, os.getpid())
        return found

    def discard(self) -> None:
        """Removes the file."""
        with suppress(OSError):
            self._stream.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def read_features(path: Path) -> tuple[Tensor, Tensor, list[Skipped]]:
    """Rows, indices and skipped images of a file of the store, large or small.

    The rows are mapped: they are read when they are used, and what is written to them stays in memory.

    Raises:
        OSError, SafetensorError, KeyError, ValueError, TypeError: it is not there, damaged, or something else.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:  # this checks that the file is complete
        indices = torch.from_numpy(file.get_tensor("indices"))
        listing = bytes(file.get_tensor("skipped")) if "skipped" in file.keys() else None  # noqa: SIM118  # no mapping
    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        description = json.loads(stream.read(length))
        buffer = _map(stream.fileno())
    facts = description["features"]
    shape, begin = facts["shape"], 8 + length + facts["data_offsets"][0]
    if len(shape) != 2 or not math.prod(shape) or shape[0] != len(indices):
        raise ValueError(f"{path} has features of shape {shape} and {len(indices)} indices")
    rows = torch.frombuffer(buffer, dtype=KINDS[facts["dtype"]], count=math.prod(shape), offset=begin).view(shape)
    found = json.loads(description["__metadata__"]["skipped"] if listing is None else listing)
    return rows, indices, [Skipped(*item) for item in found]


def _map(descriptor: int) -> mmap.mmap:
    """A whole file as memory that may be written to, which the file does not see."""
    if sys.platform != "linux":
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    # Without MAP_NORESERVE, which Python names from 3.13 on, Linux wants as much memory as the file has.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def flush_file(path: Path) -> None:
    """Forces a file's bytes to disk."""
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def _header(tensors: Sequence[tuple[str, str, list[int], int]]) -> bytes:
    """The first bytes of a safetensors file: length of the description, the description, blanks up to the rows."""
    description: dict[str, Any] = {}
    begin = 0
    for name, kind, shape, size in tensors:
        description[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(description).encode().ljust(HEADER_BYTES - 8)
    return struct.pack("<Q", len(text)) + text


def _remove(path: Path, owner: int) -> None:
    # A forked worker has the object too, and must leave the file alone.
    if os.getpid() == owner:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"the features are too many for memory and cannot be written into {folder}: {error}. Make room there, give "
        "another OUTPUT_DIR, or use fewer images (EVALUATE.max_images)."
    )
