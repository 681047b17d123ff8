"""How long a user waits before anything happens: import, --check, --help. Fresh processes, median of runs.

Usage: python dev/bench/startup.py [--runs 7]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "tools" / "run_distributed_engines.py")]
BAD = ["config.LOSS.temprature=0.2", "config.MODEL.HEAD.name=swva", "config.TRAIN.global_batch=-4"]
CASES = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import vissl_like": [sys.executable, "-c", "import vissl_like"],
    "--check, three mistakes": [*PROGRAM, "--check", "config=quick/elpv", *BAD],
    "--check, no mistake": [*PROGRAM, "--check", "config=quick/elpv"],
    "--show": [*PROGRAM, "--show", "config=quick/elpv"],
    "--list": [*PROGRAM, "--list"],
    "import torch (for comparison)": [sys.executable, "-c", "import torch"],
}


def measure(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, check=False)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Runs the cases in turn, so that a change of the machine's load falls on all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(runs):
        for name, command in CASES.items():
            times[name].append(measure(command))
    print(f"| case | wall s | CPU s |   (median of {runs})\n|---|---|---|")
    for name, pairs in times.items():
        wall, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
