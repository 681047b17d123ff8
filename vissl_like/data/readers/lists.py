"""Lists of labelled images in forms that the dataset ``file_list`` does not read.

iNaturalist: a JSON file with ``images`` (id, file_name), ``annotations`` (image_id, category_id) and ``categories``:

    <root>/train2018.json    <root>/train_val2018/Actinopterygii/2229/014a31ad.jpg

Places: lines ``path label``, the path with or without a leading slash, and optionally the table of categories:

    <root>/places365_train_standard.txt    /a/airfield/00000001.jpg 0
    <root>/categories_places365.txt        /a/airfield 0
    <root>/data_large/a/airfield/00000001.jpg

ImageNet's 1 % and 10 %: one name a line; the part before the last underscore is the folder:

    1percent.txt             n01440764_10026.JPEG
    <root>/train/n01440764/n01440764_10026.JPEG

``write_list`` saves what was read as a CSV file that ``DATA.TRAIN.path`` can point at.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.data.readers.local import Folders, folder_at, is_whole, read_json, read_lines, require_keys
from vissl_like.utils.errors import UserError, nearest
from vissl_like.utils.files import write_atomic

INATURALIST = (
    "Expected: a JSON file with 'images' (id, file_name), 'annotations' (image_id, category_id) and 'categories' (id, "
    "name), and the folder that file names count from."
)
PLACES = "Expected: lines 'path label' such as '/a/airfield/00000001.jpg 0', and the folder that paths count from."
IMAGENET = (
    "Expected: one name a line such as 'n01440764_10026.JPEG', and the folder of class folders, "
    "<root>/n01440764/n01440764_10026.JPEG."
)


@dataclass(frozen=True)
class LabelledFiles:
    """Images with one class each.

    Attributes:
        files: N full paths.
        labels: ``[N]`` int64 class numbers.
        classes: names of the classes 0, 1, ...; also of those that no image here has.
    """

    files: list[str]
    labels: np.ndarray
    classes: list[str]


def read_inaturalist(annotations: str | Path, root: str | Path) -> LabelledFiles:
    """Reads a set of iNaturalist; classes are the categories in the order of their ids.

    Args:
        annotations: the JSON file of a split.
        root: the folder that file names count from.

    Raises:
        UserError: a file or image is missing; the JSON has another form; an image has no category or several.
    """
    what, source = "iNaturalist", repr(str(annotations))
    keys = ("images", "annotations", "categories")
    content = require_keys(read_json(annotations, what, INATURALIST), keys, source, what, INATURALIST)
    categories = _by_id(content, "categories", source)
    images = _by_id(content, "images", source)
    place = {name: number for number, name in enumerate(sorted(categories))}
    classes = [str(categories[name].get("name", name)) for name in sorted(categories)]
    category_of: dict[int, int] = {}
    for number, entry in enumerate(_entries(content, "annotations", source)):
        where = f"annotations[{number}] of {source}"
        require_keys(entry, ("image_id", "category_id"), where, what, INATURALIST)
        image, category = entry["image_id"], entry["category_id"]
        if not is_whole(image) or image not in images or not is_whole(category) or category not in place:
            raise UserError(
                f"{what}: {where} has image_id {image!r} and category_id {category!r}; one is not in the file"
            )
        if category_of.setdefault(image, place[category]) != place[category]:
            raise UserError(f"{what}: the image {image} of {source} has several categories, and one is needed")
    without = [name for name in images if name not in category_of]
    if without:
        raise UserError(
            f"{what}: {len(without)} of {len(images)} images of {source} have no annotation, first {without[0]}. "
            "Test images come without labels."
        )
    names = []
    for name, entry in images.items():
        require_keys(entry, ("file_name",), f"the image {name} of {source}", what, INATURALIST)
        names.append(str(entry["file_name"]))
    files = Folders(folder_at(root, what, INATURALIST)).images(names, what, INATURALIST)
    return LabelledFiles(files, np.array([category_of[name] for name in images], dtype=np.int64), classes)


def read_places(path: str | Path, root: str | Path, categories: str | Path | None = None) -> LabelledFiles:
    """Reads a list of Places.

    Args:
        path: the list of a split.
        root: the folder that paths count from; a leading slash in the list is left out.
        categories: the table ``name number`` (``categories_places365.txt``); None to call classes by their numbers.

    Raises:
        UserError: a file or image is missing; a line cannot be understood; a label is not in the table.
    """
    what = "Places"
    entries = _numbered_lines(path, what)
    classes = None if categories is None else _table(categories, what)
    numbers = [number for _, number in entries]
    if classes is None:
        classes = [str(number) for number in range(max(numbers) + 1)]
    elif max(numbers) >= len(classes):
        raise UserError(
            f"{what}: {str(path)!r} has the label {max(numbers)}, and {str(categories)!r} names {len(classes)}"
        )
    files = Folders(folder_at(root, what, PLACES)).images([name.lstrip("/") for name, _ in entries], what, PLACES)
    return LabelledFiles(files, np.array(numbers, dtype=np.int64), classes)


def read_imagenet_part(path: str | Path, root: str | Path) -> LabelledFiles:
    """Reads a list of a part of ImageNet; classes are all class folders of the root, sorted by name.

    Args:
        path: the list.
        root: the folder of class folders, ``train`` of ImageNet.

    Raises:
        UserError: a file or image is missing; a name has no class folder; a name is listed twice.
    """
    what = "part of ImageNet"
    top = folder_at(root, what, IMAGENET)
    classes = sorted(entry.name for entry in os.scandir(top) if entry.is_dir() and not entry.name.startswith("."))
    place = {name: number for number, name in enumerate(classes)}
    names, labels, seen = [], [], set()
    for number, line in read_lines(path, what, IMAGENET):
        folder = line.rpartition("_")[0]
        if folder not in place:
            raise UserError(
                f"{what}: line {number} of {str(path)!r} is {line!r}, and there is no class folder {folder!r} in "
                f"{str(top)!r}.{nearest(folder, place)} {IMAGENET}"
            )
        if line in seen:
            raise UserError(f"{what}: line {number} of {str(path)!r} names {line!r} for the second time")
        seen.add(line)
        names.append(f"{folder}/{line}")
        labels.append(place[folder])
    return LabelledFiles(Folders(top).images(names, what, IMAGENET), np.array(labels, dtype=np.int64), classes)


def write_list(listed: LabelledFiles, path: str | Path) -> None:
    """Writes a CSV file with the columns ``path`` and ``label`` for the dataset ``file_list``.

    Labels are written as numbers, so that they stay what they are.

    Raises:
        OSError: it cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "label"])
    rows.writerows((os.path.abspath(file), int(label)) for file, label in zip(listed.files, listed.labels, strict=True))
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _entries(content: dict[str, Any], key: str, source: str) -> list[Any]:
    if not isinstance(content[key], list) or not content[key]:
        raise UserError(f"iNaturalist: {key!r} of {source} is not a list with entries. {INATURALIST}")
    return content[key]


def _by_id(content: dict[str, Any], key: str, source: str) -> dict[int, dict[str, Any]]:
    """Entries by their ids, in the order of the file."""
    found: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(_entries(content, key, source)):
        where = f"{key}[{number}] of {source}"
        require_keys(entry, ("id",), where, "iNaturalist", INATURALIST)
        if not is_whole(entry["id"]) or entry["id"] in found:
            raise UserError(f"iNaturalist: the id of {where} is {entry['id']!r}; ids are whole numbers, each used once")
        found[entry["id"]] = entry
    return found


def _numbered_lines(path: str | Path, what: str) -> list[tuple[str, int]]:
    """Lines ``text number``."""
    entries = []
    for number, line in read_lines(path, what, PLACES):
        name, _, label = line.rpartition(" ")
        if not name.strip() or not (label.isascii() and label.isdigit() and len(label) < 7):
            raise UserError(f"{what}: line {number} of {str(path)!r} is {line!r}. {PLACES}")
        entries.append((name.strip(), int(label)))
    return entries


def _table(path: str | Path, what: str) -> list[str]:
    """Names of the classes, numbered from 0 without gaps."""
    entries = sorted(_numbered_lines(path, what), key=lambda entry: entry[1])
    if [number for _, number in entries] != list(range(len(entries))):
        raise UserError(f"{what}: the numbers in {str(path)!r} are not 0 to {len(entries) - 1}, each once")
    return [name for name, _ in entries]
