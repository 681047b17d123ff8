#!/usr/bin/env python3
"""Images a second that reach a training, by kind and number of workers, beside torch's loader with torchvision's views.

    OMP_NUM_THREADS=1 python dev/bench/data.py
    OMP_NUM_THREADS=1 python dev/bench/data.py --images FOLDER --recipe dino --workers 0 1 2 4 8 16 --batch 64

``threads`` and ``processes`` are this project's (DATA.START_METHOD), from files to batches of uint8 views; 0 workers
make batches when they are asked for. ``torchvision`` is torch's DataLoader with the official SwAV's transforms on PIL
images, to batches of normalised floats. Each is run in a fresh process, in turn; the first batches, in which workers
start, are not timed. ``own`` is memory of the process and its workers that is not shared between them, at the end.
Recipes as in views.py. The ratio is to torchvision's with as many workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from views import RECIPES, by_v1, draw_photos, machine

SIDES = ("torchvision", "processes", "threads")
COPIES = 40
"""Names that each drawn file has."""


class Folder(torch.utils.data.Dataset[Any]):
    """Views of the files of a folder by torchvision's transforms."""

    def __init__(self, folder: Path, recipe: str):
        self.files, self.make = sorted(folder.iterdir()), by_v1(RECIPES[recipe])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.make(self.files[index].read_bytes())


def batches(side: str, options: argparse.Namespace) -> Iterator[Any]:
    """What a training would get, without end."""
    folder, workers = options.images, options.workers[0]
    if side == "torchvision":
        while True:
            yield from torch.utils.data.DataLoader(
                Folder(folder, options.recipe), options.batch, shuffle=True, num_workers=workers, drop_last=True
            )
    from vissl_like.data.loader import TrainLoader
    from vissl_like.registry import DATASETS, SAMPLERS, TRANSFORMS

    dataset = DATASETS.get("folder")(path=str(folder))
    views = [{**kind, "blur": {"p": kind["blur"], "sigma": [0.1, 2.0]}} for kind in RECIPES[options.recipe]]
    transform = TRANSFORMS.get("multi_crop")(3, views=views, flip=0.5, grayscale=0.2)
    sampler = SAMPLERS.get("shuffled")(len(dataset), options.batch, 1, 0, 1, 0)
    method = "thread" if side == "threads" else "fork"
    yield from TrainLoader(dataset, transform, sampler, workers=workers, total_steps=10**6, start_method=method)


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Images a second of one side in this process, and memory."""
    torch.set_num_threads(1)
    made = batches(side, options)
    for _ in range(2 * options.workers[0] + 1):
        next(made)
    begun = time.perf_counter()
    for _ in range(options.count):
        next(made)
    rate = options.count * options.batch / (time.perf_counter() - begun)
    return {"rate": rate, "own": own_memory() / 2**20}


def own_memory() -> int:
    """Bytes of this process and those below it that no other process shares (shared ones count by their part)."""
    children = Path("/proc/self/task").glob("*/children")
    everyone = ["self", *(pid for file in children for pid in file.read_text().split())]
    total = 0
    for pid in everyone:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def main() -> int:
    """Prints the table."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--recipe", choices=RECIPES, default="swav", help="(default: %(default)s)")
    made.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="(default: all)")
    made.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    made.add_argument("--images", type=Path, help="a folder of images; default: drawn ones")
    made.add_argument("--batch", type=int, default=32, help="(default: %(default)s)")
    made.add_argument("--count", type=int, default=6, help="batches a run; six times as many of ours")
    made.add_argument("--runs", type=int, default=3, help="of every side, in turn (default: %(default)s)")
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.side is not None:
        print(json.dumps(measure(options.side, options)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.images or Path(temporary)
        if options.images is None:
            draw_photos(folder, 12)
            for file in list(folder.iterdir()):
                for number in range(COPIES):
                    os.link(file, folder / f"{number}_{file.name}")
        print(f"{machine()}; recipe {options.recipe}, batches of {options.batch}, median of {options.runs} runs\n")
        print("| workers | side | images/s | from | to | ratio | own MiB |\n|---:|---|" + "---:|" * 5)
        for workers in options.workers:
            in_turn(workers, folder, options)
    return 0


def in_turn(workers: int, folder: Path, options: argparse.Namespace) -> None:
    """Prints the rows of a number of workers."""
    sides = [side for side in options.sides if workers or side != "processes"]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.runs):
        for side in sides:
            count = options.count * (1 if side == "torchvision" else 6)
            arguments = {"side": side, "recipe": options.recipe, "workers": workers, "images": folder}
            arguments |= {"batch": options.batch, "count": count}
            words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
            done = subprocess.run(
                [sys.executable, __file__, *words],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    first = statistics.median(run["rate"] for run in found[sides[0]])
    for side, runs in found.items():
        rates = sorted(run["rate"] for run in runs)
        middle, own = statistics.median(rates), statistics.median(run["own"] for run in runs)
        name = "without workers" if side == "threads" and not workers else side
        cells = [f"{middle:,.0f}", f"{rates[0]:,.0f}", f"{rates[-1]:,.0f}", f"{middle / first:.1f}", f"{own:,.0f}"]
        print(f"| {workers} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
