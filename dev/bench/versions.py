#!/usr/bin/env python3
"""What a user waits for in two checkouts of this project, in turn: checking, showing, the first update, images/s.

    git worktree add /tmp/before COMMIT && python dev/bench/versions.py --other /tmp/before
    python dev/bench/versions.py --other /tmp/before --config quick/elpv --set config.TRAIN.threads=1 --runs 5

Every figure is of fresh processes that take turns; the ratio is that of the medians, above 1 where this checkout is
better. ``first update`` is from the command to the end of step 1; ``images/s`` counts the steps behind ``--skip``. Both
are told by the run's own events. The data must be there (``--data``). Build the other checkout's kernel, if it has one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Checkout:
    """One version of the project."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.options = folder, options
        self.found: dict[str, list[float]] = {}
        self.commit = subprocess.run(
            ["git", "-C", str(folder), "log", "-1", "--format=%h"], capture_output=True, text=True, check=False
        ).stdout.strip()

    def start(self, *arguments: str) -> float:
        """Seconds of one process."""
        # Two threads' worth of settings would be compared otherwise: the environment is the same for both.
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        command = [sys.executable, str(self.folder / "tools" / "run_distributed_engines.py"), *arguments]
        started = time.perf_counter()
        where = self.options.where
        ran = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"error: {' '.join(command)} ended with {ran.returncode}:\n{ran.stdout}\n{ran.stderr}")
        return time.perf_counter() - started

    def note(self, name: str, value: float) -> None:
        """Keeps a figure."""
        self.found.setdefault(name, []).append(value)

    def round(self) -> None:
        """Every figure once."""
        configuration = [f"config={self.options.config}", *self.options.set]
        for name in ("--check", "--show"):
            self.note(f"{name}, s", self.start(name, *configuration))
        folder = Path(tempfile.mkdtemp(prefix="versions_"))
        try:
            length = [f"config.TRAIN.length={self.options.steps} steps", f"config.OUTPUT_DIR={folder}/run"]
            # Every step is written down; nothing else is measured or saved on the way.
            quiet = ["config.ENGINE=train", "config.HOOKS.events.every=1", "config.CHECKPOINT.every=100%"]
            began = time.time()
            self.start(*configuration, *length, *quiet)
            steps = [
                event
                for line in (folder / "run" / "events.jsonl").read_text().splitlines()
                if (event := json.loads(line))["kind"] == "step"
            ]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.note("first update, s", steps[0]["time"] - began)
        counted = [event for event in steps if event["step"] > self.options.skip]
        span = counted[-1]["time"] - counted[0]["time"]
        images = (counted[-1]["step"] - counted[0]["step"]) * self.options.batch
        self.note("images/s", images / span)


def table(ours: Checkout, other: Checkout) -> str:
    """A Markdown table of medians."""
    lines = [
        f"| {ours.options.config} | {other.commit or other.folder.name} | {ours.commit or 'this'} | ratio |",
        "|---|---:|---:|---:|",
    ]
    for name, values in ours.found.items():
        new, old = statistics.median(values), statistics.median(other.found[name])
        ratio = new / old if name == "images/s" else old / new
        lines.append(f"| {name} | {old:.2f} | {new:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, help="a checkout of another version")
    parser.add_argument("--config", default="quick/elpv")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of both, config.KEY=VALUE")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder that relative paths of data lead to")
    parser.add_argument("--batch", type=int, default=64, help="images of a step in that configuration")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--skip", type=int, default=40, help="first steps that do not count (one pass fills the cache)")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        options.where = where
        (Path(where) / "data").symlink_to(options.data.resolve())
        sides = [Checkout(ROOT, options), Checkout(options.other.resolve(), options)]
        for _ in range(options.runs):
            for side in sides:
                side.round()
    print(table(*sides))
    return 0


if __name__ == "__main__":
    sys.exit(main())
