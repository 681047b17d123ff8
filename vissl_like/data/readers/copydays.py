"""Copydays and sets laid out like it.

    <root>/original/*.jpg          the originals; the first four characters of a name say which they are
    <root>/jpegqual/<quality>/     their copies, compressed (``jpeg/<quality>/`` is taken too)
    <root>/crops/<percent>/        their copies, cropped
    <root>/strong/                 their copies, changed by hand: printed, scanned, painted over, ...
    <root>/distractors/            further images for the database (optional)

Of the four archives of Copydays each is unpacked into the folder of its block. The database is the originals and then
the distractors; an original is right for a query if the first four characters of their names are the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vissl_like.data.readers.local import folder_at, images_in
from vissl_like.utils.errors import UserError, nearest

WHAT = "Copydays"
LAYOUT = (
    "Expected: <root>/original/*.jpg, and at least one of strong/, jpegqual/<quality>/, crops/<percent>/; optionally "
    "distractors/."
)
KEY_LENGTH = 4
_NUMBERED = {"jpegqual": "jpegqual", "jpeg": "jpegqual", "crops": "crops"}
"""Folders of numbered blocks, and what the block is called."""


@dataclass(frozen=True)
class CopyBlock:
    """Queries that were changed in the same way.

    Attributes:
        name: ``strong``, ``jpegqual/75``, ``crops/80``, ...
        queries: Q files, sorted by name.
        positives: Q arrays ``[n]`` int64, positions of the right originals in the database, n >= 1.
    """

    name: str
    queries: list[str]
    positives: list[np.ndarray]


@dataclass(frozen=True)
class CopySet:
    """Originals, distractors and blocks by name: ``strong`` first, then the numbered ones in the order of numbers."""

    originals: list[str]
    distractors: list[str]
    blocks: dict[str, CopyBlock]

    @property
    def database(self) -> list[str]:
        """What is searched: originals, then distractors."""
        return self.originals + self.distractors


def read_copydays(
    root: str | Path, *, distractors: str | Path | None = None, blocks: Sequence[str] | None = None
) -> CopySet:
    """Reads the layout.

    Args:
        root: folder that holds ``original``.
        distractors: folder of further images; None for ``distractors`` below the root, if it is there.
        blocks: names of the blocks wanted, such as ``["strong", "crops/80"]``; None for all that are there.

    Raises:
        UserError: a folder is missing or holds no images; a block is not there; a query has no original.
    """
    place = folder_at(root, WHAT, LAYOUT)
    originals = _images(folder_at(place / "original", WHAT, LAYOUT))
    found = _blocks(place)
    if not found:
        raise UserError(f"{WHAT}: {str(place)!r} holds no block of copies. {LAYOUT}")
    for name in blocks or ():
        if name not in found:
            raise UserError(
                f"{WHAT}: {str(place)!r} has no block {name!r}.{nearest(name, found)} It has: {', '.join(found)}."
            )
    if distractors is not None:
        further = _images(folder_at(distractors, f"{WHAT}, distractors", LAYOUT))
    else:
        further = _images(place / "distractors") if (place / "distractors").is_dir() else []
    by_key: dict[str, list[int]] = {}
    for position, file in enumerate(originals):
        by_key.setdefault(_key(file), []).append(position)
    wanted = list(found) if blocks is None else list(dict.fromkeys(blocks))
    return CopySet(originals, further, {name: _block(name, found[name], by_key, place) for name in wanted})


def _blocks(place: Path) -> dict[str, Path]:
    """Folders of the blocks that are there."""
    found = {"strong": place / "strong"} if (place / "strong").is_dir() else {}
    for folder, name in _NUMBERED.items():
        if (place / folder).is_dir():
            numbers = sorted((entry.name for entry in os.scandir(place / folder) if entry.is_dir()), key=_number)
            found.update({f"{name}/{number}": place / folder / number for number in numbers if number[0] != "."})
    return found


def _number(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isascii() and name.isdigit() else (1 << 30, name)


def _images(folder: Path) -> list[str]:
    names = images_in(folder)
    if not names:
        raise UserError(f"{WHAT}: there are no images in {str(folder)!r}. {LAYOUT}")
    return [str(folder / name) for name in names]


def _key(file: str) -> str:
    return os.path.basename(file)[:KEY_LENGTH]


def _block(name: str, folder: Path, by_key: dict[str, list[int]], place: Path) -> CopyBlock:
    queries = _images(folder)
    orphans = [os.path.relpath(file, place) for file in queries if _key(file) not in by_key]
    if orphans:
        raise UserError(
            f"{WHAT}: {len(orphans)} of {len(queries)} images of {name!r} have no original (one whose name begins with "
            f"the same {KEY_LENGTH} characters), the first is {orphans[0]!r}. {LAYOUT}"
        )
    return CopyBlock(name, queries, [np.array(by_key[_key(file)], dtype=np.int64) for file in queries])
