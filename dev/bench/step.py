#!/usr/bin/env python3
"""Whole training steps beside lightly's parts in a plain PyTorch loop: the same views, first weights and settings.

    OMP_NUM_THREADS=1 python dev/bench/step.py
    OMP_NUM_THREADS=1 python dev/bench/step.py --python /path/to/python/with/lightly --rounds 7
    OMP_NUM_THREADS=1 python dev/bench/step.py --cases dino --sides lightly fp32 --set config.TRAIN.channels_last=false

2 x 64 + 4 x 32 pixels, batches of 64, one thread, views that are in memory already. ``swav`` is SwAV with a ResNet-18
(head 512-512-128, 512 prototypes, SGD), ``dino`` DINO with a ViT-Ti/8 (head 2048-256-4096, AdamW, clipping).
``lightly`` has torchvision's ResNet and timm's ViT in fp32; ``fp32`` is this project in the same precision, ``default``
what it chooses on this processor. One process each; they take turns, a few steps at a time. The ratio is that of the
medians of CPU time to the first side's; ``first loss`` tells whether they calculate the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from views import MISSING, has_lightly, machine

SIDES = {"lightly": [], "fp32": ["config.TRAIN.precision=fp32"], "default": []}
CASES = ("swav", "dino")


class Side:
    """A process that takes steps when told to."""

    def __init__(self, name: str, case: str, options: argparse.Namespace):
        python = options.python if name == "lightly" else sys.executable
        changes = [] if name == "lightly" else [*SIDES[name], *options.set]
        command = [python, str(Path(__file__).with_name("step_sides.py")), name, case, str(options.batch), *changes]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.loss = self._answer()["loss"]
        self.found: list[dict[str, float]] = []

    def take(self, steps: int, keep: bool = True) -> None:
        """So many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        if keep:
            self.found.append(answer)

    def end(self) -> None:
        """Lets the process go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"error: a side ended with status {self.process.wait()}, see above")


def compare(case: str, sides: list[str], options: argparse.Namespace) -> str:
    """A table of one case."""
    running = {name: Side(name, case, options) for name in sides}
    for side in running.values():
        side.take(1, keep=False)
    for _ in range(options.rounds):
        for side in running.values():
            side.take(options.steps)
    per = options.batch * options.steps
    first = statistics.median(answer["cpu"] for answer in running[sides[0]].found)
    lines = [f"| {case} | images per CPU s | from | to | ratio | MiB | first loss |", "|---|" + "---:|" * 6]
    for name, side in running.items():
        side.end()
        seconds = sorted(answer["cpu"] for answer in side.found)
        middle = statistics.median(seconds)
        cells = [f"{per / value:.1f}" for value in (middle, seconds[-1], seconds[0])]
        cells += [f"{first / middle:.2f}", f"{side.found[-1]['peak']:.0f}", f"{side.loss:.4f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Prints one table per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of a side in a round")
    parser.add_argument("--set", nargs="*", default=[], help="settings of this project's sides, config.KEY=VALUE")
    parser.add_argument("--python", default=sys.executable, help="a Python that has lightly, timm and this project")
    options = parser.parse_args()
    sides = list(options.sides)
    if "lightly" in sides and not has_lightly(options.python):
        sides.remove("lightly")
        print(MISSING.format(python=options.python))
    print(f"{machine()}; bf16 {'yes' if torch.cpu._is_avx512_bf16_supported() else 'no'}\n")
    for case in options.cases:
        print(compare(case, sides, options) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
