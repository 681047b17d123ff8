"""Training steps translated by torch.compile against plain ones, and what is said where there is no compiler."""

import os
import shutil

import pytest
import torch

from vissl_like.config import load_settings
from vissl_like.records import Batch, Progress
from vissl_like.trainer import network
from vissl_like.trainer.build import build_run
from vissl_like.trainer.network import compiled
from vissl_like.trainer.signals import StopSignals
from vissl_like.utils.errors import UserError

SGD = "config.OPTIMIZER={name: sgd, base_lr: 0.001, base_batch: null}"
"""Adam divides by the root of the square: of a gradient that is 0 but for rounding it would take the sign."""

NETWORKS = {
    "swav, resnet": ["config.MODEL.TRUNK={name: resnet, depth: 10, width: 0.125, stem: small}"],
    "dino, vit": [
        "config.MODEL.TRUNK={name: vit, size: tiny, patch_size: 8, image_size: 24, depth: 2}",
        "config.MODEL.HEAD={name: dino, hidden_dim: 32, bottleneck_dim: 16, num_prototypes: 12}",
        "config.LOSS={name: dino}",
        "config.MODEL.TEACHER={name: ema, momentum: 0.9}",
    ],
}


def three_steps(folder, changes, mode):
    """Losses of three updates, weights after them, names of the weights."""
    given = ["config=quick/synthetic", f"config.TRAIN.compile={mode}", "config.TRAIN.precision=fp32", SGD, *changes]
    run = build_run(load_settings([*given, "config.TRAIN.global_batch=8"]), folder, StopSignals(), resuming=False)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for number in range(3):
        sides, channels = run.parts.settings.DATA.TRANSFORM["views"], run.dataset.channels
        views = [
            torch.randint(256, (8, channels, group["size"], group["size"]), dtype=torch.uint8, generator=generator)
            for group in sides
            for _ in range(group["count"])
        ]
        progress = Progress(number, run.plan.total_steps, run.plan.steps_per_epoch)
        losses.append(run.parts.step([Batch(views, torch.arange(8))], progress).loss)
    return losses, run.model.state_dict()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.parametrize("case", NETWORKS)
def test_compiled_steps_equal_plain_ones(tmp_path, case):
    losses, weights = three_steps(tmp_path, NETWORKS[case], "default")
    expected, plain = three_steps(tmp_path, NETWORKS[case], "none")
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-5) and expected[0] != expected[1]
    assert weights.keys() == plain.keys()
    for name, value in weights.items():
        torch.testing.assert_close(
            value, plain[name], rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_without_a_compiler(monkeypatch):
    module = torch.nn.Linear(2, 2)
    monkeypatch.setattr(network.shutil, "which", lambda name: None)
    assert compiled(module, "none") is module
    with pytest.raises(UserError, match=r"TRAIN\.compile = default needs a C\+\+ compiler"):
        compiled(module, "default")
