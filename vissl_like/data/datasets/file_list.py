"""Images named by a list: text, CSV or a numpy array of paths."""

from __future__ import annotations

import csv
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vissl_like.data.datasets.base import MAX_PIXELS
from vissl_like.data.index import PathIndex, PathIndexBuilder, load_mapped
from vissl_like.data.index_cache import kept_or_built, key_of
from vissl_like.data.numpy_file import read_array
from vissl_like.data.sources import FileImages, existing_path
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError, nearest
from vissl_like.utils.kinds import Count

LARGEST_NUMBER = 65535
"""Labels that are all whole numbers up to this keep their values; any others are names, numbered in sorted order."""


@DATASETS.register("file_list")
class ListedImages(FileImages):
    """Images named by a list: ``.txt``, ``.csv`` or ``.npy``, with or without labels.

    ``.txt`` has one path a line, optionally followed by a tab and a label; ``.csv`` has a header with a column ``path``
    and optionally ``label`` (other columns are left alone); ``.npy`` is a one-dimensional array of text. Labels that
    are whole numbers from 0 to 65535 are used as they are; any others are class names, numbered in sorted order.

    Options:
        path: the list.
        root: folder that relative paths in the list count from; null for the folder of the list.
        labels: ``auto`` for those of the list, if it has any; ``none`` to leave them out.
        channels: 3 for colour, 1 for grey; every image is converted.
        mean: one value per channel in 0..1; null for ImageNet's (colour) or 0.5 (grey).
        std: one value per channel in 0..1; null for ImageNet's (colour) or 0.25 (grey).
        limit: use this many images, evenly spread over all and always the same ones; null for all.
        max_pixels: images of more pixels than this (width times height) are refused unread.
        cache: ``ram`` keeps decoded images in memory, up to 2 GiB in every process; ``none`` decodes each time.

    Raises:
        UserError: no such list; a format that is none of the three; no paths in it; files that do not exist (all
            reported together); labels on some lines only; no file that can be read as an image.
    """

    def __init__(
        self,
        *,
        path: str,
        root: str | None = None,
        labels: Literal["auto", "none"] = "auto",
        channels: Literal[1, 3] = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        limit: Count | None = None,
        max_pixels: Count = MAX_PIXELS,
        cache: Literal["none", "ram"] = "none",
    ):
        if labels not in ("auto", "none"):
            raise UserError(f"labels is {labels!r}; it can be 'auto' or 'none'")
        file = existing_path(path)
        ending = os.path.splitext(file)[1].lower()
        if ending not in _READERS or os.path.isdir(file):
            raise UserError(f"{path!r} is no list of images: a list is a file ending in {', '.join(sorted(_READERS))}")
        base = os.path.dirname(file) if root is None else existing_path(root)
        status = os.stat(file)
        listed = kept_or_built(
            key_of("file_list", os.path.realpath(file), base, status.st_mtime_ns, status.st_size),
            load=_Listed.load,
            is_current=lambda _: True,  # the key changes with the list
            build=lambda: _read(file, base),
            newest_change=lambda _: status.st_mtime_ns,
        )
        super().__init__(
            listed.paths,
            base,
            listed.labels if labels == "auto" else None,
            listed.classes if labels == "auto" else None,
            channels=channels,
            mean=mean,
            std=std,
            limit=limit,
            max_pixels=max_pixels,
            cache=cache,
        )


@dataclass
class _Listed:
    """Contents of a list; ``labels`` is ``[N]`` int64 or None."""

    paths: PathIndex
    labels: np.ndarray | None
    classes: list[str] | None

    def save(self, folder: Path) -> None:
        self.paths.save(folder)
        if self.labels is not None:
            np.save(folder / "labels.npy", self.labels, allow_pickle=False)
        facts = {"paths": len(self.paths), "classes": self.classes}
        (folder / "list.json").write_text(json.dumps(facts), encoding="ascii")

    @classmethod
    def load(cls, folder: Path) -> _Listed:
        facts = json.loads((folder / "list.json").read_text(encoding="ascii"))
        classes = facts["classes"]
        labels = None if classes is None else load_mapped(folder / "labels.npy")
        listed = cls(PathIndex.load(folder), labels, classes)
        if len(listed.paths) != facts["paths"] or (labels is not None and len(labels) != facts["paths"]):
            raise ValueError("the arrays do not hold as many entries as list.json says")
        return listed


def _read(file: str, base: str) -> _Listed:
    """Reads a list and looks whether its files exist."""
    paths, numbers = PathIndexBuilder(), array("q")
    names: dict[str, int] = {}
    missing: list[str] = []
    num_missing = 0
    for path, label in _READERS[os.path.splitext(file)[1].lower()](file):
        if not os.path.exists(os.path.join(base, path)):
            num_missing += 1
            missing += [path] if len(missing) < 10 else []
        paths.add(os.fsencode(path))
        if label:
            numbers.append(names.setdefault(label, len(names)))
    if not len(paths):
        raise UserError(f"the list {file!r} names no images")
    if missing:
        raise UserError(
            f"{num_missing} of the {len(paths)} files listed in {file!r} do not exist, looking from {base!r}:\n"
            + "\n".join(f"  {path}" for path in missing)
            + ("\n  ..." if num_missing > len(missing) else "")
            + "\nMend the list, or set 'root' to the folder that its paths count from."
        )
    if numbers and len(numbers) != len(paths):
        raise UserError(
            f"{len(numbers)} of the {len(paths)} entries of {file!r} have a label; give one to all or to none"
        )
    labels, classes = _numbered(numbers, list(names))
    return _Listed(paths.build(), labels, classes)


def _numbered(numbers: array[int], names: list[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels and class names, from numbers of names in order of appearance."""
    if not numbers:
        return None, None
    if all(name.isascii() and name.isdigit() and int(name) <= LARGEST_NUMBER for name in names):
        values = [int(name) for name in names]
        classes = [str(value) for value in range(max(values) + 1)]
    else:
        classes = sorted(names)
        place = {name: number for number, name in enumerate(classes)}
        values = [place[name] for name in names]
    return np.array(values, dtype=np.int64)[np.array(numbers, dtype=np.int64)], classes


def _text_entries(file: str) -> Iterator[tuple[str, str]]:
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            path, _, label = line.rstrip("\r\n").partition("\t")
            if path.strip():
                yield path.strip(), label.strip()


def _csv_entries(file: str) -> Iterator[tuple[str, str]]:
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines)
        rows = _rows(reader, file)
        header = [name.strip() for name in next(rows, [])]
        if "path" not in header:
            raise UserError(
                f"the list {file!r} has no column 'path'; its first line must name the columns, and names: "
                f"{', '.join(header) or 'nothing'}.{nearest('path', header)}"
            )
        path_column, label_column = header.index("path"), header.index("label") if "label" in header else -1
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) <= max(path_column, label_column) or not row[path_column].strip():
                raise UserError(f"line {reader.line_num} of {file!r} has no path or too few columns: {','.join(row)!r}")
            yield row[path_column].strip(), row[label_column].strip() if label_column >= 0 else ""


def _rows(reader: Any, file: str) -> Iterator[list[str]]:
    """What a CSV reader gives; what it cannot read (a field of 131,072 characters, say) is the user's to mend."""
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {file!r} cannot be read as CSV: {error}") from error


def _array_entries(file: str) -> Iterator[tuple[str, str]]:
    try:
        names = read_array(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file!r} cannot be read as an array of text: {error}") from error
    if names.dtype.kind not in "US" or names.ndim != 1:
        raise UserError(
            f"a list of paths is a one-dimensional array of text; {file!r} is {names.dtype}, {list(names.shape)}. "
            "For images in an array use the dataset 'array'."
        )
    for name in names:
        yield os.fsdecode(bytes(name)) if names.dtype.kind == "S" else str(name), ""


_READERS = {".txt": _text_entries, ".csv": _csv_entries, ".npy": _array_entries}
