#!/usr/bin/env python3
"""Builds a copy-detection set laid out like Copydays: photographs, and copies of them changed in many ways.

    python extra_scripts/prepare_copydays.py --out data/copydays

What is written (224 x 224 pixels):

    original/<number>00.jpg               178: squares of 40 photographs, and cut-out stamps on a plain colour
    jpegqual/{5,15,30,75}/                half the size, at this quality
    crops/{20,40,60,80}/                  this percentage of the surface removed, brought back to size
    strong/                               turned, blurred, often grey, small on another photograph, low quality
    distractors/                          681: other stamps, 20 squares of each of 20 other photographs
    SOURCE.txt

Originals, distractors and the grounds of the strong copies come from different photographs and stamps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from image_packages import PHOTO_NOTICE, STAMP_NOTICE, Recipe, arguments_of, run
from picture_sources import Stamp, on_colour, photo_crop, photos, stable_hash, stamps
from PIL import Image, ImageFilter

SEED = 0
SIZE = 224
QUALITIES = (5, 15, 30, 75)
REMOVED = (20, 40, 60, 80)
CROPS_OF_DISTRACTORS = 20


def colour(rng: np.random.Generator) -> tuple[int, ...]:
    """A light background."""
    return tuple(int(value) for value in rng.integers(140, 256, 3))


def originals(pictures: list[Path], found: list[Stamp], rng: np.random.Generator) -> list[Image.Image]:
    """Squares of photographs, and stamps in the middle of a square of their background."""
    made = [photo_crop(path, rng, SIZE) for path in pictures]
    for stamp in found:
        image = _stamp(stamp, rng)
        image.thumbnail((SIZE, SIZE))
        corner = image.getpixel((0, 0))
        square = Image.new("RGB", (SIZE, SIZE), corner if isinstance(corner, tuple) else 0)
        square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        made.append(square)
    return made


def _stamp(stamp: Stamp, rng: np.random.Generator) -> Image.Image:
    with Image.open(stamp.path) as image:
        return on_colour(image, colour(rng))


def write_copies(folder: Path, name: str, image: Image.Image, grounds: list[Path], rng: np.random.Generator) -> None:
    """Writes an original and its copies of every block."""
    image.save(folder / "original" / name, quality=92)
    half = image.resize((SIZE // 2, SIZE // 2), Image.Resampling.BILINEAR)
    for quality in QUALITIES:
        half.save(folder / "jpegqual" / str(quality) / name, quality=quality)
    for percent in REMOVED:
        side = round(SIZE * (1 - percent / 100) ** 0.5)
        left, top = (int(value) for value in rng.integers(0, SIZE - side + 1, 2))
        crop = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        crop.save(folder / "crops" / str(percent) / name, quality=90)
    turned = image.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    blurred = turned.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))
    ground = photo_crop(grounds[rng.integers(len(grounds))], rng, SIZE)
    side = int(SIZE * rng.uniform(0.55, 0.8))
    left, top = (int(value) for value in rng.integers(0, SIZE - side + 1, 2))
    small = blurred.resize((side, side), Image.Resampling.BILINEAR)
    ground.paste(small.convert("L").convert("RGB") if rng.random() < 0.3 else small, (left, top))
    ground.save(folder / "strong" / name, quality=int(rng.integers(20, 60)))


def write_distractors(folder: Path, pictures: list[Path], found: list[Stamp], rng: np.random.Generator) -> int:
    """Writes distractors; how many there are."""
    count = 0
    for stamp in found:
        image = _stamp(stamp, rng)
        image.thumbnail((SIZE, SIZE))
        image.resize((SIZE, SIZE)).save(folder / f"{count:05d}.jpg", quality=90)
        count += 1
    for path in pictures:
        for _ in range(CROPS_OF_DISTRACTORS):
            photo_crop(path, rng, SIZE).save(folder / f"{count:05d}.jpg", quality=90)
            count += 1
    return count


def make(folder: Path, options: argparse.Namespace) -> str:
    """Writes all blocks."""
    blocks = [*(f"jpegqual/{quality}" for quality in QUALITIES), *(f"crops/{percent}" for percent in REMOVED)]
    for name in ("original", "strong", "distractors", *blocks):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng([SEED, 5])
    pictures = list(enumerate(photos(options.packages)))
    grounds = [path for number, path in pictures if number % 7 == 0]
    of_originals = [path for number, path in pictures if number % 7 > 2]
    of_distractors = [path for number, path in pictures if number % 7 in (1, 2)]
    even = [one for one in stamps(options.packages, photos_only=True) if stable_hash(f"0:{one.path.name}") % 2 == 0]
    odd = [one for one in stamps(options.packages, photos_only=False) if stable_hash(f"0:{one.path.name}") % 2]
    images = originals(of_originals, even, rng)
    for number, image in enumerate(images):
        write_copies(folder, f"{2000 + number}00.jpg", image, grounds, rng)
    count = write_distractors(folder / "distractors", of_distractors, odd, rng)
    return f"{len(images)} originals, each in {1 + len(blocks)} copies, and {count} distractors"


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the folder is complete."""
    recipe = Recipe("copies of photographs and stamps", PHOTO_NOTICE + STAMP_NOTICE, make)
    return run(recipe, arguments_of(__doc__, "data/copydays").parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
