"""Begun with one number of processes and ended with another: the losses of the straight run, but for rounding."""

import json
import os
import subprocess
import sys

import pytest
import torch
from methods import METHODS
from test_resume import ROOT, arguments, losses_of, newest, train

from vissl_like.registry import LOSSES

HALF = "config.HOOKS.stop_at={step: 6}"  # the middle of the second of three epochs; SwAV's queue is full by then
# Slow and without momentum; even so this network turns rounding (1e-6 in the first loss) into 1e-3 within five steps,
# with two processes from the start. What tells is the losses next to the resume, and a run that began without rounding.
CALM = ["config.OPTIMIZER={name: sgd, base_lr: 0.001, base_batch: null, momentum: 0}", "config.TRAIN.precision=fp32"]


def run(folder, processes, *more):
    """Exit status; several processes by the command line, which starts them."""
    if processes == 1:
        return train(folder, *more)
    given = arguments(folder, *more, f"config.DISTRIBUTED.processes={processes}")
    command = [sys.executable, str(ROOT / "tools/run_distributed_engines.py"), *given]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def apart(folder, straight, steps):
    """Largest difference of the loss over some steps."""
    mine, theirs = dict(losses_of(folder)), dict(losses_of(straight))
    assert list(mine) == list(theirs) == list(range(1, 13))
    return max(abs(mine[step] - theirs[step]) for step in steps)


def weights_apart(folder, straight):
    """Largest difference of any weight at the end; running statistics of BatchNorm aside."""
    mine, theirs = (torch.load(newest(f).folder / "state.pt", weights_only=True)["model"] for f in (folder, straight))
    names = [name for name in mine if name.endswith((".weight", ".bias"))]
    assert mine.keys() == theirs.keys() and len(names) > 30
    return max(float((mine[name] - theirs[name]).abs().max()) for name in names)


class OneAfterTheOther:
    """A wrong layout: all rows of the first process, then all of the second."""

    def join(self, parts, division):
        return torch.cat(parts, 1)

    def split(self, whole, division, rank):
        return whole


def events_of(folder, kind):
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["swav", "deepcluster_v2"])
def test_two_processes_go_on_as_one_and_one_as_two(tmp_path, method):
    options = [*METHODS[method], *CALM]
    assert run(tmp_path / "straight", 1, *options) == 0
    for before, after in ((2, 1), (1, 2)):
        folder = tmp_path / f"{before} then {after}"
        assert run(folder, before, *options, HALF) == 3
        assert newest(folder).step == 6 and newest(folder).manifest["world_size"] == before
        assert run(folder, after, *options) == 0
        assert newest(folder).manifest["world_size"] == after
        (said,) = [event["text"] for event in events_of(folder, "message") if "resumed" in event["text"]]
        assert said.startswith(f"resumed from step 6, made by {before} process")
        assert f"this run has {after} process" in said and "Divided anew" in said
    straight, one_two, two_one = (tmp_path / name for name in ("straight", "1 then 2", "2 then 1"))
    # Step 8 is the first that uses a queue to which the resumed run added; step 9 has labels from the divided bank.
    assert apart(one_two, straight, range(1, 7)) == 0
    assert apart(one_two, straight, (7, 8)) < 1e-3  # measured: 2.6e-6 and 8.9e-5
    assert apart(one_two, straight, (9, 10)) < 5e-3  # measured: 3.7e-4 and 5.0e-4
    assert apart(two_one, straight, (7, 8)) < 5e-3  # measured: 8.6e-4 and 1.1e-3
    for folder in (one_two, two_one):
        assert weights_apart(folder, straight) < 1e-2  # measured: at most 1.8e-3


@pytest.mark.slow
def test_a_queue_joined_in_a_wrong_order_would_show(tmp_path, monkeypatch):
    options = [*METHODS["swav"], *CALM]
    assert run(tmp_path / "straight", 1, *options) == 0
    assert run(tmp_path / "mistaken", 2, *options, HALF) == 3
    layout = {**LOSSES.get("swav").per_rank_layout, "queue": OneAfterTheOther()}
    monkeypatch.setattr(LOSSES.get("swav"), "per_rank_layout", layout)
    assert run(tmp_path / "mistaken", 1, *options) == 0
    assert apart(tmp_path / "mistaken", tmp_path / "straight", (8,)) > 1e-2  # measured: 3.3e-2
