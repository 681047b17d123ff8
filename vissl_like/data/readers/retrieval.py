"""Ground truth of revisited Oxford and Paris, and of sets in the same form.

    <root>/gnd.json          {"imlist": [...], "qimlist": [...], "gnd": [{"bbx", "easy", "hard", "junk"}, ...]}
    <root>/jpg/<name>.jpg    images of both lists, named with or without their ending

``easy``, ``hard`` and ``junk`` are positions in ``imlist``; ``bbx`` (optional) is what the query shows, left, top,
right, bottom in pixels. The sets come with a pickle, ``gnd_roxford5k.pkl`` or ``gnd_rparis6k.pkl``, which is not read
here, as unpickling can run any program: ``extra_scripts/convert_revisited_ground_truth.py`` makes the JSON of it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.data.readers.local import Folders, folder_at, is_whole, read_json, require_keys
from vissl_like.utils.errors import UserError

WHAT = "retrieval ground truth"
LAYOUT = (
    "Expected: <root>/gnd.json with 'imlist', 'qimlist' and 'gnd' (a list of {easy, hard, junk, bbx}), and "
    "<root>/jpg/<name>.jpg."
)
GROUPS = ("easy", "hard", "junk")
_CONVERTER = "python extra_scripts/convert_revisited_ground_truth.py"


@dataclass(frozen=True)
class RetrievalQuery:
    """One query.

    Attributes:
        image: its file.
        box: left, top, right, bottom in pixels of what is asked for; None for the whole image.
        easy, hard, junk: ``[n]`` int64 positions in the database, each in one of the three at most.
    """

    image: str
    box: tuple[float, float, float, float] | None
    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray


@dataclass(frozen=True)
class RetrievalSet:
    """Database images (files, in the order that positions count) and queries."""

    database: list[str]
    queries: list[RetrievalQuery]


def read_retrieval(path: str | Path, images: str | Path | None = None) -> RetrievalSet:
    """Reads a ground truth and looks whether its images exist.

    Args:
        path: the JSON file, or the folder that holds ``gnd.json``.
        images: folder of the images; None for ``jpg`` beside the JSON file.

    Raises:
        UserError: a file or image is missing; the JSON has another form; a position is out of range, listed twice or in
            two groups; a box is none.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = _in_folder(file)
    if file.suffix.lower() in (".pkl", ".pickle"):
        raise UserError(_pickle_message(file))
    truth = require_keys(read_json(file, WHAT, LAYOUT), ("imlist", "qimlist", "gnd"), repr(str(file)), WHAT, LAYOUT)
    names = [_names(truth, key, file) for key in ("imlist", "qimlist")]
    if not isinstance(truth["gnd"], list) or len(truth["gnd"]) != len(names[1]):
        got = f"{len(truth['gnd'])} entries" if isinstance(truth["gnd"], list) else type(truth["gnd"]).__name__
        raise UserError(
            f"{WHAT}: 'gnd' of {str(file)!r} is {got}, and 'qimlist' names {len(names[1])} queries. {LAYOUT}"
        )
    groups = [_groups(entry, number, len(names[0]), file) for number, entry in enumerate(truth["gnd"])]
    boxes = [_box(entry, number, file) for number, entry in enumerate(truth["gnd"])]
    folders = Folders(folder_at(file.parent / "jpg" if images is None else images, WHAT, LAYOUT))
    database, queries = (folders.images(listed, WHAT, LAYOUT) for listed in names)
    return RetrievalSet(
        database,
        [RetrievalQuery(image, box, *group) for image, box, group in zip(queries, boxes, groups, strict=True)],
    )


def _in_folder(folder: Path) -> Path:
    """``gnd.json`` of a folder; the message speaks of a pickle if that is all there is."""
    pickles = sorted(folder.glob("gnd*.pkl"))
    if pickles and not (folder / "gnd.json").exists():
        raise UserError(_pickle_message(pickles[0]))
    return folder / "gnd.json"


def _pickle_message(file: Path) -> str:
    return (
        f"{WHAT}: {str(file)!r} is a pickle, which is not read, as unpickling can run any program. Convert it once:\n"
        f"  {_CONVERTER} {file} {file.parent / 'gnd.json'}\nand give the folder or the JSON file."
    )


def _names(truth: dict[str, Any], key: str, file: Path) -> list[str]:
    names = truth[key]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{WHAT}: {key!r} of {str(file)!r} is not a list of names of images. {LAYOUT}")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if key == "imlist" and twice is not None:
        raise UserError(f"{WHAT}: 'imlist' of {str(file)!r} names {twice!r} twice; positions must be unique")
    return names


def _groups(entry: Any, number: int, size: int, file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three groups of query ``number``, checked against a database of ``size`` images."""
    source = f"query {number} ('gnd'[{number}] of {str(file)!r})"
    require_keys(entry, GROUPS, source, WHAT, LAYOUT)
    seen: dict[int, str] = {}
    for group in GROUPS:
        if not isinstance(entry[group], list):
            raise UserError(f"{WHAT}: {group!r} of {source} is not a list of positions in 'imlist'")
        for position in entry[group]:
            if not is_whole(position) or not 0 <= position < size:
                raise UserError(
                    f"{WHAT}: {group!r} of {source} has {position!r}; a position in 'imlist' is a whole number from 0 "
                    f"to {size - 1}"
                )
            if position in seen:
                raise UserError(
                    f"{WHAT}: {source} has the image {position} in {seen[position]!r} and in {group!r}; an image is "
                    "listed once"
                )
            seen[position] = group
    easy, hard, junk = (np.array(entry[group], dtype=np.int64) for group in GROUPS)
    return easy, hard, junk


def _box(entry: dict[str, Any], number: int, file: Path) -> tuple[float, float, float, float] | None:
    values = entry.get("bbx")
    if values is None:
        return None
    if (
        not isinstance(values, list)
        or len(values) != 4
        or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
        or not (values[0] < values[2] and values[1] < values[3])
    ):
        raise UserError(
            f"{WHAT}: 'bbx' of query {number} in {str(file)!r} is {values!r}; a box is left, top, right, bottom "
            "in pixels"
        )
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom
