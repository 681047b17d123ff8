"""COCO instances: boxes and masks in JSON, by pycocotools.

    <annotations>/instances_val2017.json      {"images": [...], "annotations": [...], "categories": [...]}
    <images>/<file_name>                      for COCO, ``val2017/000000000139.jpg``

pycocotools is an extra (``pip install pycocotools``); the object it makes is kept for scoring.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.data.readers.local import Folders, folder_at, is_whole, read_json, require_keys
from vissl_like.utils.errors import UserError

WHAT = "COCO instances"
LAYOUT = "Expected: a JSON file with 'images', 'annotations' and 'categories', and a folder with the images it names."
_FIELDS: dict[str, dict[str, type]] = {
    "images": {"file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"name": str},
}
_KINDS: dict[type, str] = {str: "text", int: "a whole number", list: "a list"}


@dataclass(frozen=True)
class CocoObjects:
    """The M objects of an image, without crowds unless they were asked for.

    Attributes:
        boxes: ``[M, 4]`` float32, left, top, right, bottom in pixels.
        labels: ``[M]`` int64 positions in the list of classes.
        areas: ``[M]`` float32, of the masks in square pixels.
        crowd: ``[M]`` bool.
        ids: ``[M]`` int64 ids of the annotations.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class CocoInstances:
    """A set of images with objects.

    Attributes:
        truth: pycocotools' ``COCO`` object, as its ``COCOeval`` takes it.
        images: N files, in the order of ids.
        image_ids: ``[N]`` int64.
        sizes: ``[N, 2]`` int64, width and height in pixels.
        classes: C names, in the order of category ids.
        category_ids: ``[C]`` int64; the label c stands for the category ``category_ids[c]``.
    """

    truth: Any
    images: list[str]
    image_ids: np.ndarray
    sizes: np.ndarray
    classes: list[str]
    category_ids: np.ndarray

    def objects(self, index: int, *, crowds: bool = False) -> CocoObjects:
        """The objects of image ``index``, boxes without area left out; with ``crowds`` also regions of many objects."""
        found = [
            entry
            for entry in self.truth.imgToAnns.get(int(self.image_ids[index]), ())
            if (crowds or not entry.get("iscrowd", 0)) and entry["bbox"][2] > 0 and entry["bbox"][3] > 0
        ]
        boxes = np.array([entry["bbox"] for entry in found], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        categories = np.array([entry["category_id"] for entry in found], dtype=np.int64)
        return CocoObjects(
            boxes,
            np.searchsorted(self.category_ids, categories).astype(np.int64),
            np.array([entry["area"] for entry in found], dtype=np.float32),
            np.array([bool(entry.get("iscrowd", 0)) for entry in found], dtype=bool),
            np.array([entry["id"] for entry in found], dtype=np.int64),
        )

    def masks(self, index: int, *, crowds: bool = False) -> np.ndarray:
        """Masks of the same objects, ``[M, H, W]`` bool.

        Raises:
            UserError: an object has no ``segmentation``.
        """
        width, height = (int(side) for side in self.sizes[index])
        found = self.objects(index, crowds=crowds).ids
        lacking = [int(name) for name in found if not self.truth.anns[int(name)].get("segmentation")]
        if lacking:
            raise UserError(f"{WHAT}: the annotation {lacking[0]} has no 'segmentation', so there is no mask of it")
        made = [self.truth.annToMask(self.truth.anns[int(name)]).astype(bool) for name in found]
        return np.stack(made) if made else np.zeros((0, height, width), dtype=bool)


def read_coco(annotations: str | Path, images: str | Path) -> CocoInstances:
    """Reads a set of instances and looks whether its images exist.

    Args:
        annotations: the JSON file.
        images: the folder that file names count from.

    Raises:
        UserError: pycocotools is not installed; a file or image is missing; the JSON has another form, an id twice, or
            an annotation of an image or category that is not there.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise UserError(
            f"{WHAT} are read and scored by pycocotools, which is not installed. Install it:  pip install pycocotools"
        )
    from pycocotools.coco import COCO

    source = repr(str(annotations))
    keys = ("images", "annotations", "categories")
    content = require_keys(read_json(annotations, WHAT, LAYOUT), keys, source, WHAT, LAYOUT)
    for key in keys:
        _check_entries(content, key, source)
    entries = sorted(content["images"], key=lambda entry: entry["id"])
    categories = sorted(content["categories"], key=lambda entry: entry["id"])
    _check_annotations(content["annotations"], entries, categories, source)
    files = Folders(folder_at(images, WHAT, LAYOUT)).images([entry["file_name"] for entry in entries], WHAT, LAYOUT)
    truth = COCO()  # given a file it would print
    truth.dataset = content
    _index(truth)
    return CocoInstances(
        truth,
        files,
        np.array([entry["id"] for entry in entries], dtype=np.int64),
        np.array([(entry["width"], entry["height"]) for entry in entries], dtype=np.int64).reshape(-1, 2),
        [entry["name"] for entry in categories],
        np.array([entry["id"] for entry in categories], dtype=np.int64),
    )


def _check_entries(content: dict[str, Any], key: str, source: str) -> None:
    """Every entry is an object with an id of its own and the fields that are read."""
    entries = content[key]
    if not isinstance(entries, list) or (not entries and key != "annotations"):
        raise UserError(f"{WHAT}: {key!r} of {source} is not a list with entries. {LAYOUT}")
    for number, entry in enumerate(entries):
        where = f"{key}[{number}] of {source}"
        require_keys(entry, ("id", *_FIELDS[key]), where, WHAT, LAYOUT)
        for field, kind in {"id": int, **_FIELDS[key]}.items():
            if not (is_whole(entry[field]) if kind is int else isinstance(entry[field], kind)):
                raise UserError(f"{WHAT}: {field!r} of {where} is {entry[field]!r:.60}, not {_KINDS[kind]}. {LAYOUT}")
    twice = [name for name, count in Counter(entry["id"] for entry in entries).items() if count > 1]
    if twice:
        raise UserError(f"{WHAT}: {key!r} of {source} has the id {twice[0]} more than once")


def _check_annotations(
    annotations: list[dict[str, Any]], images: list[dict[str, Any]], categories: list[dict[str, Any]], source: str
) -> None:
    known = {"image_id": {entry["id"] for entry in images}, "category_id": {entry["id"] for entry in categories}}
    for entry in annotations:
        where = f"the annotation {entry['id']} of {source}"
        for field, ids in known.items():
            if entry[field] not in ids:
                raise UserError(f"{WHAT}: {where} has the {field} {entry[field]}, which is not in the file")
        box = entry["bbox"]
        if len(box) != 4 or not all(
            isinstance(value, (int, float)) and math.isfinite(value) and (place < 2 or value >= 0)
            for place, value in enumerate(box)
        ):
            raise UserError(f"{WHAT}: 'bbox' of {where} is {box!r:.80}; a box is left, top, width, height in pixels")
        entry.setdefault("area", float(box[2]) * float(box[3]))


def _index(truth: Any) -> None:
    """pycocotools' own index, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
