#!/usr/bin/env python3
"""Packs images into tar archives: few large files instead of many small ones, for cold or network storage.

    python extra_scripts/pack_dataset.py --images /my/photos --out data/packed
    python extra_scripts/pack_dataset.py --images photos.csv --out data/packed --shuffle 0 --shard-mb 512
    python extra_scripts/pack_dataset.py --images /my/photos --out data/small --short-side 256 --quality 90
    vissl-like config=quick/folder config.DATA.TRAIN=data/packed

Takes a folder, or a list of paths (.txt, .csv, .npy), with labels or without. The archives are in webdataset format:
``000000123.jpg`` and, where there are labels, its class in ``000000123.cls``. Files go in as they are, byte by byte,
unless ``--short-side`` has them made smaller: that changes the images, and is written down. ``pack.json`` beside the
archives says what is in them and names the classes; ``left_out.txt`` lists what could not be opened as an image.
--shuffle mixes the images, so that any stretch of an archive is a sample of all. Nothing is seen under --out before all
of it is written.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vissl_like.data.datasets.auto import auto
from vissl_like.data.datasets.base import ImageDataset, UnreadableImage
from vissl_like.data.sources import FileImages
from vissl_like.utils.errors import UserError

_END = 2 * tarfile.BLOCKSIZE


def open_images(path: str) -> FileImages:
    """The images to pack.

    Raises:
        UserError: there are none, or they are in one file already.
    """
    found = auto(path=path)
    if not isinstance(found, FileImages):
        raise UserError(f"--images: {path!r} holds its images in a file already; give a folder, or a list of paths")
    return found


def stored(images: ImageDataset, index: int, short_side: int | None, quality: int) -> tuple[str, bytes]:
    """Ending and bytes of an image as it goes into an archive.

    Raises:
        UnreadableImage: it cannot be opened, or, where it is made smaller, not decoded.
    """
    path = images.path(index)
    if short_side is None:
        images.header(index)
        try:
            return Path(path).suffix.lower(), Path(path).read_bytes()
        except OSError as error:
            raise UnreadableImage(path, error.strerror or str(error)) from error
    image = images.read(index)
    factor = short_side / min(image.size)
    if factor < 1:
        width, height = (max(1, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return ".jpg", written.getvalue()


class Shards:
    """Archives ``000000.tar``, ``000001.tar``, ... none of them larger than asked unless one sample is.

    Args:
        folder: to write into; exists.
        most: bytes of an archive.
    """

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder, most
        self.count, self.bytes = 0, 0
        self._archive: tarfile.TarFile | None = None
        self._used = 0

    def add(self, members: list[tuple[str, bytes]]) -> None:
        """One sample; its members stay together."""
        size = sum(tarfile.BLOCKSIZE * (1 - -len(data) // tarfile.BLOCKSIZE) for _, data in members)
        if self._archive is None or (self._used and self._used + size + _END > self.most):
            self.close()
            self._archive = tarfile.open(  # noqa: SIM115 - closed by close()
                self.folder / f"{self.count:06d}.tar", "w", format=tarfile.USTAR_FORMAT
            )
            self.count, self._used = self.count + 1, 0
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            self._archive.addfile(entry, io.BytesIO(data))
        self._used += size
        self.bytes += size

    def close(self) -> None:
        """Ends the archive at hand."""
        if self._archive is not None:
            self._archive.close()
            self._archive = None


def order_of(count: int, seed: int | None) -> Iterator[int]:
    """Positions in the order in which they are packed."""
    positions = np.arange(count) if seed is None else np.random.Generator(np.random.PCG64(seed)).permutation(count)
    return iter(positions.tolist())


def pack(images: FileImages, folder: Path, options: argparse.Namespace) -> str:
    """Writes archives, record and list into a folder; a line about them.

    Raises:
        UserError: no image could be packed.
        OSError: the folder cannot be written.
    """
    shards, left_out, packed = Shards(folder, options.shard_mb * 10**6), [], 0
    for index in order_of(len(images), options.shuffle):
        try:
            ending, data = stored(images, index, options.short_side, options.quality)
        except UnreadableImage as error:
            left_out.append(str(error))
            continue
        members = [(f"{packed:09d}{ending}", data)]
        if images.labels is not None:
            members.append((f"{packed:09d}.cls", str(int(images.labels[index])).encode()))
        shards.add(members)
        packed += 1
        if packed % 10_000 == 0:
            print(f"{packed:,d} of {len(images):,d} images", flush=True)
    shards.close()
    left_out += [f"{item.path}: {item.reason}" for item in images.skipped]
    if not packed:
        raise UserError(f"none of the {len(images)} images could be packed; the first: {left_out[0]}")
    record = {
        "images": packed,
        "archives": shards.count,
        "left_out": len(left_out),
        "labels": images.labels is not None,
        "classes": images.classes,
        "shuffle": options.shuffle,
        "short_side": options.short_side,
        "quality": None if options.short_side is None else options.quality,
    }
    (folder / "pack.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if left_out:
        (folder / "left_out.txt").write_text("\n".join(left_out) + "\n", encoding="utf-8", errors="surrogateescape")
    changed = "" if options.short_side is None else f", short side at most {options.short_side}"
    missing = f"; {len(left_out):,d} left out, see left_out.txt" if left_out else ""
    return f"{packed:,d} images in {shards.count:,d} archives, {shards.bytes / 1e6:,.1f} MB{changed}{missing}"


def write(options: argparse.Namespace) -> str:
    """Packs beside ``--out`` and moves the finished folder there.

    Raises:
        UserError: there is something already, or it cannot be written.
    """
    out: Path = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not options.replace:
        raise UserError(f"--out: {str(out)!r} exists already. Choose another name, or give --replace.")
    if out.is_dir() and options.replace and any(out.iterdir()) and not (out / "pack.json").is_file():
        raise UserError(f"--replace: {str(out)!r} was not written by this script (no pack.json in it); remove it first")
    images = open_images(options.images)
    working = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        said = pack(images, working, options)
        if out.exists():
            shutil.rmtree(out)
        working.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return said


def whole(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def percent(text: str) -> int:
    """JPEG's quality."""
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not within 1 to 100")
    return number


def parser() -> argparse.ArgumentParser:
    """The words of the command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--images", required=True, help="a folder of images, or a list of paths")
    made.add_argument("--out", type=Path, required=True, help="folder to write")
    made.add_argument("--shard-mb", type=whole, default=256, help="largest size of an archive, in 10^6 bytes")
    made.add_argument("--shuffle", type=int, default=None, metavar="SEED", help="mix the images")
    made.add_argument("--short-side", type=whole, default=None, help="make larger images this small, as JPEG")
    made.add_argument("--quality", type=percent, default=90, help="of JPEG, with --short-side")
    made.add_argument("--replace", action="store_true", help="write over an older --out")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when all is packed, 2 for a mistake of the user's."""
    options = parser().parse_args(arguments)
    try:
        print(write(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Use it as config.DATA.TRAIN={options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
