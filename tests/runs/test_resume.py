"""Stopped, killed or straight: the same losses and weights, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import run_in_processes

from vissl_like.config import load_settings
from vissl_like.engines.train import TrainEngine
from vissl_like.trainer.checkpoint import CheckpointStore, load_states
from vissl_like.utils.errors import UserError

PLUGIN = str(Path(__file__).parent / "stop_plugin.py")
ROOT = Path(__file__).parents[2]


def arguments(folder, *more, base="quick/synthetic"):
    return [
        f"config={base}",
        f"config.PLUGINS=[{PLUGIN}]",
        f"config.OUTPUT_DIR={folder}",
        "config.HOOKS.console=null",
        "config.HOOKS.events={every: 1}",
        "config.TRAIN.threads=1",
        *more,
    ]


def train(folder, *more, **options):
    return TrainEngine(load_settings(arguments(folder, *more, **options))).run()


def newest(folder):
    found = CheckpointStore(Path(folder) / "checkpoints", 2, None, None, say=lambda *_: None).newest()
    assert found is not None
    return found


def state_of(folder):
    """Every tensor of the final state by name, optimizer and queue included."""
    common, per_rank = load_states(newest(folder))
    flat = {}

    def walk(value, path):
        if isinstance(value, torch.Tensor):
            flat[path] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, (list, tuple)):
            for key, inner in enumerate(value):
                walk(inner, f"{path}.{key}")

    walk({"model": common["model"], "optimizer": common["optimizer"], "loss": common["loss"], "rank": per_rank}, "")
    return flat


def losses_of(folder):
    records = [json.loads(line) for line in (Path(folder) / "events.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["kind"] == "step"]


def assert_same(left, right):
    assert left.keys() == right.keys() and len(left) > 60
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    assert train(folder) == 0
    return state_of(folder), losses_of(folder)


@pytest.mark.parametrize("step", [1, 6, 9])
def test_a_stop_at_any_step_and_a_resume_change_nothing(tmp_path, straight, step):
    assert train(tmp_path, f"config.HOOKS.stop_at={{step: {step}}}") == 3
    assert newest(tmp_path).step == step
    assert train(tmp_path) == 0
    assert_same(state_of(tmp_path), straight[0])
    assert losses_of(tmp_path) == straight[1]


def test_kill_minus_nine_between_checkpoints_recomputes_the_same(tmp_path, straight):
    command = [sys.executable, str(ROOT / "tools/run_distributed_engines.py")]
    killed = subprocess.run([*command, *arguments(tmp_path, "config.HOOKS.kill_at={step: 7}")], cwd=ROOT)
    assert killed.returncode == -9 and newest(tmp_path).step == 4
    assert train(tmp_path) == 0
    assert_same(state_of(tmp_path), straight[0])
    assert losses_of(tmp_path) == straight[1]


def test_worker_processes_do_not_change_the_result(tmp_path, straight):
    assert train(tmp_path, "config.DATA.WORKERS=2") == 0
    assert_same(state_of(tmp_path), straight[0])


@pytest.mark.parametrize("step", [8, 9])
def test_a_damaged_newest_checkpoint_costs_only_time(tmp_path, straight, step):
    """Also where the next run writes a checkpoint at that very step (8)."""
    assert train(tmp_path, f"config.HOOKS.stop_at={{step: {step}}}") == 3
    file = newest(tmp_path).folder / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])
    assert train(tmp_path, "config.CHECKPOINT.keep=1") == 0
    assert_same(state_of(tmp_path), straight[0])
    assert (tmp_path / "checkpoints" / f".step_{step:08d}.damaged").is_dir()


def test_given_weights_are_loaded_when_every_checkpoint_is_damaged(tmp_path, capsys):
    assert train(tmp_path / "first", "config.HOOKS.stop_at={step: 1}") == 3
    weights = newest(tmp_path / "first").backbone
    start = [f"config.MODEL.WEIGHTS.path={weights}", "config.HOOKS.console={}"]
    assert train(tmp_path / "second", *start, "config.HOOKS.stop_at={step: 1}") == 3
    (newest(tmp_path / "second").folder / "state.pt").write_bytes(b"torn")
    capsys.readouterr()
    assert train(tmp_path / "second", *start, "config.HOOKS.stop_at={step: 1}") == 3
    shown = capsys.readouterr()
    assert "loaded 72/72 tensors" in shown.out and "new run" in shown.out and "is damaged" in shown.err


def test_changed_options_and_changed_data_are_not_taken_from_the_checkpoint(tmp_path):
    assert train(tmp_path, "config.HOOKS.stop_at={step: 2}") == 3
    with pytest.raises(UserError, match="dataset_size: 64 -> 80"):
        train(tmp_path, "config.DATA.TRAIN.count=80")
    forced = ["config.OPTIMIZER.weight_decay=0.7", "config.CHECKPOINT.resume=force"]
    assert train(tmp_path, *forced) == 0
    common, _ = load_states(newest(tmp_path))
    assert common["optimizer"]["param_groups"][0]["weight_decay"] == 0.7


def _two(rank, world_size, folder, more):
    os.environ["PYTHONUNBUFFERED"] = "1"
    return TrainEngine(load_settings(arguments(folder, *more))).run()


@pytest.mark.slow
def test_two_processes_resume_with_their_own_queues(tmp_path):
    more = ["config.DISTRIBUTED.processes=2"]
    assert run_in_processes(_two, 2, str(tmp_path / "straight"), more) == [0, 0]
    stopped = [*more, "config.HOOKS.stop_at={step: 6}"]
    assert run_in_processes(_two, 2, str(tmp_path / "stopped"), stopped) == [3, 3]
    assert run_in_processes(_two, 2, str(tmp_path / "stopped"), more) == [0, 0]
    ends = [newest(tmp_path / name).folder for name in ("straight", "stopped")]
    for file in ("state.pt", "rank_00000.pt", "rank_00001.pt"):
        left, right = (torch.load(end / file, weights_only=True) for end in ends)
        assert str(left) == str(right)
    queues = [torch.load(ends[0] / f"rank_{rank:05d}.pt", weights_only=True)["loss"]["queue"] for rank in (0, 1)]
    assert queues[0].any() and not torch.equal(queues[0], queues[1])


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path):
    """Equal up to rounding: sums over processes are in another order."""
    exact = "config.TRAIN.precision=fp32"  # in bf16, the default where a processor has it, rounding is larger
    assert train(tmp_path / "one", exact) == 0
    assert run_in_processes(_two, 2, str(tmp_path / "two"), [exact, "config.DISTRIBUTED.processes=2"]) == [0, 0]
    for (step, mine), (_, expected) in zip(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), strict=True):
        assert mine == pytest.approx(expected, rel=2e-2 if step > 6 else 1e-3), step


def test_other_settings_in_the_same_folder_are_refused_with_the_differences(tmp_path):
    assert train(tmp_path, "config.HOOKS.stop_at={step: 1}") == 3
    with pytest.raises(UserError, match=r"other settings(.|\n)*OPTIMIZER.base_lr: 0.001 -> 0.01"):
        train(tmp_path, "config.OPTIMIZER.base_lr=0.01")
    with pytest.raises(UserError, match="holds a checkpoint of step 1"):
        train(tmp_path, "config.CHECKPOINT.resume=never")
    assert train(tmp_path, "config.OPTIMIZER.base_lr=0.01", "config.CHECKPOINT.resume=force") == 0
