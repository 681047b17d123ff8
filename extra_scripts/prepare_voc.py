#!/usr/bin/env python3
"""Builds a small detection set, as a VOCdevkit and as COCO instances: cut-outs of ten classes on photographs.

    python extra_scripts/prepare_fashion_mnist.py
    python extra_scripts/prepare_voc.py --out data/voc

Mammals, birds, insects, fruit, flowers, vehicles, garments, shoes, bags and faces (stamps, emoji, Fashion-MNIST), one
to five in an image. No concept and no photograph is on both sides; photographs that show one of the classes are left
out. Boxes and masks are of the part that can be seen. Image i of a split depends on its number only. What is written:

    VOCdevkit/VOC2007/JPEGImages/<id>.jpg          1,000 (trainval) and 300 (test), 160 x 160 pixels
    VOCdevkit/VOC2007/Annotations/<id>.xml         difficult: less than 60 % can be seen
    VOCdevkit/VOC2007/ImageSets/Main/              <split>.txt, <class>_<split>.txt with 1, 0 or -1
    VOCdevkit/VOC2007/ImageSets/Segmentation/      <split>.txt
    VOCdevkit/VOC2007/Segmentation{Class,Object}/  masks without borders; classes 1 to 10 sorted by name
    {train,val}/<number>.jpg                       the same images
    annotations/instances_{train,val}.json         COCO, masks as run lengths
    SOURCE.txt
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cutouts import CLASSES, Pool, cutout_pools, paste, pick, place
from image_packages import EMOJI_NOTICE, PHOTO_NOTICE, STAMP_NOTICE, Recipe, arguments_of, run
from picture_sources import photo_crop, photos
from PIL import Image
from prepare_davis import palette
from prepare_emoji import PrepareError

SEED = 0
SPLITS = {"train": "trainval", "val": "test"}
"""Names of the splits in COCO and VOC."""
DIFFICULT = 0.6
LARGEST_COUNT, TRIES = 5, 40
SIDES = (0.16, 0.55)
"""Smallest and largest side of an object as a share of the image's."""

_SHOWS_A_CLASS = (
    "FreshFlower Garden YellowFlower apple baboon butterfly fruits messi5 squirrel chicky chelsea basketball1 free_by "
    "friends astronaut motorcycle licenseplate OneStandsOut seeding Picture_0B scenetext01 Wine graf1 TwoWings "
    "LadyBird Autumn"
)
"""Parts of the names of photographs."""
_SUPER = dict(zip(CLASSES, ["animal"] * 3 + ["plant"] * 2 + ["vehicle"] + ["clothing"] * 3 + ["person"], strict=True))
NOTICE = EMOJI_NOTICE + STAMP_NOTICE + "Fashion-MNIST: MIT licence.\n" + PHOTO_NOTICE


@dataclass
class Thing:
    """An object: its class, the pixels that can be seen ``[S, S]`` bool, its size in pixels before it was hidden."""

    name: str
    mask: np.ndarray
    whole: float

    @property
    def visible(self) -> float:
        """Share that can be seen, 0..1."""
        return float(self.mask.sum() / self.whole)

    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the part that can be seen; right and bottom are the first pixels outside."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def compose(
    pools: dict[str, Pool], grounds: list[Path], rng: np.random.Generator, size: int
) -> tuple[Image.Image, list[Thing]]:
    """An image and its objects; of every object at least 40 % can be seen."""
    canvas = photo_crop(grounds[rng.integers(len(grounds))], rng, size).convert("RGBA")
    things: list[Thing] = []
    count = rng.integers(1, LARGEST_COUNT + 1)
    for _ in range(TRIES):
        if len(things) >= count:
            break
        name = CLASSES[rng.integers(len(CLASSES))]
        image = pick(pools, name, rng).cut_out(rng)
        side = size * np.exp(rng.uniform(*np.log(SIDES)))
        placed = place(image, side, rng)
        if placed is None:
            continue
        (width, height), over = placed.size, (placed.width // 6, placed.height // 6)
        left = int(rng.integers(-width // 6, size - width + over[0] + 1))
        top = int(rng.integers(-height // 6, size - height + over[1] + 1))
        trial = canvas.copy()
        mask = paste(trial, placed, left, top)
        whole = float((np.asarray(placed.getchannel("A")) > 127).sum())
        if mask.sum() < 40 or mask.sum() < 0.6 * whole:
            continue
        if any((thing.mask & ~mask).sum() < max(30, 0.4 * thing.whole) for thing in things):
            continue
        for thing in things:
            thing.mask &= ~mask
        canvas = trial
        things.append(Thing(name, mask.copy(), whole))
    return canvas.convert("RGB"), things


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of a mask ``[H, W]``: column by column, beginning with pixels outside."""
    flat = np.concatenate([[False], mask.reshape(-1, order="F")])
    ends = np.flatnonzero(np.diff(flat))
    return [int(length) for length in np.diff(np.concatenate([[0], ends, [mask.size]]))]


class VocWriter:
    """Writes images, annotations and masks of one split below ``VOCdevkit/VOC2007``."""

    def __init__(self, folder: Path, split: str):
        self.base, self.split = folder / "VOCdevkit/VOC2007", SPLITS[split]
        self.digit = "0" if split == "train" else "1"
        self.labels: dict[str, list[int]] = {}
        for name in (
            *("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"),
            *("ImageSets/Main", "ImageSets/Segmentation"),
        ):
            (self.base / name).mkdir(parents=True, exist_ok=True)

    def add(self, file: Path, number: int, size: int, things: list[Thing]) -> None:
        """An image that lies in ``file``; numbers count from 1."""
        name = f"{self.digit}{number:05d}"
        try:
            os.link(file, self.base / "JPEGImages" / f"{name}.jpg")
        except OSError:  # a file system without hard links
            shutil.copyfile(file, self.base / "JPEGImages" / f"{name}.jpg")
        self.labels[name] = [-1] * len(CLASSES)
        kinds, objects = np.zeros((size, size), dtype=np.uint8), np.zeros((size, size), dtype=np.uint8)
        entries = []
        for position, thing in enumerate(things, 1):
            kinds[thing.mask], objects[thing.mask] = 1 + sorted(CLASSES).index(thing.name), position
            difficult = int(round(thing.visible, 3) < DIFFICULT)
            column = CLASSES.index(thing.name)
            self.labels[name][column] = max(self.labels[name][column], 1 - difficult)
            left, top, right, bottom = thing.box()
            entries.append(
                f"  <object>\n    <name>{thing.name}</name>\n    <pose>Unspecified</pose>\n"
                f"    <truncated>0</truncated>\n    <difficult>{difficult}</difficult>\n"
                f"    <bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>\n  </object>\n"
            )
        (self.base / "Annotations" / f"{name}.xml").write_text(
            f"<annotation>\n  <folder>VOC2007</folder>\n  <filename>{name}.jpg</filename>\n"
            f"  <size><width>{size}</width><height>{size}</height><depth>3</depth></size>\n"
            f"  <segmented>1</segmented>\n{''.join(entries)}</annotation>\n",
            encoding="utf-8",
        )
        for kind, mask in (("Class", kinds), ("Object", objects)):
            indexed = Image.fromarray(mask)
            indexed.putpalette(palette())
            indexed.save(self.base / f"Segmentation{kind}" / f"{name}.png")

    def finish(self) -> None:
        """The lists of the split."""
        names = "".join(f"{name}\n" for name in self.labels)
        for kind in ("Main", "Segmentation"):
            (self.base / "ImageSets" / kind / f"{self.split}.txt").write_text(names, encoding="utf-8")
        for column, name in enumerate(CLASSES):
            lines = "".join(f"{image} {labels[column]:2d}\n" for image, labels in self.labels.items())
            (self.base / "ImageSets/Main" / f"{name}_{self.split}.txt").write_text(lines, encoding="utf-8")


def coco_objects(things: list[Thing], image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO's annotations of an image."""
    found = []
    for number, thing in enumerate(things):
        left, top, right, bottom = thing.box()
        found.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": 1 + CLASSES.index(thing.name),
                "bbox": [left, top, right - left, bottom - top],
                "area": int(thing.mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(thing.mask.shape), "counts": run_lengths(thing.mask)},
                "visible": round(thing.visible, 3),
            }
        )
    return found


def make(folder: Path, options: argparse.Namespace) -> str:
    """Writes both splits in both forms."""
    pools = cutout_pools(options.packages, options.fashion)
    for split, name in ((split, name) for split in SPLITS for name in CLASSES):
        if not pools[split][name]:
            raise PrepareError(f"there is no {name} for {split}: these are other releases of the packages")
    # The last parts only: folders above the packages may be called anything.
    plain = [
        path
        for path in photos(options.packages)
        if not any(word in "/".join(path.parts[-4:]) for word in _SHOWS_A_CLASS.split())
    ]
    grounds = {
        "train": [path for number, path in enumerate(plain) if number % 4],
        "val": [path for number, path in enumerate(plain) if number % 4 == 0],
    }
    counts = []
    for number, split in enumerate(SPLITS):
        counts.append(write_split(folder, split, number, pools[split], grounds[split], options))
    return "; ".join(counts)


def write_split(
    folder: Path, split: str, number: int, pools: dict[str, Pool], grounds: list[Path], options: argparse.Namespace
) -> str:
    """Writes a split; what it holds, in words."""
    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    voc, images, objects = VocWriter(folder, split), [], []
    size = options.size
    for index in range(getattr(options, split)):
        rng = np.random.default_rng([SEED, number, index])
        image, things = compose(pools, grounds, rng, size)
        file = folder / split / f"{index:06d}.jpg"
        image.save(file, quality=int(rng.integers(82, 96)))
        images.append({"id": index + 1, "file_name": file.name, "width": size, "height": size})
        objects += coco_objects(things, index + 1, len(objects) + 1)
        voc.add(file, index + 1, size, things)
    voc.finish()
    categories = [{"id": 1 + place, "name": name, "supercategory": _SUPER[name]} for place, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return f"{split} ({SPLITS[split]}): {len(images):,d} images, {len(objects):,d} objects"


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the folder is complete."""
    parser = arguments_of(__doc__, "data/voc")
    parser.add_argument("--fashion", type=Path, default=Path("data/fashion_mnist"), help="default: %(default)s")
    parser.add_argument("--train", type=int, default=1000, help="images of train (default: %(default)s)")
    parser.add_argument("--val", type=int, default=300, help="images of val (default: %(default)s)")
    parser.add_argument("--size", type=int, default=160, help="side of an image in pixels (default: %(default)s)")
    options = parser.parse_args(arguments)
    if min(options.train, options.val) < 1 or options.size < 64:
        parser.error("--train and --val must be at least 1, --size at least 64")
    return run(Recipe("cut-outs on photographs", NOTICE, make), options)


if __name__ == "__main__":
    raise SystemExit(main())
