"""Cut-outs of ten classes to paste on photographs: stamps, emoji of four vendors, garments of Fashion-MNIST.

They are divided into train and val by concept: a stamp's file, an emoji's code point with all vendors and variants,
Fashion-MNIST's own split. No concept is on both sides.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from picture_sources import drawings, split_of, stamps
from PIL import Image, ImageEnhance
from prepare_emoji import PrepareError
from prepare_fashion_mnist import PrepareError as NoFashion
from prepare_fashion_mnist import read_folder
from scipy import ndimage

CLASSES = ("mammal", "bird", "insect", "fruit", "flower", "vehicle", "garment", "shoe", "bag", "face")
LARGEST_SIDE = 256
TRAIN_STEP, VAL_STEP = 20, 10
"""One garment of so many is taken: 3,000 and 1,000."""

_OF_EMOJI = {
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-bug": "insect",
    "food-fruit": "fruit",
    "plant-flower": "flower",
    "transport-ground": "vehicle",
    "transport-air": "vehicle",
    "transport-water": "vehicle",
}
_OF_STAMP = {
    "mammals": "mammal",
    "marsupials": "mammal",
    "birds": "bird",
    "insects": "insect",
    "fruit": "fruit",
    "flowers": "flower",
}
_OF_GARMENT = ("garment", "garment", "garment", "garment", "garment", "shoe", "garment", "shoe", "bag", "shoe")
_WITHOUT_OBJECT = (
    "roller_skate wing busstop motorway railway_track oil_drum fuelpump wheel rotating_light traffic_light "
    "vertical_traffic_light octagonal_sign construction anchor ring_buoy seat airplane_departure airplane_arriving "
    "parachute satellite manual_wheelchair feet paw_prints feather nest_with_eggs spider_web microbe"
)
"""Names of emoji that have a kind of the list above and show nothing of the class."""


class Item(Protocol):
    """Something that can be cut out."""

    def cut_out(self, rng: np.random.Generator) -> Image.Image:
        """RGBA, without an empty margin."""


class Picture:
    """A picture with transparency, in a file or in memory."""

    def __init__(self, source: Path | bytes):
        self.source = source

    def cut_out(self, rng: np.random.Generator) -> Image.Image:
        return self._image

    @cached_property
    def _image(self) -> Image.Image:
        with Image.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source) as stored:
            image = stored.convert("RGBA")
        image = image.crop(_bounds(image, 16) or (0, 0, *image.size))
        if max(image.size) > LARGEST_SIDE:
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        return image


class Garment:
    """A garment ``[28, 28]`` uint8 on black: enlarged, its largest connected part kept, tinted at random."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def cut_out(self, rng: np.random.Generator) -> Image.Image:
        grey, alpha = self._enlarged
        tint = rng.uniform(0.45, 1.0, 3)
        colours = np.clip((60 + 0.76 * grey)[..., None] * tint, 0, 255)
        image = Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8))
        return image.crop(image.getchannel("A").getbbox())

    @cached_property
    def _enlarged(self) -> tuple[np.ndarray, np.ndarray]:
        """Grey values and opacity ``[112, 112]``, 0..255."""
        image = Image.fromarray(self.pixels).resize((112, 112), Image.Resampling.BICUBIC)
        grey = np.asarray(image).astype(np.float32)
        mask = ndimage.binary_fill_holes(grey > 20)
        parts, count = ndimage.label(mask)
        if count > 1:
            mask = parts == 1 + np.argmax(ndimage.sum(mask, parts, range(1, count + 1)))
        return grey, np.clip(ndimage.gaussian_filter(mask.astype(np.float32), 1.2) * 2 - 0.5, 0, 1) * 255


def _bounds(image: Image.Image, above: int) -> tuple[int, int, int, int] | None:
    """Box of the pixels whose opacity is above a value of 0..255."""
    return image.getchannel("A").point([255 * (value > above) for value in range(256)]).getbbox()


Pool = dict[str, list[list[Item]]]
"""By source (``emoji``, ``stamp``, ``fashion``): a list of concepts, each with its items."""


def cutout_pools(packages: Path, fashion: Path) -> dict[str, dict[str, Pool]]:
    """The items of every split and class.

    Args:
        packages: folder of packages.
        fashion: folder of the four files of Fashion-MNIST.

    Raises:
        PrepareError: a source is missing.
    """
    pools = stamp_library(packages)
    by_concept: dict[tuple[str, str], list[Item]] = {}
    for one in drawings(packages, toned=False):
        name = _class_of_emoji(one.kind)
        if name is None or one.name in _WITHOUT_OBJECT.split() or one.code.startswith("1F3FB"):
            continue
        if (name, one.concept) not in by_concept:
            by_concept[name, one.concept] = []
            pools[split_of(one.concept)][name].setdefault("emoji", []).append(by_concept[name, one.concept])
        by_concept[name, one.concept].append(Picture(one.png))
    _add_garments(pools, fashion)
    return pools


def stamp_library(packages: Path) -> dict[str, dict[str, Pool]]:
    """The same with stamps only.

    Raises:
        PrepareError: the stamps are missing.
    """
    pools: dict[str, dict[str, Pool]] = {split: {name: {} for name in CLASSES} for split in ("train", "val")}
    for stamp in stamps(packages, photos_only=True):
        name = _OF_STAMP.get(stamp.sub)
        is_vehicle = stamp.top == "vehicles" or (stamp.top, stamp.sub) == ("military", "vehicles")
        if name is None and is_vehicle and not any(part in stamp.path.name for part in ("wheel", "tire")):
            name = "vehicle"
        if name is not None:
            pools[split_of(stamp.path.name)][name].setdefault("stamp", []).append([Picture(stamp.path)])
    return pools


def _class_of_emoji(kind: str) -> str | None:
    if kind.startswith(("face-", "cat-face")) and kind != "face-costume":
        return "face"
    return _OF_EMOJI.get(kind)


def _add_garments(pools: dict[str, dict[str, Pool]], fashion: Path) -> None:
    for split, prefix, step in (("train", "train", TRAIN_STEP), ("val", "t10k", VAL_STEP)):
        images, labels = fashion_mnist(fashion, prefix)
        for number in range(0, len(images), step):
            item = Garment(images[number])
            pools[split][_OF_GARMENT[labels[number]]].setdefault("fashion", []).append([item])


def fashion_mnist(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[N, 28, 28]`` and labels ``[N]`` of ``train`` or ``t10k``.

    Raises:
        PrepareError: the folder has not the four files.
    """
    try:
        contents = read_folder(folder)
    except (NoFashion, OSError) as error:
        raise PrepareError(
            f"{error}. Make it:  python extra_scripts/prepare_fashion_mnist.py --out {folder}"
        ) from error
    images = np.frombuffer(contents[f"{prefix}-images-idx3-ubyte"], dtype=np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.frombuffer(contents[f"{prefix}-labels-idx1-ubyte"], dtype=np.uint8, offset=8)


def place(image: Image.Image, side: float, rng: np.random.Generator, turn: float = 20) -> Image.Image | None:
    """A cut-out with its longest side at ``side`` pixels, mirrored or not, turned, lighter or darker.

    None if nothing of it can be seen.
    """
    factor = side / max(image.size)
    size = (max(4, round(image.width * factor)), max(4, round(image.height * factor)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-turn, turn), Image.Resampling.BICUBIC, expand=True)
    lit = ImageEnhance.Brightness(image.convert("RGB")).enhance(rng.uniform(0.7, 1.25))
    lit.putalpha(image.getchannel("A"))
    box = _bounds(lit, 64)
    return lit.crop(box) if box else None


def paste(canvas: Image.Image, image: Image.Image, left: int, top: int) -> np.ndarray:
    """Pastes a cut-out on an RGBA canvas, in place; it may stand over the edges.

    Returns:
        ``[H, W]`` bool, the pixels that it covers by more than half.
    """
    layer = Image.new("RGBA", canvas.size)
    layer.paste(image, (left, top))
    canvas.alpha_composite(layer)
    return np.asarray(layer.getchannel("A")) > 127


def pick(pools: Mapping[str, Pool], name: str, rng: np.random.Generator) -> Item:
    """A random item of a class: source, concept and drawing one after the other."""
    sources = sorted(pools[name])
    concepts = pools[name][sources[rng.integers(len(sources))]]
    concept = concepts[rng.integers(len(concepts))]
    return concept[rng.integers(len(concept))]
