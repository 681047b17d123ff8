#!/usr/bin/env python3
"""k-NN votes of this project beside others': the same rows, one process each in turn, seconds and memory.

    OMP_NUM_THREADS=1 python dev/bench/knn.py --python /path/to/python/with/lightly
    OMP_NUM_THREADS=1 python dev/bench/knn.py --sides ours --rows 1280000 --queries 2000 --classes 1000 --runs 1

``torch`` is what the official DINO does: queries in 100 stretches, all similarities of a stretch, ``topk``, votes by a
one-hot table. ``lightly`` is its ``knn_predict``, 256 queries at a time. Every side is given rows that are not of unit
length, and makes them so. Ours maps the bank from its file, the others read it into memory. Starting, importing and
reading are not timed, normalising is. Rows are drawn around class centres. ``same`` is the share of predictions equal
to torch's; ``peak`` is resident memory at most, ``own`` the part of it that is no mapped file (libraries and torch are
some 300 MiB of it; mapped pages are given back when memory is short).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDES = ("ours", "torch", "lightly")
MISSING = (
    "lightly is left out: {python} does not find it. `pip install lightly` (if in an environment of its own, name its "
    "Python with --python)."
)
WRITE_ROWS = 16384


def ours(bank: Tensor, labels: Tensor, queries: Tensor, options: argparse.Namespace) -> Tensor:
    """``[M]`` predictions of this project."""
    from vissl_like.evaluation.knn import weighted_knn

    k, temperature, classes = options.k, options.temperature, options.classes
    return weighted_knn(bank, labels, queries, k=[k], temperature=temperature, num_classes=classes)[k]


def plain_torch(bank: Tensor, labels: Tensor, queries: Tensor, options: argparse.Namespace) -> Tensor:
    """``[M]`` predictions in the way of the official DINO."""
    bank, queries = functional.normalize(bank, dim=1).T, functional.normalize(queries, dim=1)
    predictions = []
    for rows in queries.split(max(1, len(queries) // 100)):
        similarity, where = (rows @ bank).topk(options.k, dim=1)
        classes = labels.expand(len(rows), -1).gather(1, where)
        table = torch.zeros(len(rows) * options.k, options.classes).scatter_(1, classes.reshape(-1, 1), 1)
        weights = (similarity / options.temperature).exp()
        votes = (table.view(len(rows), options.k, -1) * weights[:, :, None]).sum(dim=1)
        predictions.append(votes.sort(dim=1, descending=True).indices[:, 0])
    return torch.cat(predictions)


def lightly(bank: Tensor, labels: Tensor, queries: Tensor, options: argparse.Namespace) -> Tensor:
    """``[M]`` predictions of lightly."""
    from lightly.utils.benchmarking import knn_predict

    bank, queries = functional.normalize(bank, dim=1).T.contiguous(), functional.normalize(queries, dim=1)
    parts = [
        knn_predict(rows, bank, labels, options.classes, knn_k=options.k, knn_t=options.temperature)[:, 0]
        for rows in queries.split(256)
    ]
    return torch.cat(parts)


def write_data(folder: Path, options: argparse.Namespace) -> None:
    """Rows around class centres, each of a length of its own, a part at a time."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((options.classes, options.dim), dtype=np.float32)
    for name, count in (("bank", options.bank), ("queries", options.queries)):
        labels = generator.integers(0, options.classes, count)
        np.save(folder / f"{name}_labels.npy", labels)
        rows = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, options.dim))
        for begin in range(0, count, WRITE_ROWS):
            part = labels[begin : begin + WRITE_ROWS]
            noise = generator.standard_normal((len(part), options.dim), dtype=np.float32)
            length = generator.uniform(0.5, 2, (len(part), 1)).astype(np.float32)
            rows[begin : begin + len(part)] = length * (centres[part] + options.noise * noise)
        rows.flush()


def load(folder: Path, name: str, mapped: bool = False) -> Tensor:
    """An array of the folder; mapped ones may be written to, in memory."""
    return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c" if mapped else None, allow_pickle=False))


class Memory(threading.Thread):
    """Looks 50 times a second how much memory of this process is no mapped file (on Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own, self._ended = 0.0, threading.Event()

    def run(self) -> None:
        """Until ``stop``."""
        while not self._ended.wait(0.02):
            self.look()

    def look(self) -> None:
        """Once."""
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        except OSError:
            return
        (kib,) = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        self.own = max(self.own, kib / 1024)

    def stop(self) -> float:
        """The most that was seen, in MiB."""
        self._ended.set()
        self.join()
        self.look()
        return self.own


def measure(side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side in this process; its predictions go into the folder."""
    torch.set_num_threads(options.threads)
    predict = {"ours": ours, "torch": plain_torch, "lightly": lightly}[side]
    if side == "ours":
        from vissl_like.compat.faiss import get_faiss

        get_faiss()
    small = argparse.Namespace(**{**vars(options), "k": 1})
    predict(torch.randn(64, 8), torch.zeros(64, dtype=torch.int64), torch.randn(4, 8), small)
    bank, queries = load(folder, "bank", mapped=side == "ours"), load(folder, "queries")
    labels = load(folder, "bank_labels")
    memory = Memory()
    memory.start()
    wall, seconds = time.perf_counter(), time.process_time()
    predictions = predict(bank, labels, queries, options)
    wall, seconds = time.perf_counter() - wall, time.process_time() - seconds
    own = memory.stop()
    np.save(folder / f"{side}.npy", predictions.numpy())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
    return {"wall": wall, "cpu": seconds, "own": own, "peak": peak}


def in_turn(folder: Path, sides: list[str], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measures every side as often as asked, each time in a fresh process, so that a busy machine falls on all."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.runs):
        for side in sides:
            python = options.python if side == "lightly" else sys.executable
            command = [python, str(Path(__file__)), "--side", side, "--folder", str(folder)]
            for name in ("k", "temperature", "classes", "threads"):
                command += [f"--{name}", str(getattr(options, name))]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def table(folder: Path, found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown; medians over runs, ratios to the first side."""
    truth = np.load(folder / "queries_labels.npy", allow_pickle=False)
    reference = folder / "torch.npy"
    lines = [
        "| side | CPU s | ratio | wall s | queries per CPU s | same | top-1 % | own MiB | peak MiB |",
        "|---|" + "---:|" * 8,
    ]
    first = statistics.median(run["cpu"] for run in next(iter(found.values())))
    for side, runs in found.items():
        median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        predictions = np.load(folder / f"{side}.npy", allow_pickle=False)
        same = f"{100 * (predictions == np.load(reference)).mean():.2f} %" if reference.exists() else "-"
        cells = [
            f"{median['cpu']:.2f}",
            f"{median['cpu'] / first:.2f}",
            f"{median['wall']:.2f}",
            f"{len(truth) / median['cpu']:,.0f}",
            same,
            f"{100 * (predictions == truth).mean():.2f}",
            f"{median['own']:,.0f}",
            f"{median['peak']:,.0f}",
        ]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join(lines)


def has_lightly(python: str) -> bool:
    """Whether a Python finds the package."""
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('lightly') is None)"
    return subprocess.run([python, "-c", code], stdin=subprocess.DEVNULL).returncode == 0


def parser() -> argparse.ArgumentParser:
    """The words of the command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bank", "--rows", type=int, default=60000, help="rows that are searched (default: %(default)s)")
    made.add_argument("--queries", type=int, default=10000, help="rows that are asked about (default: %(default)s)")
    made.add_argument("--dim", type=int, default=512, help="(default: %(default)s)")
    made.add_argument("--classes", type=int, default=10, help="(default: %(default)s)")
    made.add_argument("--noise", type=float, default=6.0, help="deviation around class centres (default: %(default)s)")
    made.add_argument("--k", type=int, default=20, help="neighbours (default: %(default)s)")
    made.add_argument("--temperature", type=float, default=0.07, help="of the votes (default: %(default)s)")
    made.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    made.add_argument("--runs", type=int, default=3, help="of every side, in turn (default: %(default)s)")
    made.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="(default: all)")
    made.add_argument("--folder", type=Path, help="where the rows are written to; default: a temporary one")
    made.add_argument("--python", default=sys.executable, help="a Python that has lightly")
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return made


def main() -> int:
    """Prints the table."""
    options = parser().parse_args()
    if options.side is not None:
        print(json.dumps(measure(options.side, options.folder, options)))
        return 0
    sides = [side for side in SIDES if side in options.sides]
    if "lightly" in sides and not has_lightly(options.python):
        print(MISSING.format(python=options.python), file=sys.stderr)
        sides.remove("lightly")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_data(Path(folder), options)
        found = in_turn(Path(folder), sides, options)
        size = f"{options.bank:,d} x {options.dim} rows, {options.queries:,d} queries, k={options.k}"
        print(f"{size}, {options.threads} thread(s), median of {options.runs}\n")
        print(table(Path(folder), found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
