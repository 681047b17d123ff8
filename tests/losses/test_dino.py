"""DINO's whole update, through the real training step, against a plain float64 transcription of the official loop."""

import numpy as np
import pytest
import torch
from plain_dino import (
    CLIP,
    IMAGES,
    LAST_LR,
    LENGTH,
    LR,
    OUTPUTS,
    STEPS,
    Official,
    difference,
    normalised,
    record,
    views_of,
)
from processes import run_in_processes
from torch import nn

from vissl_like.losses.base import LossContext
from vissl_like.losses.dino import DINOLoss
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.models.heads.dino import DINOHead
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.ema import EMATeacher
from vissl_like.optimizers.adamw import adamw
from vissl_like.records import Batch, Progress
from vissl_like.schedules.cosine import Cosine
from vissl_like.trainer.clipping import Clipping
from vissl_like.trainer.precision import Precision
from vissl_like.trainer.step import TrainStep

TOLERANCE = 1e-5


class TinyTrunk(nn.Module):
    """Three pooled statistics and a linear layer: sees size and content, quick to train."""

    feature_dim = 12

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 12)

    def forward(self, images):
        return torch.tanh(self.layer(torch.cat([images.mean((2, 3)), images.amax((2, 3)), images.std((2, 3))], 1)))


def make_model(batch_norm=False):
    """A network in the middle of its life: at DINO's start, with weights of size 0.02, rounding is magnified."""
    torch.manual_seed(4)
    options = {"hidden_dim": 10, "bottleneck_dim": 6, "num_prototypes": OUTPUTS, "norm_last_layer": False}
    model = SSLModel(TinyTrunk(), DINOHead(12, batch_norm=batch_norm, freeze_last_layer="1 epochs", **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * torch.randn(parameter.shape)
    return model.double()


def our_training(batch_norm=False):
    """Losses, weights of student and teacher, and centre, by the package's own parts."""
    model = make_model(batch_norm)
    context = LossContext(4, 6, (OUTPUTS,), IMAGES, IMAGES, 1, 12)
    loss = DINOLoss(context, teacher_temperature=0.07, teacher_temperature_warmup="3 epochs")
    teacher = EMATeacher(model, momentum=0.8)
    optimizer = adamw(list(model.named_parameters()), LR)
    schedules = {"lr": Cosine(LR, final=LAST_LR, warmup="1 epochs"), "weight_decay": Cosine(0.04, final=0.4)}
    clip = Clipping(CLIP, each_tensor=True)
    step = TrainStep(model, model, loss, optimizer, schedules, Precision("fp32", "cpu"), normalised, clip, teacher)
    losses = []
    for number in range(STEPS):
        report = step([Batch(views_of(number), torch.arange(IMAGES))], Progress(number, STEPS, LENGTH))
        assert not report.skipped_update
        losses.append(report.loss)
    return record(losses, dict(model.named_parameters()), dict(teacher.network.named_parameters()), loss.center)


@pytest.fixture(scope="module")
def trained():
    return our_training()


def start(batch_norm=False):
    return dict(make_model(batch_norm).named_parameters())


def test_whole_loop_equals_the_official_one(trained):
    official = Official(start())
    assert difference(trained, official.train()) < TOLERANCE
    assert 0.1 < np.mean(official.clipped) < 0.9  # both clipped and unclipped tensors were seen


def test_whole_loop_with_batch_norm_in_the_head():
    assert difference(our_training(batch_norm=True), Official(start(True), batch_norm=True).train()) < TOLERANCE


@pytest.mark.parametrize(
    "mistake",
    [
        "center added",
        "center moved before its use",
        "center of the first view",
        "teacher sees all crops",
        "view paired with itself",
        "divided by all pairs",
        "no student temperature",
        "teacher temperature per step",
        "teacher temperature without warm-up",
        "whole gradient clipped",
        "not clipped",
        "freeze ignored",
        "frozen by zeros",
        "lr off by one",
        "vectors decayed",
        "weight_g not decayed",
        "decay constant",
        "decay inside the gradient",
        "momentum constant",
        "teacher moved before the step",
    ],
)
def test_the_comparison_notices_mistakes(trained, mistake):
    assert difference(trained, Official(start(), mistake).train()) > 100 * TOLERANCE


@pytest.mark.parametrize("mistake", ["teacher in evaluation mode", "head run per resolution"])
def test_the_comparison_notices_mistakes_with_batch_norm(mistake):
    assert difference(our_training(batch_norm=True), Official(start(True), mistake, True).train()) > 100 * TOLERANCE


def three_steps(rank, world_size, targets, batch_norm, micro_batches):
    """Loss parts, gradients before clipping, centre and teacher of three SGD steps on this process's images."""
    model = synchronise_batch_norm(make_model(batch_norm).float(), "cpu")
    context = LossContext(4, 6, (OUTPUTS,), IMAGES // world_size, IMAGES, world_size, 12)
    loss = DINOLoss(context, targets=targets, teacher_temperature=0.1)  # not sharper: that magnifies float32's rounding
    teacher = EMATeacher(model, momentum=0.5)
    wrapped = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    optimizer, schedules = torch.optim.SGD(model.parameters(), lr=0.02), {"lr": lambda progress: 0.02}
    seen, precision = [], Precision("fp32", "cpu")

    def as_floats(view):
        return normalised(view).float()

    def note(parameters, norm):
        seen.extend(parameter.grad.clone() for parameter in parameters)

    step = TrainStep(model, wrapped, loss, optimizer, schedules, precision, as_floats, note, teacher)
    for number in range(3):
        own = [view.chunk(world_size)[rank] for view in views_of(number)]
        parts = zip(*(view.chunk(micro_batches) for view in own))
        batches = [Batch(list(views), torch.arange(len(views[0]))) for views in parts]
        report = step(batches, Progress(number, 3, 1))
        seen.append(torch.tensor(list(report.parts.values()), dtype=torch.float64))
    return [tensor.detach() for tensor in [*seen, loss.center.clone(), *teacher.state_dict().values()]]


CASES = {
    "centering": ("centering", True, 1),
    "sinkhorn": ("sinkhorn", True, 1),
    "batch_softmax": ("batch_softmax", True, 1),
    "centering, accumulated": ("centering", False, 2),
}


def _all_cases(rank, world_size):
    return [three_steps(rank, world_size, *case) for case in CASES.values()]


@pytest.fixture(scope="module")
def in_two_processes():
    return run_in_processes(_all_cases, 2)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_in_loss_gradient_centre_and_teacher(in_two_processes, case):
    targets, batch_norm, _ = CASES[case]
    expected = three_steps(0, 1, targets, batch_norm, 1)
    for rank in range(2):
        mine = in_two_processes[rank][list(CASES).index(case)]
        assert len(mine) == len(expected) > 40
        for one, other in zip(mine, expected):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-5)


def test_micro_batches_equal_one_batch_with_centering():
    for one, other in zip(three_steps(0, 1, "centering", False, 2), three_steps(0, 1, "centering", False, 1)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_micro_batches_do_not_equal_one_batch_where_targets_are_balanced_over_it():
    parts, whole = (three_steps(0, 1, "sinkhorn", False, count) for count in (2, 1))
    assert max(float((one - other).abs().max()) for one, other in zip(parts, whole)) > 1e-2
    assert "balanced over a batch" in DINOLoss.accumulation_note
