#!/usr/bin/env python3
"""Lays out the ELPV photos of solar cells as image folders that a path can point at.

    pip install elpv-dataset
    python extra_scripts/prepare_elpv.py --out data/elpv

The package holds 2,624 grey 300 x 300 photos (electroluminescence) with a defect probability of 0, 1/3, 2/3 or 1 and
the kind of silicon (mono, poly). What is written:

    train/{mono_ok,mono_defect,poly_ok,poly_defect}/*.png    1,768 photos with a sure label
    val/{mono_ok,mono_defect,poly_ok,poly_defect}/*.png        561 photos, never seen in pre-training
    unlabelled/*.png                                           295 photos whose label is unsure (probability 1/3)
    pretrain.txt        train + unlabelled, one path a line, relative to the file's folder
    SOURCE.txt          where the photos come from, and their licence

Files are hard links where the file system allows, else copies. Running it again completes what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

EXPECTED_PHOTOS = 2624
UNSURE = (0.1, 0.5)
"""Open interval of defect probabilities that are no sure label: holds 1/3 only."""
VAL_SHARE = 4
"""One photo in so many is for validation."""

NOTICE = """\
ELPV: photos of solar cells extracted from electroluminescence images of solar modules.
Licence of the photos: CC BY-NC-SA 4.0 (attribution, NON-COMMERCIAL, share alike). Cite when you use them:
  C. Buerhop-Lutz, S. Deitsch, A. Maier, F. Gallwitz, S. Berger, B. Doll, J. Hauch, C. Camus, C. J. Brabec:
    A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery. EU PVSEC 2018.
  S. Deitsch, V. Christlein, S. Berger, C. Buerhop-Lutz, A. Maier, F. Gallwitz, C. Riess:
    Automatic classification of defective photovoltaic module cells in electroluminescence images.
    Solar Energy 185, 2019.
  S. Deitsch, C. Buerhop-Lutz, E. Sovetkin, A. Steland, A. Maier, F. Gallwitz, C. Riess:
    Segmentation of photovoltaic module cells in uncalibrated electroluminescence images.
    Machine Vision and Applications 32(4), 2021.
"""


class PrepareError(Exception):
    """Something that the person who runs the script can mend."""


@dataclass(frozen=True)
class Photo:
    """A photo of the package and the place it gets, relative to the output folder."""

    source: Path
    place: str


def split_of(file_name: str) -> str:
    """``train`` or ``val`` of a photo, by a hash of its name, so that it depends on nothing else."""
    digest = hashlib.md5(f"0:{file_name}".encode(), usedforsecurity=False).hexdigest()
    return "val" if int(digest[:8], 16) % VAL_SHARE == 0 else "train"


def package_folder() -> Path:
    """Folder with ``labels.csv`` and ``images/`` of the installed package, found without importing it.

    Raises:
        PrepareError: the package is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise PrepareError(
            "the package elpv-dataset is not installed for this Python "
            f"({sys.executable}).\nInstall it (91 MB):  {sys.executable} -m pip install elpv-dataset"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def read_photos(source: Path) -> list[Photo]:
    """The photos named in ``labels.csv`` (lines ``path probability type``) and where each belongs.

    Raises:
        PrepareError: the table or a photo is missing, or a line cannot be understood.
    """
    table = source / "labels.csv"
    if not table.is_file():
        raise PrepareError(f"{table} does not exist: {source} is not the data folder of the package elpv-dataset")
    photos = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            path, probability, kind = line.split()
            place = _place(Path(path).name, float(probability), kind)
        except ValueError as error:
            raise PrepareError(f"{table}:{number}: expected 'path probability type', got {line!r}") from error
        if not (source / path).is_file():
            raise PrepareError(f"{table}:{number} names {path}, which is not there; reinstall the package elpv-dataset")
        photos.append(Photo(source / path, place))
    return photos


def _place(name: str, probability: float, kind: str) -> str:
    if kind not in ("mono", "poly"):
        raise ValueError(f"type {kind!r}")
    if UNSURE[0] < probability < UNSURE[1]:
        return f"unlabelled/{name}"
    return f"{split_of(name)}/{kind}_{'defect' if probability > UNSURE[1] else 'ok'}/{name}"


def lay_out(photos: list[Photo], out: Path) -> int:
    """Puts the photos into place and writes the two text files last.

    Returns:
        how many photos were missing before.

    Raises:
        PrepareError: the folders already hold images that do not belong there.
    """
    _refuse_strangers(photos, out)
    added = sum(_put(photo.source, out / photo.place) for photo in photos)
    pretrain = sorted(photo.place for photo in photos if not photo.place.startswith("val/"))
    _write(out / "pretrain.txt", "".join(f"{place}\n" for place in pretrain))
    _write(out / "SOURCE.txt", NOTICE)
    return added


def _refuse_strangers(photos: list[Photo], out: Path) -> None:
    """A photo left in another split by an older layout would leak validation photos into training."""
    wanted = {photo.place for photo in photos}
    present = (
        path
        for top in ("train", "val", "unlabelled")
        for path in (out / top).rglob("*")
        if path.is_file() and not path.name.endswith(".part")
    )
    strangers = sorted(path for path in present if path.relative_to(out).as_posix() not in wanted)
    if strangers:
        raise PrepareError(
            f"{out} holds {len(strangers)} files that do not belong to this layout, the first is {strangers[0]}.\n"
            "Remove them, or choose another folder with --out."
        )


def _put(source: Path, target: Path) -> bool:
    """Links or copies a file unless it is there already with the right size; True if it was missing."""
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        os.link(source, part)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, part)
    os.replace(part, target)
    return True


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def summary(photos: list[Photo]) -> str:
    """A line per folder with its number of photos."""
    counts = Counter(photo.place.rpartition("/")[0] for photo in photos)
    return "\n".join(f"  {count:5,d}  {folder}" for folder, count in sorted(counts.items()))


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the layout is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/elpv"), help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--source", type=Path, help="folder with labels.csv and images/ (default: that of the installed package)"
    )
    options = parser.parse_args(arguments)
    try:
        source = options.source or package_folder()
        photos = read_photos(source)
        added = lay_out(photos, options.out)
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write {options.out}: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(photos):,d} photos, {added:,d} of them new\n{summary(photos)}\n\n{NOTICE}")
    if options.source is None and len(photos) != EXPECTED_PHOTOS:
        print(f"note: {EXPECTED_PHOTOS:,d} photos were expected; this release of elpv-dataset differs", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
