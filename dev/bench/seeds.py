#!/usr/bin/env python3
"""Several runs of one recipe that differ in their seed, as one Markdown table: mean, deviation, distance to each floor.

    for s in 0 1 2; do
        vissl-like config=quick/elpv config.ENGINE=full config.SEED=$s config.OUTPUT_DIR=runs/elpv_seed$s
    done
    python dev/bench/seeds.py runs/elpv_seed0 runs/elpv_seed1 runs/elpv_seed2

Reads ``evaluation_<name>.json`` and ``.npz`` of each folder, whatever the recipe was. Intervals resample seeds and test
images together, each network being compared with the floor of its own seed image by image
(``vissl_like.evaluation.compare``). With two or three seeds they are somewhat too narrow; a claim should not hang on
their last tenth.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.evaluation.compare import paired_interval

SAME_IN_ALL = ("method", "arch", "arch_options", "channels", "view_sizes", "mean", "std")
"""Facts about the trained network, from the record beside its weights; runs that differ here are of other recipes."""


class TableError(Exception):
    """The folders do not make a table."""


@dataclass(frozen=True)
class Runs:
    """One evaluation over S runs.

    Attributes:
        name: of the evaluation.
        method: that trained the networks, empty if nothing says so.
        correct: by subject, ``[S, M]`` whether each run is right on each test image.
        seeds: of the runs.
        steps: of the weights.
    """

    name: str
    method: str
    correct: dict[str, np.ndarray]
    seeds: list[int]
    steps: list[int | None]


def read_runs(folders: list[Path], name: str) -> Runs:
    """One evaluation of every folder.

    Raises:
        TableError: it is missing somewhere, or the test images, the subjects or the recipes differ.
    """
    correct: dict[str, list[np.ndarray]] = {}
    records: list[dict[str, Any]] = []
    reference = None
    for folder in folders:
        record, found = read_evaluation(folder, name)
        images = (found["indices"].tolist(), found["labels"].tolist())
        reference = reference or images
        if images != reference:
            raise TableError(f"{folder} was scored on other test images than {folders[0]}: they cannot be paired")
        for subject, facts in record["subjects"].items():
            if found[f"indices_{facts['slug']}"].tolist() != images[0]:
                raise TableError(f"{folder}: {subject} was scored on other images than the first subject")
            correct.setdefault(subject, []).append(found[f"correct_{facts['slug']}"])
        records.append(record)
    uneven = [subject for subject, rows in correct.items() if len(rows) != len(folders)]
    if uneven:
        raise TableError(f"not every folder has a {name} result of: {', '.join(uneven)}")
    seeds = [record["settings"]["SEED"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise TableError(f"the runs must differ in their seed, got {seeds}")
    _require_one_recipe(folders, records)
    return Runs(
        name,
        _network(records[0]).get("method", ""),
        {subject: np.stack(rows) for subject, rows in correct.items()},
        seeds,
        [record["step"] for record in records],
    )


def read_evaluation(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the per-image results of one evaluation.

    Raises:
        TableError: they are missing, damaged, or the evaluation keeps no right and wrong per image.
    """
    try:
        record = json.loads((folder / f"evaluation_{name}.json").read_text(encoding="utf-8"))
        with np.load(folder / f"evaluation_{name}.npz", allow_pickle=False) as arrays:
            found = dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TableError(f"{folder} has no complete {name} evaluation: {error}") from error
    wanted = [f"{part}_{facts['slug']}" for facts in record["subjects"].values() for part in ("correct", "indices")]
    if not {"indices", "labels", *wanted} <= found.keys():
        raise TableError(
            f"the {name} evaluation of {folder} does not say which images were right: it has no such table"
        )
    return record, found


def _network(record: dict[str, Any]) -> dict[str, Any]:
    return record.get("weights", {}).get("backbone", {})


def _require_one_recipe(folders: list[Path], records: list[dict[str, Any]]) -> None:
    """A mean over different recipes would look like a mean over seeds."""
    for folder, record in zip(folders, records, strict=True):
        for key in SAME_IN_ALL:
            first, this = _network(records[0]).get(key), _network(record).get(key)
            if this != first:
                raise TableError(f"{folder} is of another recipe than {folders[0]}: {key} is {this}, not {first}")


def table(runs: Runs) -> str:
    """The Markdown table of one evaluation: the first subject, then its floors."""
    names = list(runs.correct)
    first = runs.correct[names[0]]
    title = f"**{runs.name}** of {runs.method}" if runs.method else f"**{runs.name}**"
    lines = [
        f"{title}, top-1 in percent, {first.shape[1]} test images, seeds {', '.join(map(str, runs.seeds))}, "
        f"weights of step {', '.join(map(str, runs.steps))}",
        "",
        f"| features | {' | '.join(f'seed {seed}' for seed in runs.seeds)} | mean ± sd | {names[0]} - this [95 %] |",
        f"|---|{'---:|' * (len(runs.seeds) + 2)}",
    ]
    for name in names:
        accuracy = 100 * runs.correct[name].mean(axis=1)
        deviation = accuracy.std(ddof=1) if len(accuracy) > 1 else 0.0
        difference = "" if name == names[0] else str(paired_interval(first, runs.correct[name]))
        cells = [name, *(f"{value:.1f}" for value in accuracy), f"{accuracy.mean():.1f} ± {deviation:.1f}", difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; 0 unless something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="OUTPUT_DIR of each run")
    parser.add_argument(
        "--evaluations", nargs="+", default=["knn", "linear"], help="which (default: %(default)s)", metavar="NAME"
    )
    options = parser.parse_args(arguments)
    try:
        print("\n\n".join(table(read_runs(options.folders, name)) for name in options.evaluations))
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
