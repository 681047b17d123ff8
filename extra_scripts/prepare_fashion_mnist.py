#!/usr/bin/env python3
"""Gets Fashion-MNIST as four IDX files, without root rights.

    python extra_scripts/prepare_fashion_mnist.py --out data/fashion_mnist

Fashion-MNIST (MIT licence): 60,000 training and 10,000 test images, 28 x 28 grey, 10 balanced classes. Sources, in
order: the files of Debian's package if it is installed (/usr/share/datasets/fashion-mnist), that package downloaded and
unpacked by apt-get and dpkg-deb (no root), a download by torchvision. Files are unpacked, checked, and only then put
into place, so that an interrupted run leaves nothing half done; running it again does nothing once they are right.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGE_MAGIC, LABEL_MAGIC = 0x803, 0x801
CLASSES = 10

NOTICE = """\
Fashion-MNIST, MIT licence. Cite when you use it:
  H. Xiao, K. Rasul, R. Vollgraf:
    Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms. 2017.
"""


class PrepareError(Exception):
    """Something that the person who runs the script can mend."""


@dataclass(frozen=True)
class IdxFile:
    """One file of the set: its usual name, and the header that a right one has (dimensions after the magic number)."""

    name: str
    magic: int
    shape: tuple[int, ...]

    def check(self, content: bytes) -> str:
        """What is wrong with the content, or an empty string."""
        header = struct.pack(f">{1 + len(self.shape)}I", self.magic, *self.shape)
        size = len(header) + math.prod(self.shape)
        if len(content) != size:
            return f"has {len(content):,d} bytes, {size:,d} expected"
        if not content.startswith(header):
            return f"does not start with the IDX header of {' x '.join(map(str, self.shape))} values"
        if self.magic == LABEL_MAGIC and (counts := _counts(content[len(header) :])) != {self.shape[0] // CLASSES}:
            return (
                f"does not hold {self.shape[0] // CLASSES:,d} labels of each of {CLASSES} classes but {sorted(counts)}"
            )
        return ""


def _counts(labels: bytes) -> set[int]:
    """The numbers of labels per class; classes beyond the last make it differ from what is right."""
    return {labels.count(value) for value in range(CLASSES)}


FILES = (
    IdxFile("train-images-idx3-ubyte", IMAGE_MAGIC, (60000, 28, 28)),
    IdxFile("train-labels-idx1-ubyte", LABEL_MAGIC, (60000,)),
    IdxFile("t10k-images-idx3-ubyte", IMAGE_MAGIC, (10000, 28, 28)),
    IdxFile("t10k-labels-idx1-ubyte", LABEL_MAGIC, (10000,)),
)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Unpacked contents of the four files in a folder, packed (``.gz``) or not.

    Raises:
        PrepareError: one is missing or is not what it should be.
    """
    contents = {}
    for file in FILES:
        plain, packed = folder / file.name, folder / f"{file.name}.gz"
        try:
            content = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
        except FileNotFoundError as error:
            raise PrepareError(f"{folder} has no {file.name}[.gz]") from error
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise PrepareError(f"{packed} cannot be unpacked: {error}") from error
        problem = file.check(content)
        if problem:
            raise PrepareError(f"{folder / file.name} {problem}")
        contents[file.name] = content
    return contents


def from_installed() -> dict[str, bytes]:
    """From Debian's package where it is installed."""
    if not DEBIAN_FOLDER.is_dir():
        raise PrepareError(f"{DEBIAN_FOLDER} does not exist")
    return read_folder(DEBIAN_FOLDER)


def from_debian() -> dict[str, bytes]:
    """From Debian's package, downloaded and unpacked into a temporary folder."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise PrepareError("this system has no apt-get and dpkg-deb")
    with tempfile.TemporaryDirectory() as folder:
        if _run(["apt-get", "download", "-qq", DEBIAN_PACKAGE], folder) is not None:
            _run(["apt-get", "update", "-qq"], folder)  # needs root; where it is refused the next line says why
            problem = _run(["apt-get", "download", "-qq", DEBIAN_PACKAGE], folder)
            if problem is not None:
                raise PrepareError(f"apt-get download {DEBIAN_PACKAGE} failed: {problem}")
        packages = sorted(Path(folder).glob("*.deb"))
        if not packages:
            raise PrepareError(f"apt-get download {DEBIAN_PACKAGE} left no file")
        problem = _run(["dpkg-deb", "-x", str(packages[-1]), folder], folder)
        if problem is not None:
            raise PrepareError(f"dpkg-deb -x failed: {problem}")
        return read_folder(Path(folder) / DEBIAN_FOLDER.relative_to("/"))


def _run(command: list[str], folder: str) -> str | None:
    """None if the command succeeds, else the last line it printed."""
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def from_torchvision() -> dict[str, bytes]:
    """From the address that torchvision knows."""
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError as error:
        raise PrepareError("torchvision is not installed for this Python") from error
    with tempfile.TemporaryDirectory() as folder:
        try:
            FashionMNIST(folder, download=True)
        except (OSError, RuntimeError) as error:
            raise PrepareError(f"torchvision cannot download it: {error}") from error
        return read_folder(Path(folder) / "FashionMNIST" / "raw")


SOURCES: dict[str, Callable[[], dict[str, bytes]]] = {
    "installed": from_installed,
    "debian": from_debian,
    "torchvision": from_torchvision,
}


def obtain(names: list[str]) -> tuple[str, dict[str, bytes]]:
    """The first of the sources that works, and the contents.

    Raises:
        PrepareError: none works; the message has a reason for each.
    """
    reasons = []
    for name in names:
        try:
            return name, SOURCES[name]()
        except PrepareError as error:
            reasons.append(f"  {name}: {error}")
    raise PrepareError(
        "Fashion-MNIST could not be obtained:\n"
        + "\n".join(reasons)
        + "\nPut the four IDX files into the folder by hand."
    )


def missing(out: Path) -> Iterator[str]:
    """Names of the files that are not there or not right."""
    for file in FILES:
        path = out / file.name
        if not path.is_file() or file.check(path.read_bytes()):
            yield file.name


def write(out: Path, contents: dict[str, bytes]) -> None:
    """Writes each file beside its place, then moves it there."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in {**contents, "SOURCE.txt": NOTICE.encode()}.items():
        part = out / f"{name}.{os.getpid()}.part"
        try:
            part.write_bytes(content)
            os.replace(part, out / name)
        finally:
            part.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the four files are in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("data/fashion_mnist"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--from", dest="sources", choices=list(SOURCES), help="use only this source")
    options = parser.parse_args(arguments)
    if not list(missing(options.out)):
        print(f"{options.out}: complete, nothing to do")
        return 0
    try:
        source, contents = obtain([options.sources] if options.sources else list(SOURCES))
        write(options.out, contents)
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write {options.out}: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: 60,000 training and 10,000 test images, 10 classes (source: {source})\n\n{NOTICE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
