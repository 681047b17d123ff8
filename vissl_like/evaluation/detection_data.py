"""Images with objects, from VOC or COCO, as a detector learns from them and is scored on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.decode import decode_file
from vissl_like.data.processes import iterate_workers
from vissl_like.data.readers.coco import CocoInstances, read_coco
from vissl_like.data.readers.voc import read_voc_boxes
from vissl_like.data.samplers.base import Key
from vissl_like.data.transforms.parameters import sample_generator
from vissl_like.data.transforms.pixels import to_array
from vissl_like.evaluation.functional.detection import TrueObjects
from vissl_like.evaluation.subjects import Protocol
from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError

Layout = Literal["voc", "coco"]
MOST_UNREADABLE = 100


@dataclass(frozen=True)
class ObjectImages:
    """N images and their objects.

    Attributes:
        files: N paths.
        truth: objects of each, without masks.
        classes: C names.
        masks: for each image, where its masks come from: the instances and the position among them; empty for VOC.
    """

    files: list[str]
    truth: list[TrueObjects]
    classes: list[str]
    masks: list[tuple[CocoInstances, int]] = field(default_factory=list)

    def select(self, rows: Iterable[int]) -> ObjectImages:
        """Some of the images."""
        order = list(rows)
        masks = [self.masks[row] for row in order] if self.masks else []
        return ObjectImages([self.files[row] for row in order], [self.truth[row] for row in order], self.classes, masks)

    def with_objects(self) -> ObjectImages:
        """The images that show something to learn: an object that is no crowd."""
        return self.select(row for row, objects in enumerate(self.truth) if not objects.crowd.all())

    def run_lengths(self, row: int) -> list[Any]:
        """Masks of an image's objects as run lengths, crowds included."""
        instances, _ = self.masks[row]
        return [instances.truth.annToRLE(entry) for entry in self.outlined(row)]

    def require_masks(self) -> None:
        """Looks whether every object has a mask.

        Raises:
            UserError: one has none.
        """
        for row in range(len(self.files)):
            self.outlined(row)

    def outlined(self, row: int) -> list[dict[str, Any]]:
        """Annotations of an image's objects, crowds included, as their file has them.

        Raises:
            UserError: one has no mask.
        """
        instances, index = self.masks[row]
        found = [instances.truth.anns[int(name)] for name in instances.objects(index, crowds=True).ids]
        for entry in found:
            if not entry.get("segmentation"):
                raise UserError(
                    f"{self.files[row]}: the annotation {entry['id']} has no 'segmentation', so there is no mask to "
                    "learn from or to score by. Add it, or take the detector faster_rcnn_fpn, which needs boxes only"
                )
        return found


def read_objects(layout: Layout, root: str, name: str, classes: Sequence[str] | None = None) -> ObjectImages:
    """Reads a set of images with objects.

    Args:
        layout: ``voc`` or ``coco``.
        root: the VOCdevkit, or the folder with ``annotations/``.
        name: ``2007/trainval`` (year and split), or ``train2017``: ``annotations/instances_train2017.json`` and the
            images in ``train2017/``.
        classes: names that it must have; None takes its own.

    Raises:
        UserError: files are missing or of another form, or the classes are others.
    """
    if layout == "voc":
        year, _, split = name.partition("/")
        if not split:
            raise UserError(f"the set {name!r} of a VOCdevkit is not named by year and split, such as '2007/trainval'")
        return _voc(root, year, split, classes)
    place = Path(root).expanduser()
    instances = read_coco(place / "annotations" / f"instances_{name}.json", place / name)
    if classes is not None and list(classes) != instances.classes:
        raise UserError(
            f"the set {name!r} of {root!r} has the classes {', '.join(instances.classes)}, and the first set has "
            f"{', '.join(classes)}; they must be the same, in one order"
        )
    truth = []
    for index in range(len(instances.images)):
        found = instances.objects(index, crowds=True)
        width, height = (int(side) for side in instances.sizes[index])
        easy = np.zeros(len(found.labels), dtype=bool)
        truth.append(TrueObjects(found.boxes, found.labels, found.areas, found.crowd, easy, None, (height, width)))
    masks = [(instances, index) for index in range(len(instances.images))]
    return ObjectImages(instances.images, truth, instances.classes, masks)


def joined(sets: Sequence[ObjectImages]) -> ObjectImages:
    """Several sets of the same classes as one."""
    return ObjectImages(
        [file for one in sets for file in one.files],
        [objects for one in sets for objects in one.truth],
        sets[0].classes,
        [mask for one in sets for mask in one.masks],
    )


def digest_of(truth: Sequence[TrueObjects]) -> str:
    """Digest of all boxes and of what is known of them, but for masks; see ``mask_digest_of``."""
    digest = hashlib.sha256()
    for one in truth:
        for values in (one.boxes, one.labels, one.areas, one.crowd, one.difficult):
            digest.update(str(values.shape).encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def mask_digest_of(images: ObjectImages) -> str:
    """Digest of all masks: polygons and run lengths as they are written.

    Raises:
        UserError: an object has no mask.
    """
    digest = hashlib.sha256()
    for row in range(len(images.files)):
        for entry in images.outlined(row):
            digest.update(json.dumps(entry["segmentation"], sort_keys=True).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


@dataclass
class Sample:
    """An image as the network sees it; arrays, which travel between processes without a file descriptor each.

    Attributes:
        row: of the image in its set.
        pixels: ``[C, H, W]`` uint8.
        boxes: ``[M, 4]`` float32 in its pixels.
        labels: ``[M]`` int64, from 0 on.
        masks: ``[M, H, W]`` uint8, or None.
        size: height and width of the file.
        skipped: images in whose place it came.
    """

    row: int
    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    size: tuple[int, int]
    skipped: list[Skipped]

    def to(self, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels in 0..1 and the target of a detector, whose labels count from 1 on."""
        target = {"boxes": torch.from_numpy(self.boxes), "labels": torch.from_numpy(self.labels) + 1}
        if self.masks is not None:
            target["masks"] = torch.from_numpy(self.masks)
        pixels = torch.from_numpy(self.pixels).to(device).float() / 255
        return pixels, {name: value.to(device) for name, value in target.items()}


class Samples:
    """Makes samples out of (epoch, row); runs in a worker.

    Args:
        images: what of.
        sizes: shorter sides in pixels, one of which is drawn for each sample.
        longest: longer side at most, in pixels.
        channels: 3 or 1.
        masks: whether masks are wanted.
        learn: mirrors every other image, leaves crowds out, and replaces an image that cannot be read by the next;
            else the image is as it is.
        seed: what is drawn is a function of (seed, epoch, row).
    """

    def __init__(
        self,
        images: ObjectImages,
        sizes: Sequence[int],
        longest: int,
        channels: int,
        *,
        masks: bool,
        learn: bool,
        seed: int,
    ):
        self.images, self.sizes, self.longest, self.channels = images, list(sizes), longest, channels
        self.masks, self.learn, self.seed = masks, learn, seed

    def __len__(self) -> int:
        return len(self.images.files)

    def __getitem__(self, key: Key) -> Sample | Skipped:
        """The sample; an image that cannot be read where it is not replaced.

        Raises:
            UserError: too many in a row cannot be read.
        """
        _, row = key
        skipped: list[Skipped] = []
        for step in range(min(len(self), MOST_UNREADABLE)):
            place = (row + step) % len(self)
            try:
                return self._sample(key, place, skipped)
            except UnreadableImage as error:
                skipped.append(Skipped(error.path, error.reason))
                if not self.learn:
                    return skipped[0]
        raise UserError(f"{len(skipped)} images in a row cannot be read, first {skipped[0].path}: {skipped[0].reason}")

    def batch(self, keys: list[Key]) -> list[Sample | Skipped]:
        """The samples of some (epoch, row)."""
        return [self[key] for key in keys]

    def _sample(self, key: Key, row: int, skipped: list[Skipped]) -> Sample:
        image = decode_file(self.images.files[row], self.channels)
        draws = sample_generator(self.seed, *key)
        short = draws.choice(self.sizes)
        mirrored = self.learn and draws.random() < 0.5
        width, height = seen_size(image.width, image.height, short, self.longest)
        truth = self.images.truth[row]
        boxes = scaled_boxes(truth.boxes, width / image.width, height / image.height, width, height)
        keep = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) > 0
        if self.learn:
            keep &= ~truth.crowd
        masks = self._masks(row, height, width)[keep] if self.masks else None
        pixels = to_array(image.resize((width, height), Image.Resampling.BILINEAR))
        boxes = boxes[keep]
        if mirrored:
            pixels, boxes = np.ascontiguousarray(pixels[:, :, ::-1]), mirrored_boxes(boxes, width)
            masks = None if masks is None else np.ascontiguousarray(masks[:, :, ::-1])
        return Sample(row, pixels, boxes, truth.labels[keep], masks, (image.height, image.width), skipped)

    def _masks(self, row: int, height: int, width: int) -> np.ndarray:
        instances, index = self.images.masks[row]
        return resized_masks(instances.masks(index, crowds=True).astype(np.uint8), height, width)


def seen_size(width: int, height: int, short: int, longest: int) -> tuple[int, int]:
    """Width and height at which an image is seen: the shorter side ``short``, the longer at most ``longest``."""
    scale = min(short / min(width, height), longest / max(width, height))
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def scaled_boxes(boxes: np.ndarray, across: float, down: float, width: int, height: int) -> np.ndarray:
    """Boxes ``[M, 4]`` in pixels of a resized image, cut off at its borders."""
    scaled = boxes.astype(np.float32) * np.array([across, down, across, down], dtype=np.float32)
    return scaled.clip(0, np.array([width, height, width, height], dtype=np.float32))


def mirrored_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes ``[M, 4]`` of the image seen in a mirror."""
    found = boxes.copy()
    found[:, 0], found[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return found


def resized_masks(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks ``[M, H, W]`` in another size, each place taking the nearest."""
    rows = ((np.arange(height) + 0.5) * masks.shape[1] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * masks.shape[2] / width).astype(np.int64)
    return masks[:, rows[:, None], columns]


def load(samples: Samples, keys: Iterator[list[Key]], protocol: Protocol) -> Iterator[list[Sample | Skipped]]:
    """Batches of samples, made by the protocol's workers.

    Raises:
        UserError: a worker died.
    """
    return iterate_workers(
        samples.batch, keys, protocol.workers, plugins=protocol.plugins, start_method=protocol.start_method
    )


def _voc(root: str, year: str, split: str, classes: Sequence[str] | None) -> ObjectImages:
    found = read_voc_boxes(root, split, year=year, classes=classes)
    truth = []
    for image in found.images:
        areas = (image.boxes[:, 2:] - image.boxes[:, :2]).prod(axis=1)
        single = np.zeros(len(image.labels), dtype=bool)
        size = (image.height, image.width)
        truth.append(TrueObjects(image.boxes, image.labels, areas, single, image.difficult, None, size))
    return ObjectImages([image.image for image in found.images], truth, found.classes)
