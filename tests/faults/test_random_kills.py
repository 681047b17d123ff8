"""dev/random_kills.py can fail: it sees a changed bit, a lost step, and what a kill has left."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vissl_like.config import load_settings
from vissl_like.engines.train import TrainEngine

DEV = Path(__file__).parents[2] / "dev"


@pytest.fixture
def killing(monkeypatch):
    monkeypatch.syspath_prepend(str(DEV))
    yield importlib.import_module("killing")
    sys.modules.pop("killing", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    settings = ["config=quick/synthetic", "config.TRAIN.length=2 steps", "config.TRAIN.threads=1"]
    assert (
        TrainEngine(load_settings([*settings, f"config.OUTPUT_DIR={folder}", "config.HOOKS.events={every: 1}"])).run()
        == 0
    )
    return folder


def test_equal_runs_do_not_differ(killing, tmp_path, finished):
    shutil.copytree(finished, tmp_path / "copy")
    assert killing.differences(finished, tmp_path / "copy") == []


@pytest.mark.parametrize("what", ["weight", "optimizer", "queue", "type", "backbone", "loss", "step", "missing"])
def test_the_smallest_difference_is_seen(killing, tmp_path, finished, what):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    end = copy / "checkpoints" / "step_00000002"
    file = end / ("rank_00000.pt" if what == "queue" else "state.pt")
    state = torch.load(file, weights_only=True)
    if what == "weight":
        tensor = state["model"]["trunk.conv1.weight"]
        tensor[0, 0, 0, 0] = torch.nextafter(tensor[0, 0, 0, 0], torch.tensor(9.0))
    elif what == "optimizer":
        state["optimizer"]["state"][0]["exp_avg"][0, 0, 0, 0] *= -1
    elif what == "queue":
        state["loss"]["queue"].reshape(-1)[0] += 1
    elif what == "type":
        state["step"] = float(state["step"])
    elif what == "backbone":
        tensors = load_file(end / "backbone.safetensors")
        tensors["conv1.weight"] = -tensors["conv1.weight"]
        save_file(tensors, end / "backbone.safetensors")
    elif what in ("loss", "step"):
        records = [json.loads(line) for line in (copy / "events.jsonl").read_text().splitlines()]
        steps = [record for record in records if record["kind"] == "step"]
        if what == "loss":
            steps[0]["loss"] += 1e-12
        else:
            records.append(steps[0])
        (copy / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        end.rename(end.with_name("step_00000001"))
    if what != "missing":
        torch.save(state, file)
    assert len(killing.differences(finished, copy)) == 1


def test_what_lies_half_written_is_told(killing, tmp_path):
    folder = tmp_path / "checkpoints"
    assert killing.look(tmp_path).stage == "-"
    (folder / "step_00000003").mkdir(parents=True)
    (folder / ".step_00000002.damaged").mkdir()
    half = folder / ".step_00000004.tmp"
    half.mkdir()
    assert killing.look(tmp_path).stage == "nothing yet"
    for name, stage in (("rank_00000.pt", "rank_*.pt"), ("state.pt", "state.pt"), ("manifest.json", "manifest.json")):
        (half / name).write_bytes(b"half")
        found = killing.look(tmp_path)
        assert (found.stage, found.step, found.newest, found.damaged) == (stage, 4, 3, 1)
    watch = killing.Watch(tmp_path)
    assert watch.look().half is None  # left by an earlier start
    shutil.rmtree(half)
    assert watch.look().half is None
    half.mkdir()
    assert watch.look().half == {}
