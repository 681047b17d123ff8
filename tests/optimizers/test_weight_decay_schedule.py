"""Weight decay that follows a schedule (DINO's rises from 0.04 to 0.4), through the training step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vissl_like.losses.base import Loss
from vissl_like.models.heads.base import Head
from vissl_like.models.ssl_model import SSLModel
from vissl_like.records import Batch, HeadOutput, Progress
from vissl_like.registry import OPTIMIZERS
from vissl_like.schedules.cosine import Cosine
from vissl_like.trainer.build import build_schedules
from vissl_like.trainer.precision import Precision
from vissl_like.trainer.step import TrainStep
from vissl_like.utils.errors import UserError

STEPS, LENGTH, LR = 10, 5, 0.1
RISING = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))  # official cosine_scheduler


class Flatten(nn.Module):
    feature_dim = 4

    def forward(self, images):
        return images.flatten(1)


class LinearHead(Head):
    embedding_dim = 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        nn.init.constant_(self.layer.bias, 1.0)
        self.lengths = nn.Parameter(torch.ones(3, 1))

    def forward(self, features):
        return HeadOutput(self.layer(features) * self.lengths.T)


class NoPull(Loss):
    """Its gradient is zero: weights move by decay alone."""

    def forward(self, output, batch, progress):
        return {"loss": (output.head.embedding * 0).sum()}


def run(name, schedules, **options):
    """Weights before, head after, and weight decay of every group at every step."""
    torch.manual_seed(0)
    model = SSLModel(Flatten(), LinearHead())
    before = {key: parameter.detach().clone() for key, parameter in model.head.named_parameters()}
    optimizer = OPTIMIZERS.get(name)(
        list(model.named_parameters()), LR, weight_decay=0.04, decay_vectors=False, **options
    )
    step = TrainStep(
        model,
        model,
        NoPull(),
        optimizer,
        {"lr": lambda p: LR, **schedules},
        Precision("fp32", "cpu"),
        torch.Tensor.float,
    )
    decays = []
    for number in range(STEPS):
        step([Batch([torch.ones(2, 1, 2, 2, dtype=torch.uint8)], torch.arange(2))], Progress(number, STEPS, LENGTH))
        decays.append([group["weight_decay"] for group in optimizer.param_groups])
    return before, model.head, np.array(decays)


def test_a_cosine_rises_to_its_final_value_as_the_official_array_does():
    schedule = Cosine(0.04, final=0.4)
    values = [schedule(Progress(step, STEPS, LENGTH)) for step in range(STEPS)]
    np.testing.assert_allclose(values, RISING, rtol=1e-6)
    assert values[0] == pytest.approx(0.04) and values[-1] < 0.4 and values == sorted(values)


def test_a_final_rate_of_its_own_with_warmup():
    schedule = Cosine(0.5, final=1e-3, warmup="4 steps")
    fall = 1e-3 + 0.5 * (0.5 - 1e-3) * (1 + np.cos(np.pi * np.arange(6) / 6))
    values = [schedule(Progress(step, STEPS, LENGTH)) for step in range(STEPS)]
    np.testing.assert_allclose(values, np.concatenate((np.linspace(0, 0.5, 4), fall)), rtol=1e-6)


def test_two_final_values_are_refused():
    with pytest.raises(UserError, match="not both"):
        Cosine(0.04, final=0.4, final_ratio=0.5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "larc"])
def test_only_the_decayed_group_follows(name):
    _, _, decays = run(name, {"weight_decay": Cosine(0.04, final=0.4)})
    np.testing.assert_allclose(decays[:, 0], RISING, rtol=1e-6)
    assert decays.shape == (STEPS, 2) and not decays[:, 1].any()


@pytest.mark.parametrize("name", ["adamw", "sgd", "larc"])
def test_without_a_schedule_it_stays(name):
    _, _, decays = run(name, {})
    assert (decays == [0.04, 0.0]).all()


@pytest.mark.parametrize(("name", "options"), [("adamw", {}), ("sgd", {"momentum": 0.0})])
def test_weights_shrink_by_the_scheduled_decay_and_vectors_do_not(name, options):
    before, head, _ = run(name, {"weight_decay": Cosine(0.04, final=0.4)}, **options)
    shrunk = float(np.prod(1 - LR * RISING))
    assert shrunk < 0.85
    torch.testing.assert_close(head.layer.weight, before["layer.weight"] * shrunk)
    torch.testing.assert_close(head.lengths, before["lengths"] * shrunk)  # [3, 1]: a matrix, like DINO's weight_g
    assert torch.equal(head.layer.bias, before["layer.bias"])


def test_the_schedule_starts_from_the_optimizers_own_decay():
    optimizer = OPTIMIZERS.get("adamw")(list(nn.Linear(2, 2).named_parameters()), LR, weight_decay=0.07)
    sections = SimpleNamespace(lr={"name": "constant"}, weight_decay={"name": "cosine", "final": 0.4})
    plan = SimpleNamespace(peak_lr=LR, total_steps=STEPS, steps_per_epoch=LENGTH)
    schedules = build_schedules(SimpleNamespace(SCHEDULES=sections), plan, optimizer)
    assert schedules["weight_decay"](Progress(0, STEPS, LENGTH)) == pytest.approx(0.07)
    sections.weight_decay = None
    assert list(build_schedules(SimpleNamespace(SCHEDULES=sections), plan, optimizer)) == ["lr"]
