"""Feeds random and damaged inputs to everything that reads what users and disks give: each must do, or refuse clearly.

An outcome other than success or the reader's own kind of error is a crash: it is printed with its place, and the
smallest input that led there is kept. The readers are in fuzz_readers.py.

Usage: python dev/fuzz.py [--inputs 100000] [--only tar,settings] [--seed 0] [--out DIR]   (pip install hypothesis)
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_readers import Target, targets
from hypothesis import HealthCheck, Phase, given, seed, settings


class Findings(NamedTuple):
    """How often an input was read or refused, and by place of the crash the smallest input and the traceback."""

    outcomes: Counter[str]
    crashes: dict[str, tuple[Any, str]]


def run(target: Target, inputs: int, number: int = 0) -> Findings:
    """Reads so many inputs.

    Args:
        target: what reads them.
        inputs: how many.
        number: seed of the inputs.
    """
    findings = Findings(Counter(), {})

    @seed(number)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def read_one(value: Any) -> None:
        try:
            target.read(value)
            findings.outcomes["read"] += 1
        except target.allowed:
            findings.outcomes["refused"] += 1
        except (Exception, RecursionError) as error:
            findings.outcomes["crashed"] += 1
            frame = next(
                (f for f in reversed(traceback.extract_tb(error.__traceback__)) if "vissl_like" in f.filename),
                traceback.extract_tb(error.__traceback__)[-1],
            )
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            known = findings.crashes.get(place)
            if known is None or len(repr(value)) < len(repr(known[0])):
                findings.crashes[place] = (value, traceback.format_exc(limit=-6))

    read_one()
    return findings


def main() -> None:
    """Fuzzes the chosen readers and prints one line for each; exit status 1 if any input crashed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs over all readers")
    parser.add_argument("--only", default="", help="readers, by comma")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder for inputs that crash a reader")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    crashed = 0
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            name: target
            for name, target in targets(Path(folder)).items()
            if not options.only or name in options.only.split(",")
        }
        total = sum(target.share for target in chosen.values())
        for name, target in chosen.items():
            started = time.perf_counter()
            found = run(target, round(options.inputs * target.share / total), options.seed)
            seconds = time.perf_counter() - started
            print(f"{name:10} {dict(found.outcomes)} in {seconds:.0f} s", flush=True)
            for place, (value, trace) in found.crashes.items():
                crashed += 1
                print(f"  {place}\n    input: {value!r:.400}\n{trace}", flush=True)
                if options.out is not None:
                    options.out.mkdir(parents=True, exist_ok=True)
                    (options.out / f"{name}_{crashed}.txt").write_text(repr(value), encoding="utf-8")
    sys.exit(1 if crashed else 0)


if __name__ == "__main__":
    main()
