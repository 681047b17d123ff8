#!/usr/bin/env python3
"""Features of this project beside those of lightly: the same images, encoder, length and probe, several seeds.

    pip install lightly          # optional; for an environment of its own see --python
    python dev/bench/quality_against_lightly.py --config quick/fashion_mnist quick/fashion_mnist_dino --seeds 0 1 2
    python dev/bench/quality_against_lightly.py --config quick/fashion_mnist --seeds 0 --out runs/try \\
        config.TRAIN.length='2 epochs' config.DATA.TRAIN.limit=500 config.DATA.PROBE_TRAIN.limit=500

Both sides train in turn, each in a process of its own, with one thread and no worker. What they share and what is
lightly's own is told in ``lightly_side.py``. Both encoders are then scored by this project's k-NN and linear probe
(``config=benchmark/knn``, ``benchmark/linear``). Prints one Markdown row per recipe: accuracy in percent, mean and
deviation over seeds, paired differences with their 95 % interval, CPU seconds of a whole training process (start
included). A finished step is not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from seeds import Runs, TableError, read_runs

from vissl_like.evaluation.compare import paired_interval

EVALUATIONS = ("knn", "linear")
TRAINED, FLOORS = "trained", ("random init", "raw pixels")
ONE_CORE = [
    "config.TRAIN.threads=1",
    "config.TRAIN.precision=fp32",
    "config.DATA.WORKERS=0",
    "config.DISTRIBUTED.device=cpu",
]
SIDES = ("ours", "lightly")
MISSING = (
    "the other side needs the package lightly:  pip install lightly  (if in an environment of its own, then one that "
    "has this project too; give its Python with --python)"
)


class StepError(Exception):
    """A step of the comparison failed."""


def train_command(side: str, folder: Path, settings: list[str], python: str) -> list[str]:
    """The command that trains one side into a folder."""
    if side == "lightly":
        return [python, str(Path(__file__).with_name("lightly_side.py")), str(folder), *settings]
    ending = ["config.ENGINE=train", "config.CHECKPOINT.resume=never", f"config.OUTPUT_DIR={folder}"]
    return [sys.executable, "-m", "vissl_like.engines.cli", *settings, *ending]


def evaluate_command(side: str, folder: Path, settings: list[str], name: str) -> list[str]:
    """The command that scores one side's encoder; floors are the same for both, and scored once."""
    command = [sys.executable, "-m", "vissl_like.engines.cli", *settings]
    command += [f"config=benchmark/{name}", f"config.OUTPUT_DIR={folder}"]
    if side == "lightly":
        command += [f"config.EVALUATE.weights={folder / 'backbone.safetensors'}", "config.EVALUATE.floors=false"]
    return command


def once(folder: Path, name: str, command: list[str]) -> float:
    """Runs a command unless it ran before; its output goes to ``<name>.log``.

    Returns:
        CPU seconds of the process and those that it waited for.

    Raises:
        StepError: it failed, or the folder is of another comparison.
    """
    record = folder / f"{name}.json"
    if record.is_file():
        done = json.loads(record.read_text(encoding="utf-8"))
        if done["command"] != command:
            raise StepError(f"{folder} was made with other settings; remove it, or choose another --out")
        return float(done["cpu_seconds"])
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    print(f"{name} in {folder} ...", file=sys.stderr, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("wb") as stream:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        status = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if status != 0:
        ending = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
        raise StepError(f"{name} failed with exit status {status} (whole output in {log}):\n{ending}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record.write_text(json.dumps({"command": command, "cpu_seconds": round(seconds, 1)}) + "\n", encoding="utf-8")
    return seconds


def compare(config: str, seeds: list[int], settings: list[str], out: Path, python: str) -> str:
    """Everything for one recipe; its Markdown row.

    Raises:
        StepError, TableError: something failed or does not fit.
    """
    top = out / re.sub(r"\W+", "_", config)
    folders = {side: [top / f"{side}_seed{seed}" for seed in seeds] for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number, seed in enumerate(seeds):
        given = [f"config={config}", *settings, f"config.SEED={seed}", *ONE_CORE]
        for side in SIDES:
            folder = folders[side][number]
            seconds[side].append(once(folder, "train", train_command(side, folder, given, python)))
        for side in SIDES:
            folder = folders[side][number]
            for name in EVALUATIONS:
                once(folder, f"evaluate_{name}", evaluate_command(side, folder, given, name))
    runs = {name: {side: read_runs(folders[side], name) for side in SIDES} for name in EVALUATIONS}
    return row(config, runs, seconds)


def header() -> str:
    """The first two lines of the table."""
    cells = ["recipe", "seeds"]
    for name in EVALUATIONS:
        cells += [f"{name}, ours", f"{name}, lightly", "difference [95 %]", *(f"{name}, {floor}" for floor in FLOORS)]
    cells += ["CPU s, ours", "CPU s, lightly"]
    return f"| {' | '.join(cells)} |\n|---|---|{'---:|' * (len(cells) - 2)}"


def row(config: str, runs: dict[str, dict[str, Runs]], seconds: dict[str, list[float]]) -> str:
    """The table's row of one recipe.

    Args:
        config: its name.
        runs: by evaluation and side.
        seconds: CPU seconds of the trainings, by side.

    Raises:
        TableError: the two sides were scored on different images.
    """
    cells = [config, " ".join(map(str, runs[EVALUATIONS[0]]["ours"].seeds))]
    for name in EVALUATIONS:
        ours, theirs = (runs[name][side].correct[TRAINED] for side in SIDES)
        if ours.shape != theirs.shape:
            raise TableError(f"the sides have {name} scores of {ours.shape} and {theirs.shape} seeds and images")
        cells += [
            spread(100 * ours.mean(axis=1)),
            spread(100 * theirs.mean(axis=1)),
            str(paired_interval(ours, theirs)),
        ]
        cells += [spread(100 * runs[name]["ours"].correct[floor].mean(axis=1)) for floor in FLOORS]
    cells += [spread(np.array(seconds[side]), 0) for side in SIDES]
    return f"| {' | '.join(cells)} |"


def spread(values: np.ndarray, digits: int = 1) -> str:
    """``mean ± deviation`` over seeds; of one seed the value alone."""
    text = f"{values.mean():.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def has_lightly(python: str) -> bool:
    """Whether a Python finds the package."""
    if python == sys.executable:
        return importlib.util.find_spec("lightly") is not None
    code = (
        "import importlib.util as u, sys; sys.exit(u.find_spec('lightly') is None or u.find_spec('vissl_like') is None)"
    )
    return subprocess.run([python, "-c", code], stdin=subprocess.DEVNULL).returncode == 0


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 0 unless something is missing or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, metavar="NAME", help="recipes, of SwAV or DINO")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/against_lightly"), help="folder (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="a Python that has lightly and this project")
    words = sys.argv[1:] if arguments is None else arguments
    settings = [word for word in words if re.match(r"config(\.[^=]+)?=", word)]
    options = parser.parse_args([word for word in words if word not in settings])
    if not has_lightly(options.python):
        print(f"error: {MISSING}", file=sys.stderr)
        return 2
    try:
        rows = [compare(config, options.seeds, settings, options.out, options.python) for config in options.config]
    except (StepError, TableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join([header(), *rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
