#!/usr/bin/env python3
"""Builds an uncurated set: images of many kinds without labels, a few kinds very often, most of them rarely.

    pip install elpv-dataset
    python extra_scripts/prepare_fashion_mnist.py
    python extra_scripts/prepare_longtail.py --out data/longtail

Classes of Fashion-MNIST, ELPV, emoji, stamps, and squares of single photographs are put in a random order, the fourteen
largest first, and the class of rank r gets a share of 1/r (Zipf), as far as it has images. What is written:

    images/*.jpg    11,086 images of 185 classes, from 2,069 down to 3; names and order tell nothing
    labels.csv      path,label: only for measuring; training reads the folder
    SOURCE.txt

LICENCES: see SOURCE.txt; ELPV is for non-commercial use, emoji of Apple and Facebook are not to be published.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import prepare_elpv
from cutouts import fashion_mnist
from image_packages import EMOJI_NOTICE, PHOTO_NOTICE, STAMP_NOTICE, Recipe, arguments_of, run
from picture_sources import drawings, on_colour, open_png, photo_crop, photos, stable_hash, stamps
from PIL import Image
from prepare_emoji import PrepareError

SEED = 0
TOTAL = 12000
"""Images wanted; classes that are too small make it fewer."""
LARGE = 14
MOST_OF_A_GARMENT, CROPS_OF_A_PHOTO = 4000, 60
MIN_CONCEPTS, MAX_CONCEPTS = 4, 60
SIDE = 128
GARMENTS = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankleboot")
NOTICE = EMOJI_NOTICE + STAMP_NOTICE + "Fashion-MNIST: MIT licence.\n" + PHOTO_NOTICE + "\n" + prepare_elpv.NOTICE

Draw = Callable[[np.random.Generator], Image.Image]
"""Gives an image, RGB."""


def garment(pixels: np.ndarray) -> Draw:
    """An image of Fashion-MNIST at 64 x 64."""
    return lambda rng: Image.fromarray(pixels).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)


def on_some_colour(source: Path | bytes) -> Draw:
    """A picture with transparency on a light colour, at most 128 pixels wide and high."""

    def draw(rng: np.random.Generator) -> Image.Image:
        colour = tuple(int(value) for value in rng.integers(160, 256, 3))
        if isinstance(source, bytes):
            image = on_colour(open_png(source), colour)
        else:
            with Image.open(source) as stored:
                image = on_colour(stored, colour)
        image.thumbnail((SIDE, SIDE))
        return image

    return draw


def cell(path: Path) -> Draw:
    """A photo of ELPV at 128 x 128."""

    def draw(rng: np.random.Generator) -> Image.Image:
        with Image.open(path) as stored:
            return stored.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)

    return draw


def square(path: Path) -> Draw:
    """A random square of a photograph."""
    return lambda rng: photo_crop(path, rng, SIDE)


def emoji_by_kind(packages: Path) -> dict[str, list[Draw]]:
    """Emoji of kinds with enough concepts; of kinds with too many a fixed part."""
    found = [one for one in drawings(packages, toned=False) if one.category != "Component"]
    concepts: dict[str, set[str]] = {}
    for one in found:
        concepts.setdefault(one.kind, set()).add(one.concept)
    kept = {
        kind: set(sorted(names, key=lambda name: stable_hash(f"0:{name}"))[:MAX_CONCEPTS])
        for kind, names in concepts.items()
        if len(names) >= MIN_CONCEPTS
    }
    classes: dict[str, list[Draw]] = {}
    for one in found:
        if one.concept in kept.get(one.kind, ()):
            classes.setdefault(f"emoji/{one.kind}", []).append(on_some_colour(one.png))
    return classes


def cells_by_kind(source: Path) -> dict[str, list[Draw]]:
    """ELPV by kind of silicon.

    Raises:
        PrepareError: the package is not right.
    """
    table = source / "labels.csv"
    try:
        rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise PrepareError(f"{table} cannot be read: {error.strerror}; reinstall the package elpv-dataset") from error
    classes: dict[str, list[Draw]] = {}
    for row in rows:
        if len(row) != 3 or not (source / row[0]).is_file():
            raise PrepareError(f"{table} has the line {' '.join(row)!r}; reinstall the package elpv-dataset")
        classes.setdefault(f"elpv/{row[2]}", []).append(cell(source / row[0]))
    return classes


def collect(options: argparse.Namespace) -> dict[str, list[Draw]]:
    """All classes.

    Raises:
        PrepareError: a source is missing.
    """
    images, labels = fashion_mnist(options.fashion, "train")
    classes = {
        f"fashion/{name}": [garment(images[place]) for place in np.flatnonzero(labels == number)[:MOST_OF_A_GARMENT]]
        for number, name in enumerate(GARMENTS)
    }
    classes.update(emoji_by_kind(options.packages))
    try:
        classes.update(cells_by_kind(options.elpv or prepare_elpv.package_folder()))
    except prepare_elpv.PrepareError as error:
        raise PrepareError(str(error)) from error
    for stamp in stamps(options.packages, photos_only=False):
        classes.setdefault(f"stamps/{stamp.top}", []).append(on_some_colour(stamp.path))
    for number, path in enumerate(photos(options.packages)):
        classes[f"photo/{number:02d}"] = [square(path)] * CROPS_OF_A_PHOTO
    return classes


def order_and_sizes(counts: dict[str, int], rng: np.random.Generator) -> list[tuple[str, int]]:
    """Classes by rank, and how many images of each are wanted (some have fewer)."""
    large = sorted(counts, key=lambda name: (-counts[name], name))[:LARGE]
    rest = sorted(counts.keys() - set(large))
    order = [group[place] for group in (large, rest) for place in rng.permutation(len(group))]
    shares = 1 / np.arange(1, len(order) + 1)
    sizes = np.maximum(1, np.round(TOTAL * shares / shares.sum())).astype(int)
    return [(name, int(size)) for name, size in zip(order, sizes, strict=True)]


def make(folder: Path, options: argparse.Namespace) -> str:
    """Writes images and labels."""
    classes = collect(options)
    rng = np.random.default_rng(SEED)
    drawn: list[tuple[str, bytes]] = []
    for name, size in order_and_sizes({name: len(items) for name, items in classes.items()}, rng):
        items = classes[name]
        for place in rng.permutation(len(items))[:size]:
            stream = io.BytesIO()
            items[place](rng).save(stream, "JPEG", quality=90)
            drawn.append((name, stream.getvalue()))
    (folder / "images").mkdir()
    files = [f"images/{number:06d}.jpg" for number in rng.permutation(len(drawn))]
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["path", "label"])
        for file, (name, content) in sorted(zip(files, drawn, strict=True)):
            (folder / file).write_bytes(content)
            rows.writerow([file, name])
    counts = Counter(name for name, _ in drawn).most_common()
    rare = sum(count < 20 for _, count in counts)
    return (
        f"{len(drawn):,d} images of {len(counts)} classes; largest {counts[0][0]} ({counts[0][1]:,d}), smallest "
        f"{counts[-1][0]} ({counts[-1][1]}), {rare} classes have fewer than 20"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the folder is complete."""
    parser = arguments_of(__doc__, "data/longtail")
    parser.add_argument("--fashion", type=Path, default=Path("data/fashion_mnist"), help="default: %(default)s")
    parser.add_argument(
        "--elpv", type=Path, help="folder with labels.csv and images/ (default: that of the installed package)"
    )
    return run(Recipe("long tail", NOTICE, make), parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
