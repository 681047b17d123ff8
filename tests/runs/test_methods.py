"""Every method through the real engine: stopped and resumed it ends bit-identical, with one process and with two."""

import json
import math
import os
import signal

import pytest
import torch
from methods import METHODS
from processes import run_in_processes
from test_resume import arguments, assert_same, losses_of, newest, state_of, train

from vissl_like.config import load_settings
from vissl_like.engines.train import TrainEngine
from vissl_like.losses.bank import BankLoss
from vissl_like.registry import LOSSES


def test_every_loss_has_a_run():
    named = {text for options in METHODS.values() for text in options if text.startswith("config.LOSS")}
    names = {text.split("name: ")[1].split(",")[0].strip("}") for text in named} | {"swav"}
    ours = {component.name for component in LOSSES.components() if "vissl_like/losses" in str(component.file)}
    assert names == ours


@pytest.mark.parametrize("method", [name for name in METHODS if name != "swav"])
@pytest.mark.parametrize("step", [6])
def test_a_stop_inside_an_epoch_and_a_resume_change_nothing(tmp_path, method, step):
    """Step 6 of 12 lies in the middle of the second epoch; SwAV itself is in test_resume."""
    assert train(tmp_path / "straight", *METHODS[method]) == 0
    assert train(tmp_path / "stopped", *METHODS[method], f"config.HOOKS.stop_at={{step: {step}}}") == 3
    assert newest(tmp_path / "stopped").step == step
    assert train(tmp_path / "stopped", *METHODS[method]) == 0
    assert_same(state_of(tmp_path / "stopped"), state_of(tmp_path / "straight"))
    losses = losses_of(tmp_path / "straight")
    assert losses == losses_of(tmp_path / "stopped") and len(losses) == 12
    assert all(math.isfinite(loss) for _, loss in losses)


@pytest.mark.parametrize("step", [4, 8])
def test_a_stop_between_epochs_clusters_once(tmp_path, step):
    method = METHODS["deepcluster_v2"]
    assert train(tmp_path / "straight", *method) == 0
    assert train(tmp_path / "stopped", *method, f"config.HOOKS.stop_at={{step: {step}}}") == 3
    assert train(tmp_path / "stopped", *method) == 0
    assert_same(state_of(tmp_path / "stopped"), state_of(tmp_path / "straight"))


def test_a_signal_in_the_first_pass_ends_it_at_once(tmp_path, monkeypatch):
    method = METHODS["deepcluster_v2"]
    assert train(tmp_path / "straight", *method) == 0
    looked = []

    def look(self, output):
        looked.append(len(looked))
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(BankLoss, "look_at_first_pass", look)
        assert train(tmp_path / "stopped", *method) == 143
    assert looked == [0]  # not one batch more
    assert not list((tmp_path / "stopped" / "checkpoints").glob("step_*"))
    assert train(tmp_path / "stopped", *method) == 0
    assert_same(state_of(tmp_path / "stopped"), state_of(tmp_path / "straight"))


def _two(rank, world_size, folder, more):
    os.environ["PYTHONUNBUFFERED"] = "1"
    return TrainEngine(load_settings(arguments(folder, *more))).run()


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "swav"])
def test_two_processes_resume_with_their_own_state(tmp_path, method):
    more = [*METHODS[method], "config.DISTRIBUTED.processes=2"]
    assert run_in_processes(_two, 2, str(tmp_path / "straight"), more) == [0, 0]
    assert run_in_processes(_two, 2, str(tmp_path / "stopped"), [*more, "config.HOOKS.stop_at={step: 6}"]) == [3, 3]
    assert run_in_processes(_two, 2, str(tmp_path / "stopped"), more) == [0, 0]
    ends = [newest(tmp_path / name).folder for name in ("straight", "stopped")]
    for file in ("state.pt", "rank_00000.pt", "rank_00001.pt"):
        left, right = (torch.load(end / file, weights_only=True) for end in ends)
        assert _same(left, right), file
    own = [torch.load(ends[0] / f"rank_{rank:05d}.pt", weights_only=True)["loss"] for rank in (0, 1)]
    for name, value in own[0].items():
        if value.ndim:
            assert not torch.equal(value, own[1][name]), f"{name} should differ between processes"


def test_the_teacher_is_what_is_kept(tmp_path):
    assert train(tmp_path, *METHODS["dino"]) == 0
    end = newest(tmp_path).folder
    from safetensors.torch import load_file

    kept, state = load_file(end / "backbone.safetensors"), torch.load(end / "state.pt", weights_only=True)
    for name, value in kept.items():
        assert torch.equal(value, state["teacher"][f"network.trunk.{name}"])
    assert not torch.equal(kept["pos_embed"], state["model"]["trunk.pos_embed"])
    assert json.loads((end / "backbone.json").read_text())["source"] == "teacher of the trained network"
    assert train(tmp_path / "student", *METHODS["dino"], "config.CHECKPOINT.backbone=student") == 0
    kept = load_file(newest(tmp_path / "student").folder / "backbone.safetensors")
    assert torch.equal(kept["pos_embed"], state["model"]["trunk.pos_embed"])


def _same(left, right):
    """Nested dictionaries and lists with equal leaves, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return left == right
