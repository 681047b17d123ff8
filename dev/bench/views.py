#!/usr/bin/env python3
"""Views of images beside others' ways of making them: the same JPEG files, one process each in turn, one thread.

    OMP_NUM_THREADS=1 python dev/bench/views.py
    OMP_NUM_THREADS=1 python dev/bench/views.py --recipes small --python /path/to/python/with/lightly
    OMP_NUM_THREADS=1 python dev/bench/views.py --recipes --shares
    OMP_NUM_THREADS=1 python dev/bench/views.py --images FOLDER --recipes swav --sides v1 native decode

From encoded bytes in memory to all views of an image. ``native`` decodes as a training does and makes uint8 views with
the native kernel, ``float`` normalises them as well, as training does on its device, and ``pillow`` is what this
project does without the kernel. ``v1`` are torchvision's transforms on PIL images as in the official SwAV and DINO,
``v2`` its newer ones on tensors, ``lightly`` its transforms (needs the package): these end with normalised floats.
``decode`` makes no views. Without ``--images`` pictures of 500 x 375 pixels are drawn whose spectrum is that of photos.
Recipes: ``swav`` is 2 x 224 + 6 x 96, ``dino`` 2 x 224 + 8 x 96, ``small`` SwAV's at 2 x 64 + 4 x 32. Every run draws
crops of its own. The ratio is that of the medians of CPU time to the first side's. ``--shares`` times every transform.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

SIDES = ("v1", "v2", "pillow", "native", "float", "lightly", "decode")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SWAV_JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8}
DINO_JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8}
MISSING = (
    "lightly is left out: {python} does not find it. `pip install lightly` (if in an environment of its own, name its "
    "Python with --python)."
)
Maker = Callable[[bytes], Any]


def swav(large: int, small: int, count: int) -> list[dict[str, Any]]:
    """Kinds of views, in the words of ``multi_crop``."""
    shared = {"interpolation": "bilinear", "jitter": SWAV_JITTER, "blur": 0.5, "solarize": 0.0}
    return [
        {**shared, "count": 2, "size": large, "scale": [0.14, 1.0]},
        {**shared, "count": count, "size": small, "scale": [0.05, 0.14]},
    ]


def dino(large: int, small: int, count: int) -> list[dict[str, Any]]:
    """As ``swav``; the first two views differ."""
    shared = {"interpolation": "bicubic", "jitter": DINO_JITTER}
    return [
        {**shared, "count": 1, "size": large, "scale": [0.4, 1.0], "blur": 1.0, "solarize": 0.0},
        {**shared, "count": 1, "size": large, "scale": [0.4, 1.0], "blur": 0.1, "solarize": 0.2},
        {**shared, "count": count, "size": small, "scale": [0.05, 0.4], "blur": 0.5, "solarize": 0.0},
    ]


RECIPES = {"swav": swav(224, 96, 6), "dino": dino(224, 96, 8), "small": swav(64, 32, 4)}


def by_this_project(kinds: list[dict[str, Any]], native: bool, floats: bool = False) -> Maker:
    """The transform of this project."""
    os.environ["VISSL_LIKE_NATIVE"] = "1" if native else "0"
    from vissl_like.data.decode import bytes_pixels
    from vissl_like.data.normalise import Normalise
    from vissl_like.registry import TRANSFORMS

    views = [{**kind, "blur": {"p": kind["blur"], "sigma": [0.1, 2.0]}} for kind in kinds]
    transform = TRANSFORMS.get("multi_crop")(3, views=views, flip=0.5, grayscale=0.2)
    normalise, generator = Normalise(MEAN, STD, torch.device("cpu")), random.Random(0)

    def make(data: bytes) -> Any:
        if not native:
            return transform(Image.open(io.BytesIO(data)).convert("RGB"), generator)
        pixels = bytes_pixels(data, "file", 3)
        parameters = transform.draw(pixels.shape[1], pixels.shape[0], generator)
        rows = [np.empty((3, view.size, view.size), np.uint8) for view in parameters]
        transform.render_into(pixels, parameters, rows)
        return [normalise(torch.from_numpy(row)[None]) for row in rows] if floats else rows

    return make


def decode(data: bytes) -> np.ndarray:
    """``[H, W, 3]``, as a training decodes."""
    from vissl_like.data.decode import bytes_pixels

    return bytes_pixels(data, "file", 3)


class Blur:
    """PIL's blur, as in the official code."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Solarize:
    """PIL's solarizing, as in the official code."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.p else image


def by_v1(kinds: list[dict[str, Any]]) -> Maker:
    """torchvision's transforms on PIL images."""
    from torchvision import transforms as tv

    makers = []
    for kind in kinds:
        jitter, mode = dict(kind["jitter"]), tv.InterpolationMode(kind["interpolation"])
        probability = jitter.pop("p")
        one = tv.Compose(
            [
                tv.RandomResizedCrop(kind["size"], scale=kind["scale"], interpolation=mode),
                tv.RandomHorizontalFlip(0.5),
                tv.RandomApply([tv.ColorJitter(**jitter)], p=probability),
                tv.RandomGrayscale(0.2),
                Blur(kind["blur"]),
                *([Solarize(kind["solarize"])] if kind["solarize"] else []),
                tv.ToTensor(),
                tv.Normalize(MEAN, STD),
            ]
        )
        makers += [one] * kind["count"]

    def make(data: bytes) -> Any:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [one(image) for one in makers]

    return make


def by_v2(kinds: list[dict[str, Any]]) -> Maker:
    """torchvision's newer transforms on uint8 tensors; its blur is another one (a kernel of fixed length)."""
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    makers = []
    for kind in kinds:
        jitter, mode = dict(kind["jitter"]), v2.InterpolationMode(kind["interpolation"])
        probability, length = jitter.pop("p"), 9 if kind["size"] < 128 else 23
        one = v2.Compose(
            [
                v2.RandomResizedCrop(kind["size"], scale=kind["scale"], interpolation=mode, antialias=True),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomApply([v2.ColorJitter(**jitter)], p=probability),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(length, (0.1, 2.0))], p=kind["blur"]),
                *([v2.RandomSolarize(128, kind["solarize"])] if kind["solarize"] else []),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        makers += [one] * kind["count"]

    def make(data: bytes) -> Any:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return [one(image) for one in makers]

    return make


def by_lightly(recipe: str) -> Maker:
    """lightly's transforms, at its defaults but for sizes and counts."""
    from lightly.transforms import DINOTransform, SwaVTransform

    if recipe == "dino":
        transform = DINOTransform(global_crop_size=224, local_crop_size=96, n_local_views=8)
    else:
        sizes, count = ((64, 32), 4) if recipe == "small" else ((224, 96), 6)
        transform = SwaVTransform(crop_sizes=sizes, crop_counts=(2, count))
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def maker(side: str, recipe: str) -> Maker:
    """What a side does to the bytes of a file."""
    kinds = RECIPES[recipe]
    if side in ("pillow", "native", "float"):
        return by_this_project(kinds, native=side != "pillow", floats=side == "float")
    if side == "decode":
        return decode
    return by_lightly(recipe) if side == "lightly" else {"v1": by_v1, "v2": by_v2}[side](kinds)


def measure(side: str, recipe: str, folder: Path, count: int) -> dict[str, Any]:
    """One side in this process: milliseconds an image."""
    torch.set_num_threads(1)
    random.seed(0), torch.manual_seed(0)
    files = [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg")]
    make = maker(side, recipe)
    for data in files[:4]:
        make(data)
    wall, seconds = time.perf_counter(), time.process_time()
    for number in range(count):
        make(files[number % len(files)])
    wall, seconds = time.perf_counter() - wall, time.process_time() - seconds
    return {"wall": 1000 * wall / count, "cpu": 1000 * seconds / count, "torch": torch.__version__}


def draw_photos(folder: Path, count: int, width: int = 500, height: int = 375) -> None:
    """JPEG files of about 100 KB. Amplitudes fall with frequency as those of photos do; channels are mostly alike."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0

    def field(power: float) -> np.ndarray:
        waves = np.exp(2j * np.pi * generator.random(frequency.shape)) / frequency**power
        values = np.fft.irfft2(waves, s=(height, width))
        return (values - values.mean()) / values.std()

    for number in range(count):
        shared = field(1.1)
        planes = np.stack([shared + 0.5 * field(1.4) for _ in range(3)], axis=-1)
        pixels = np.clip(120 + 50 * planes, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=90)


def in_turn(recipe: str, sides: list[str], folder: Path, options: argparse.Namespace) -> str:
    """Measures every side as often as asked, each time in a fresh process; a table with medians over runs."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.runs):
        for side in sides:
            count = options.count * (1 if side in ("v1", "v2", "pillow", "lightly") else 4)
            python = options.python if side == "lightly" else sys.executable
            command = [python, str(Path(__file__)), "--side", side, "--recipes", recipe, "--images", str(folder)]
            done = subprocess.run(
                [*command, "--count", str(count)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    lines = [
        f"| {recipe} | CPU ms | ratio | wall ms | images per CPU s | from | to |",
        "|---|" + "---:|" * 6,
    ]
    first = statistics.median(run["cpu"] for run in found[sides[0]])
    for side, runs in found.items():
        cpu, wall = (statistics.median(run[name] for run in runs) for name in ("cpu", "wall"))
        rates = sorted(1000 / run["cpu"] for run in runs)
        cells = [f"{cpu:.2f}", f"{first / cpu:.2f}", f"{wall:.2f}", f"{1000 / cpu:,.0f}"]
        lines.append(f"| {side} | {' | '.join(cells)} | {rates[0]:,.0f} | {rates[-1]:,.0f} |")
    return "\n".join(lines)


def shares(folder: Path, runs: int) -> str:
    """Microseconds of every transform of one view, by the kernel and by Pillow: with it, less without it."""
    from vissl_like.data.transforms import native, pixels
    from vissl_like.data.transforms.parameters import ViewParameters

    image = Image.open(next(path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg")))
    image = image.convert("RGB")
    array = np.asarray(image).copy()

    def seconds(size: int, kernel: bool, **changes: Any) -> float:
        height, width = (round(0.7 * image.height), round(0.7 * image.width)) if size > 128 else (115, 130)
        view = ViewParameters(20, 30, min(height, image.height - 20), min(width, image.width - 30), size, **changes)
        row, times = np.empty((3, size, size), np.uint8), []
        for _ in range(runs):
            begin = time.process_time()
            for _ in range(20):
                if kernel:
                    native.render_into(array, [view], [row])
                else:
                    pixels.render(image, view)
            times.append((time.process_time() - begin) / 20)
        return 1e6 * min(times)  # a difference of two: what else the machine did must not be in it

    steps: dict[str, dict[str, Any]] = {
        name: {"jitter": ((name, factor),)}
        for name, factor in (("brightness", 1.3), ("contrast", 1.3), ("saturation", 1.3), ("hue", 0.1))
    }
    steps |= {
        "grey": {"grayscale": True},
        "blur": {"blur": 1.1},
        "solarize": {"solarize": True},
        "flip": {"flip": True},
    }
    lines = ["| us a view | 224: kernel | Pillow | ratio | 96: kernel | Pillow | ratio |", "|---|" + "---:|" * 6]
    table: dict[str, list[str]] = {name: [] for name in ("bilinear", "bicubic", *steps)}
    for size in (224, 96):
        base = {kernel: seconds(size, kernel) for kernel in (True, False)}
        bicubic = {kernel: seconds(size, kernel, interpolation="bicubic") for kernel in (True, False)}
        for name, taken in (("bilinear", base), ("bicubic", bicubic)):
            table[name] += [f"{taken[True]:.0f}", f"{taken[False]:.0f}", f"{taken[False] / taken[True]:.1f}"]
        for name, changes in steps.items():
            taken = {kernel: max(0.0, seconds(size, kernel, **changes) - base[kernel]) for kernel in (True, False)}
            ratio = f"{taken[False] / taken[True]:.1f}" if taken[True] >= 1 else "-"
            table[name] += [f"{taken[True]:.0f}", f"{taken[False]:.0f}", ratio]
    return "\n".join([native.why(), "", *lines, *(f"| {name} | {' | '.join(row)} |" for name, row in table.items())])


def machine() -> str:
    """What and when."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    made = names[0] if names else platform.processor() or platform.machine()
    return f"{made}, torch {torch.__version__}, Pillow {Image.__version__}, {datetime.date.today()}"


def has_lightly(python: str) -> bool:
    """Whether a Python finds the package."""
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('lightly') is None)"
    return subprocess.run([python, "-c", code], stdin=subprocess.DEVNULL).returncode == 0


def main() -> int:
    """Prints the tables."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES), help="(default: all)")
    made.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="(default: all)")
    made.add_argument("--images", type=Path, help="a folder of JPEG files; default: drawn ones")
    made.add_argument("--count", type=int, default=24, help="images a run; four times as many of the quick sides")
    made.add_argument("--runs", type=int, default=5, help="of every side, in turn (default: %(default)s)")
    made.add_argument("--shares", action="store_true", help="times every transform by itself")
    made.add_argument("--python", default=sys.executable, help="a Python that has lightly")
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.side is not None:
        print(json.dumps(measure(options.side, options.recipes[0], options.images, options.count)))
        return 0
    sides = [side for side in SIDES if side in options.sides]
    if options.recipes and "lightly" in sides and not has_lightly(options.python):
        print(MISSING.format(python=options.python), file=sys.stderr)
        sides.remove("lightly")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.images or Path(temporary)
        if options.images is None:
            draw_photos(folder, 12)
        files = [path.stat().st_size for path in folder.iterdir()]
        print(
            f"{machine()}; {len(files)} files of {sum(files) / len(files) / 1000:.0f} KB, median of {options.runs} runs"
        )
        for recipe in options.recipes:
            print(f"\n{in_turn(recipe, sides, folder, options)}", flush=True)
        if options.shares:
            print(f"\n{shares(folder, options.runs)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
