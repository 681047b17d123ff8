"""One optimizer step: accumulation, guard, clipping, order."""

import pytest
import torch
from torch import nn

from vissl_like.data.normalise import Normalise
from vissl_like.losses.base import Loss
from vissl_like.models.heads.base import Head
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher, copy_weights
from vissl_like.records import Batch, HeadOutput, Progress
from vissl_like.trainer.clipping import Clipping
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
        model,
        model,
        PlainLoss(poison),
        optimizer,
        {"lr": lambda p: 0.1},
        Precision(kind, "cpu"),
        normalise,
        clip and Clipping(clip),
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


def test_the_micro_batch_whose_loss_was_not_finite_is_told():
    _, step = make()
    good, calls = step.loss.forward, []

    def bad_the_second_time(*given):
        calls.append(given)
        parts = good(*given)
        return {**parts, "loss": parts["loss"] * (float("nan") if len(calls) == 2 else 1)}

    step.loss.forward = bad_the_second_time
    report = step(batches(4), Progress(0, 10, 5))
    assert report.skipped_update and report.first_bad == 1 and len(calls) == 4


def test_running_statistics_survive_a_skipped_step():
    model, step = make(poison=0)
    model.trunk.register_buffer("running", torch.tensor([1.0]))
    step = TrainStep(model, model, step.loss, step.optimizer, step.schedules, step.precision, step.normalise, step.clip)

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


class NotingTeacher(Teacher):
    """Notes what it is asked, and becomes the student after each update."""

    def before_forward(self, student, progress):
        CALLS.append("teacher before_forward")

    def forward(self, views):
        CALLS.append("teacher forward")
        self.seen = views
        return super().forward(views)

    def after_update(self, student, progress):
        CALLS.append("teacher after_update")
        self.followed = (weights(student).clone(), progress.step)
        copy_weights(self.network, student)


class TaughtLoss(PlainLoss):
    """Distance between two of the student's views and what the teacher makes of the last view."""

    teacher_views = (2,)

    def forward(self, output, batch, progress):
        self.taught = output.teacher
        parts = super().forward(output, batch, progress)
        target = output.teacher.head.embedding.repeat(output.num_views, 1)
        return {**parts, "loss": parts["loss"] + (output.head.embedding - target).square().mean()}


class NormedTrunk(Trunk):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, images):
        return self.norm(super().forward(images))


def make_taught(poison=None):
    torch.manual_seed(0)
    model = SSLModel(NormedTrunk(), PlainHead())
    teacher, loss = NotingTeacher(model), TaughtLoss(poison)
    normalise = Normalise([0.5], [0.25], torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    plain_step = optimizer.step
    optimizer.step = lambda *given: (CALLS.append("optimizer"), plain_step(*given))[1]
    step = TrainStep(
        model, model, loss, optimizer, {"lr": lambda p: 0.1}, Precision("fp32", "cpu"), normalise, None, teacher
    )
    CALLS.clear()
    return model, teacher, loss, step


def three_views(parts=1):
    """Micro-batches whose last view differs from the others."""
    return [Batch([*batch.views, 255 - batch.views[0]], batch.index) for batch in batches(parts)]


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_order_of_a_step_with_a_teacher():
    _, _, _, step = make_taught()
    step(three_views(2), Progress(0, 10, 5))
    assert CALLS[:2] == ["before_forward", "teacher before_forward"]
    assert CALLS[2:6] == ["teacher forward", "forward"] * 2
    assert CALLS[6:] == ["before_update", "optimizer", "after_update", "teacher after_update"]


def test_the_teacher_sees_the_views_that_the_loss_names_and_follows_the_new_weights():
    model, teacher, loss, step = make_taught()
    old, first = weights(model).clone(), three_views()[0]
    step([first], Progress(3, 10, 5))
    assert len(teacher.seen) == 1 and torch.equal(teacher.seen[0], step.normalise(first.views[2]))
    assert loss.taught.num_views == 1 and not loss.taught.head.embedding.requires_grad
    assert teacher.followed[1] == 3 and torch.equal(teacher.followed[0], weights(model))
    assert not torch.equal(weights(model), old) and torch.equal(weights(teacher.network), weights(model))


def test_a_skipped_step_moves_nothing_of_the_teacher():
    model, teacher, _, step = make_taught(poison=1)
    step(three_views(), Progress(0, 10, 5))
    with torch.no_grad():
        teacher.network.head.layer.weight.add_(1)  # so that following would show
    student_before, teacher_before = state(model), state(teacher)
    CALLS.clear()
    report = step(three_views(2), Progress(1, 10, 5))
    assert report.skipped_update and CALLS[-1] == "forget"
    assert "teacher after_update" not in CALLS and "optimizer" not in CALLS
    for before, module in ((student_before, model), (teacher_before, teacher)):
        assert int(before[next(name for name in before if name.endswith("num_batches_tracked"))]) == 1
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_running_statistics_of_the_teacher_survive_an_infinite_forward():
    _, teacher, _, step = make_taught(poison=0)

    def spoil(*_):
        teacher.network.trunk.norm.running_var.fill_(float("inf"))

    teacher.network.trunk.register_forward_hook(spoil)
    step(three_views(), Progress(0, 10, 5))
    assert torch.equal(teacher.network.trunk.norm.running_var, torch.ones(3))


def test_running_statistics_of_the_teacher_move_in_a_good_step():
    model, teacher, _, step = make_taught()
    step(three_views(2), Progress(0, 10, 5))
    tracked = [int(network.trunk.norm.num_batches_tracked) for network in (teacher.network, model)]
    assert tracked == [2, 2]  # once per micro-batch, views of one size together
    assert not torch.equal(teacher.network.trunk.norm.running_mean, model.trunk.norm.running_mean)


def test_the_report_keeps_the_teachers_output_without_gradient():
    _, _, loss, step = make_taught()
    report = step(three_views(), Progress(0, 10, 5))
    assert report.output.teacher is loss.taught and not report.output.head.embedding.requires_grad
