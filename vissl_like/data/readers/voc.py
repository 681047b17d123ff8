"""PASCAL VOC: labels, boxes and masks of a ``VOCdevkit``.

    <root>/VOC2007/JPEGImages/<id>.jpg
    <root>/VOC2007/ImageSets/Main/<split>.txt             ids, one a line
    <root>/VOC2007/ImageSets/Main/<class>_<split>.txt     ``id label``: 1 shown, -1 not shown, 0 difficult only
    <root>/VOC2007/Annotations/<id>.xml                   boxes, 1-based and inclusive
    <root>/VOC2007/ImageSets/Segmentation/<split>.txt
    <root>/VOC2007/SegmentationClass/<id>.png             indexed masks: classes from 1, or objects; 255 is a border
    <root>/VOC2007/SegmentationObject/<id>.png

The archives of VOC unpack to a folder ``VOCdevkit``, which is the root. Another year is ``VOC2012`` and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from vissl_like.data.readers.local import Folders, folder_at, missing_message, read_lines, read_xml
from vissl_like.utils.errors import UserError, nearest

WHAT = "VOC"
LAYOUT = (
    "Expected: VOCdevkit/VOC<year>/ with JPEGImages/<id>.jpg, ImageSets/Main/<split>.txt and <class>_<split>.txt, "
    "Annotations/<id>.xml; for masks ImageSets/Segmentation/<split>.txt and SegmentationClass/, SegmentationObject/."
)
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class VocLabels:
    """Which classes every image shows.

    Attributes:
        images: N files.
        ids: N names.
        labels: ``[N, C]`` int8: 1 shown, -1 not shown, 0 only difficult objects.
        classes: C names.
    """

    images: list[str]
    ids: list[str]
    labels: np.ndarray
    classes: list[str]


@dataclass(frozen=True)
class VocImage:
    """The objects of an image.

    Attributes:
        image: its file.
        id: its name.
        width, height: in pixels, as the annotation says.
        boxes: ``[M, 4]`` float32, left, top, right, bottom as continuous pixel coordinates: the file's 1-based
            inclusive numbers with 1 taken from left and top.
        labels: ``[M]`` int64 positions in the list of classes.
        difficult, truncated: ``[M]`` bool.
    """

    image: str
    id: str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    truncated: np.ndarray


@dataclass(frozen=True)
class VocBoxes:
    """Images with their objects, and the names of the C classes."""

    images: list[VocImage]
    classes: list[str]


@dataclass(frozen=True)
class VocMasks:
    """An image and the files of its two masks; read them with ``masks.read_mask``."""

    image: str
    id: str
    class_mask: str
    object_mask: str


def read_voc_labels(
    root: str | Path, split: str, *, year: str = "2007", classes: Sequence[str] | None = None
) -> VocLabels:
    """Reads the labels of a split from ``ImageSets/Main``.

    Args:
        root: the ``VOCdevkit``, the folder above it, or ``VOC<year>`` itself.
        split: ``train``, ``val``, ``trainval``, ``test``, ...
        year: which ``VOC<year>``.
        classes: names, in the order wanted; None for all that have a list of this split, sorted (VOC's own order).

    Raises:
        UserError: a file or image is missing; the list of a class has another number, or names other images than the
            split's list.
    """
    place = _place(root, year)
    ids, images = _split(place, "Main", split)
    names = list(classes) if classes is not None else discover_classes(place, split, year=year)
    rows = {name: row for row, name in enumerate(ids)}
    labels = np.empty((len(ids), len(names)), dtype=np.int8)
    for column, name in enumerate(names):
        labels[:, column] = _column(place, name, split, rows)
    return VocLabels(images, ids, labels, names)


def discover_classes(root: str | Path, split: str, *, year: str = "2007") -> list[str]:
    """Names of the classes that have a list ``<class>_<split>.txt``, sorted.

    Raises:
        UserError: there are none.
    """
    place = _place(root, year)
    ending = f"_{split}.txt"
    lists = folder_at(place / "ImageSets" / "Main", WHAT, LAYOUT).iterdir()
    names = sorted(
        path.name.removesuffix(ending) for path in lists if path.name.endswith(ending) and path.name[0] != "."
    )
    if not names:
        raise UserError(f"{WHAT}: {str(place / 'ImageSets' / 'Main')!r} has no file <class>{ending}. {LAYOUT}")
    return names


def read_voc_boxes(
    root: str | Path, split: str, *, year: str = "2007", classes: Sequence[str] | None = None
) -> VocBoxes:
    """Reads the boxes of a split from ``Annotations``.

    Args:
        root, split, year: as for ``read_voc_labels``.
        classes: names, in the order of label numbers; None for all that have a list of this split, sorted.

    Raises:
        UserError: a file or image is missing; an annotation cannot be understood, has a class that is not in the list,
            or a box without area or outside the image.
    """
    place = _place(root, year)
    ids, images = _split(place, "Main", split)
    names = list(classes) if classes is not None else discover_classes(place, split, year=year)
    numbers = {name: number for number, name in enumerate(names)}
    _require(place / "Annotations", [f"{name}.xml" for name in ids])
    return VocBoxes([_objects(place, name, file, numbers) for name, file in zip(ids, images, strict=True)], names)


def read_voc_masks(root: str | Path, split: str, *, year: str = "2012") -> list[VocMasks]:
    """Names the masks of a split from ``SegmentationClass`` and ``SegmentationObject``.

    Raises:
        UserError: a file or image is missing.
    """
    place = _place(root, year)
    ids, images = _split(place, "Segmentation", split)
    kinds = ("SegmentationClass", "SegmentationObject")
    for kind in kinds:
        _require(place / kind, [f"{name}.png" for name in ids])
    return [
        VocMasks(image, name, *(str(place / kind / f"{name}.png") for kind in kinds))
        for name, image in zip(ids, images, strict=True)
    ]


def _place(root: str | Path, year: str) -> Path:
    """The folder ``VOC<year>``."""
    top = folder_at(root, WHAT, LAYOUT)
    name = top.resolve().name
    if (top / "ImageSets").is_dir() and name[:3] == "VOC" and name[3:].isdigit() and name != f"VOC{year}":
        raise UserError(
            f"{WHAT}: {str(root)!r} is of {name[3:]}, not of {year}. Name the folder above it, or change 'year'."
        )
    for place in (top, top / f"VOC{year}", top / "VOCdevkit" / f"VOC{year}"):
        if (place / "ImageSets").is_dir():
            return place
    return folder_at(top / f"VOC{year}" / "ImageSets", WHAT, LAYOUT)


def _split(place: Path, kind: str, split: str) -> tuple[list[str], list[str]]:
    """Ids and image files of a split."""
    file = place / "ImageSets" / kind / f"{split}.txt"
    ids = [line for _, line in read_lines(file, WHAT, LAYOUT)]
    strange = next((name for name in ids if len(name.split()) != 1 or "/" in name), None)
    if strange is not None:
        raise UserError(f"{WHAT}: {str(file)!r} has the line {strange!r}, and an id a line is expected. {LAYOUT}")
    if len(set(ids)) != len(ids):
        raise UserError(f"{WHAT}: {str(file)!r} names {len(ids) - len(set(ids))} images more than once")
    return ids, Folders(folder_at(place / "JPEGImages", WHAT, LAYOUT)).images(ids, WHAT, LAYOUT)


def _require(folder: Path, names: list[str]) -> None:
    there = Folders(folder_at(folder, WHAT, LAYOUT)).names_in("")
    missing = [name for name in names if name not in there]
    if missing:
        raise UserError(missing_message(missing, len(names), str(folder), WHAT, LAYOUT).replace("images", "files", 1))


def _column(place: Path, name: str, split: str, rows: dict[str, int]) -> np.ndarray:
    """Labels ``[N]`` of one class."""
    file = place / "ImageSets" / "Main" / f"{name}_{split}.txt"
    values = np.full(len(rows), -2, dtype=np.int8)
    for number, line in read_lines(file, f"{WHAT}, class {name!r}", LAYOUT):
        parts = line.split()
        if len(parts) != 2 or parts[1] not in ("1", "+1", "0", "-1"):
            raise UserError(f"{WHAT}: line {number} of {str(file)!r} is {line!r}; expected 'id label' with 1, 0 or -1")
        if parts[0] not in rows:
            raise UserError(f"{WHAT}: line {number} of {str(file)!r} names {parts[0]!r}, which {split}.txt does not")
        if values[rows[parts[0]]] != -2:
            raise UserError(f"{WHAT}: line {number} of {str(file)!r} names {parts[0]!r} for the second time")
        values[rows[parts[0]]] = int(parts[1])
    missing = [image for image, row in rows.items() if values[row] == -2]
    if missing:
        raise UserError(
            f"{WHAT}: {str(file)!r} has no label for {len(missing)} of the {len(rows)} images of {split}.txt, first "
            f"{missing[0]!r}"
        )
    return values


def _objects(place: Path, name: str, image: str, numbers: dict[str, int]) -> VocImage:
    file = place / "Annotations" / f"{name}.xml"
    root = read_xml(file, WHAT, LAYOUT)
    width, height = (int(_number(root, f"size/{side}", file)) for side in ("width", "height"))
    boxes, labels, flags = [], [], []
    for entry in root.findall("object"):
        label = (entry.findtext("name") or "").strip()
        if label not in numbers:
            raise UserError(
                f"{WHAT}: {str(file)!r} has an object {label!r}, which is none of the classes.{nearest(label, numbers)}"
                f" They are: {', '.join(numbers)}."
            )
        left, top, right, bottom = (_number(entry, f"bndbox/{side}", file) for side in ("xmin", "ymin", "xmax", "ymax"))
        # Some boxes of VOC lie a pixel outside the size that the annotation gives.
        if not (0 <= left < right + 1 <= width + 2 and 0 <= top < bottom + 1 <= height + 2):
            raise UserError(
                f"{WHAT}: {str(file)!r} has the box {left:g}, {top:g}, {right:g}, {bottom:g} in an image of {width} x "
                f"{height} pixels; a box is left, top, right, bottom from 1, inside the image"
            )
        boxes.append((left - 1, top - 1, right, bottom))
        labels.append(numbers[label])
        flags.append([(entry.findtext(flag) or "0").strip() == "1" for flag in ("difficult", "truncated")])
    marked = np.array(flags, dtype=bool).reshape(-1, 2)
    return VocImage(
        image,
        name,
        width,
        height,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        marked[:, 0].copy(),
        marked[:, 1].copy(),
    )


def _number(element: Element, path: str, file: Path) -> float:
    text = element.findtext(path)
    try:
        value = float(text or "")
        if not 0 <= value < 1e6:
            raise ValueError
    except ValueError as error:
        raise UserError(f"{WHAT}: <{path}> of {str(file)!r} is {text!r}, and a number of pixels is needed") from error
    return value
