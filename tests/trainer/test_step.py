"""One optimizer step: accumulation, guard, clipping, order."""

import pytest
import torch
from torch import nn

from vissl_like.data.normalise import Normalise
from vissl_like.losses.base import Loss
from vissl_like.models.heads.base import Head
from vissl_like.models.ssl_model import SSLModel
from vissl_like.records import Batch, HeadOutput, Progress
from vissl_like.trainer.precision import Precision
from vissl_like.trainer.step import TrainStep

CALLS = []


class PlainHead(Head):
    embedding_dim = 2

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def before_forward(self, progress):
        CALLS.append("before_forward")

    def before_update(self, progress):
        CALLS.append("before_update")

    def forward(self, features):
        return HeadOutput(self.layer(features))


class PlainLoss(Loss):
    """A mean over images: accumulation equals the big batch."""

    def __init__(self, poison=None):
        super().__init__()
        self.poison = poison

    def forward(self, output, batch, progress):
        CALLS.append("forward")
        loss = output.head.embedding.square().sum(1).mean()
        return {"loss": loss * float("nan") if progress.step == self.poison else loss, "extra": loss.detach() * 2}

    def after_update(self, progress):
        CALLS.append("after_update")

    def forget_pending(self):
        CALLS.append("forget")


class Trunk(nn.Module):
    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, images):
        return self.layer(images.mean((2, 3)))


def make(poison=None, clip=None, kind="fp32"):
    torch.manual_seed(0)
    CALLS.clear()
    model = SSLModel(Trunk(), PlainHead())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    normalise = Normalise([0.5], [0.25], torch.device("cpu"))
    step = TrainStep(
        model, model, PlainLoss(poison), optimizer, {"lr": lambda p: 0.1}, Precision(kind, "cpu"), normalise, clip
    )
    return model, step


def batches(parts):
    pixels = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return [Batch([chunk, chunk], torch.arange(len(chunk))) for chunk in pixels.chunk(parts)]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_accumulation_equals_the_big_batch_where_the_loss_is_a_mean():
    model, step = make()
    report = step(batches(1), Progress(0, 10, 5))
    accumulated, many = make()
    other = many(batches(4), Progress(0, 10, 5))
    torch.testing.assert_close(weights(accumulated), weights(model))
    assert other.loss == pytest.approx(report.loss) and other.images == report.images == 8
    assert report.parts["extra"] == pytest.approx(2 * report.loss)
    assert report.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)


def test_order_of_a_step():
    _, step = make()
    step(batches(2), Progress(0, 10, 5))
    assert CALLS == ["before_forward", "forward", "forward", "before_update", "after_update"]


def test_a_nan_loss_leaves_the_weights_alone_and_is_named():
    model, step = make(poison=3)
    before = weights(model).clone()
    report = step(batches(1), Progress(3, 10, 5))
    assert report.skipped_update and torch.equal(weights(model), before)
    assert report.non_finite[0] == "loss part loss" and CALLS[-1] == "forget"
    assert all(p.grad is None for p in model.parameters())
    assert not step(batches(1), Progress(4, 10, 5)).skipped_update


def test_running_statistics_survive_a_skipped_step():
    model, step = make(poison=0)
    model.trunk.register_buffer("running", torch.tensor([1.0]))
    step = TrainStep(
        model, model, step.loss, step.optimizer, step.schedules, step.precision, step.normalise, step.clip_norm
    )

    def spoil(*_):
        model.trunk.running.fill_(float("inf"))

    model.trunk.register_forward_hook(spoil)
    step(batches(1), Progress(0, 10, 5))
    assert model.trunk.running.item() == 1.0


def test_a_nan_weight_is_named_by_module():
    model, step = make()
    with torch.no_grad():
        model.trunk.layer.weight[0] = float("inf")
    report = step(batches(1), Progress(0, 10, 5))
    assert report.skipped_update and "weight trunk.layer.weight" in report.non_finite


def test_clipping_bounds_the_whole_gradient():
    model, step = make(clip=1e-3)
    before = weights(model).clone()
    report = step(batches(1), Progress(0, 10, 5))
    assert report.grad_norm > 1e-2
    assert (weights(model) - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_bf16_forward_keeps_loss_and_weights_in_float32():
    model, step = make(kind="bf16")
    report = step(batches(1), Progress(0, 10, 5))
    assert report.output.head.embedding.dtype == torch.bfloat16 and weights(model).dtype == torch.float32
    assert not report.output.head.embedding.requires_grad


def test_normalisation_is_the_usual_one():
    view = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = (view.float() / 255 - 0.6) / 0.156
    torch.testing.assert_close(Normalise([0.6], [0.156], torch.device("cpu"))(view), expected)
