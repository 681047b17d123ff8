"""Pictures in the packages: emoji of four vendors, Tux Paint's stamps, photographs. Orders and choices are fixed."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from image_packages import PHOTO_PACKAGES, STAMP_PACKAGE, debian_package, emoji_packages, wheel
from PIL import Image
from prepare_emoji import VARIANTS, VENDORS, PrepareError, read_package

TONES = re.compile(r"-?1F3F[BCDEF]")
VAL_SHARE = 0.25
PHOTO_SIDE = 1600
"""Photographs are reduced to this many pixels, as far as only crops of them are wanted."""

BACKGROUNDS = "usr/share/backgrounds/"
EXAMPLES = "usr/share/doc/opencv-doc/examples/"
PHOTOS = {
    BACKGROUNDS: "Bridge_by Dragonfly_by Picture_0B Picture_1A Wine_by aitzgorri_by free_by friends_by greentock_by "
    "life_by picosdeeuropa_by seeding_by sunset_by Kleiber_by",
    BACKGROUNDS
    + "mate/nature/": "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood "
    "YellowFlower",
    "usr/share/wallpapers/": "Autumn BytheWater ColorfulCups EveningGlow FallenLeaf OneStandsOut Path Kite ColdRipple "
    "DarkestHour",
    EXAMPLES + "data/": "aero1 aero3 aloeL apple.jpg baboon board building butterfly fruits home leuvenA licenseplate "
    "messi5 rubberwhale1 squirrel_cls stuff graf1 basketball1 chicky_512 blox",
    EXAMPLES + "text/": "scenetext01 scenetext02 scenetext03 scenetext04 scenetext05 scenetext06",
    "skimage/data/": "astronaut chelsea coffee.png motorcycle_left rocket brick gravel grass",
}
"""Beginnings of file names by folder; those that a release of the packages lacks are left out."""
NUM_PHOTOS = 70
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def stable_hash(text: str) -> int:
    """32 bits that depend on the text only."""
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:8], 16)


def split_of(key: str) -> str:
    """``train`` or ``val``, about a quarter, by a hash of the key."""
    return "val" if stable_hash(key) / 2**32 < VAL_SHARE else "train"


@dataclass(frozen=True)
class Drawing:
    """One vendor's drawing of an emoji.

    Attributes:
        code: its code points; ``toned`` if it is a variant by skin tone.
        category, kind, name: as in the vendor's table.
    """

    vendor: str
    code: str
    toned: bool
    category: str
    kind: str
    name: str
    png: bytes

    @property
    def concept(self) -> str:
        """The code points without skin tone, gender, direction."""
        return VARIANTS.sub("", self.code)

    @property
    def untoned(self) -> str:
        """The code points without skin tone."""
        return TONES.sub("", self.code).replace("-FE0F", "")


def drawings(packages: Path, *, toned: bool) -> list[Drawing]:
    """All emoji, vendor by vendor in the order of their tables, with or without variants by skin tone.

    Raises:
        PrepareError: a package is missing, damaged or another one.
    """
    folder = emoji_packages(packages)
    return [found for vendor in VENDORS for found in _drawings_of(folder, vendor, toned)]


def _drawings_of(folder: Path, vendor: str, toned: bool) -> Iterator[Drawing]:
    table, images = read_package(folder, vendor)
    for row in table:
        try:
            shared = (row["category"], row["subcategory"], row["short_name"])
            variants = row.get("skin_variations", {}).values() if toned else ()
            for entry, is_toned in [(row, False), *((variant, True) for variant in variants)]:
                if entry.get(f"has_img_{vendor}") and entry["image"] in images:
                    if not re.fullmatch(r"[0-9A-F]+(-[0-9A-F]+)*", entry["unified"]):  # becomes a file's name
                        raise PrepareError(f"emoji.json of {vendor} has a strange code point: {entry['unified']!r:.80}")
                    yield Drawing(vendor, entry["unified"], is_toned, *shared, images[entry["image"]])
        except (KeyError, TypeError, AttributeError) as error:
            raise PrepareError(f"emoji.json of {vendor} has a row that cannot be understood: {row!r:.80}") from error


def on_colour(image: Image.Image, colour: tuple[int, ...] = (255, 255, 255)) -> Image.Image:
    """An image with transparency on a plain background, RGB."""
    ground = Image.new("RGBA", image.size, (*colour, 255))
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")


def open_png(png: bytes) -> Image.Image:
    """A PNG from memory, decoded.

    Raises:
        PrepareError: it cannot be read.
    """
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PrepareError(f"an emoji cannot be read: {error}") from error
    return image


@dataclass(frozen=True)
class Stamp:
    """A picture with transparency of Tux Paint, with the names of its first two folders."""

    path: Path
    top: str
    sub: str


def stamps(packages: Path, *, photos_only: bool) -> list[Stamp]:
    """The stamps, without symbols and mirrored ones, sorted by path; optionally only cut-outs of photographs.

    Drawings are told from photographs by their few colours: a quarter of a photograph's pixels have a colour of their
    own (of 64 levels a channel, at 64 x 64 pixels).

    Raises:
        PrepareError: the package cannot be had, or holds none.
    """
    folder = debian_package(packages, STAMP_PACKAGE) / "usr/share/tuxpaint/stamps"
    found = []
    for path in sorted(folder.rglob("*.png"), key=str):
        parts = path.relative_to(folder).parts
        if parts[0] == "symbols" or path.stem.endswith(("_mirror", "_flip")):
            continue
        if photos_only and ("cartoon" in parts[:-1] or "cartoon" in parts[-1] or not _is_photograph(path)):
            continue
        found.append(Stamp(path, parts[0], parts[1] if len(parts) > 2 else parts[0]))
    if not found:
        raise PrepareError(f"there are no stamps in {folder}")
    return found


@lru_cache(maxsize=4096)
def _is_photograph(path: Path) -> bool:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA").resize((64, 64), Image.Resampling.NEAREST))
    colours = pixels[pixels[..., 3] > 200][:, :3] >> 2
    return len(colours) >= 150 and len(np.unique(colours, axis=0)) / len(colours) >= 0.25


def photos(packages: Path) -> list[Path]:
    """The photographs, in a fixed order.

    Raises:
        PrepareError: a package cannot be had, or there are not 70 photographs: sets would not be the same.
    """
    roots = [debian_package(packages, name) for name in PHOTO_PACKAGES]
    roots.append(wheel(packages, "scikit-image"))
    found = []
    for folder, names in PHOTOS.items():
        for name in names.split():
            files = [file for root in roots for file in _beginning_with(root / folder, name)]
            found += files[:1]
    if len(found) != NUM_PHOTOS:
        raise PrepareError(
            f"{len(found)} of {NUM_PHOTOS} photographs are in the packages in {packages}; these are other releases "
            "than those that the set is made from (Debian 12)"
        )
    return found


def _beginning_with(folder: Path, name: str) -> list[Path]:
    """Images whose name begins so, sorted; of a wallpaper the one of 1280 x 800 pixels, if there is one."""
    if folder.parts[-2:] == ("share", "wallpapers"):
        sizes = sorted((folder / name / "contents" / "images").glob("*"), key=str)
        files = [file for file in sizes if file.stem == "1280x800"] or sizes
    else:
        files = sorted(folder.glob(f"{name}*"), key=str)
    return [file for file in files if file.suffix.lower() in ENDINGS]


@lru_cache(maxsize=128)
def _reduced(path: Path) -> Image.Image:
    with Image.open(path) as stored:
        stored.draft("RGB", (PHOTO_SIDE, PHOTO_SIDE))
        image = stored.convert("RGB")
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    return image


def photo_crop(path: Path, rng: np.random.Generator, size: int) -> Image.Image:
    """A random square of a photograph, 30 to 100 % of its short side, at ``size`` pixels, mirrored half of the time."""
    image = _reduced(path)
    short = min(image.size)
    lowest = max(0.3, min(1.0, size / short * 0.7))
    side = int(rng.uniform(lowest, 1.0) * short)
    left, top = rng.integers(0, image.width - side + 1), rng.integers(0, image.height - side + 1)
    box = (float(left), float(top), float(left + side), float(top + side))
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
