"""Teachers on hand-worked sequences of student weights, and what they must not share with the student."""

import numpy as np
import pytest
import torch
from torch import nn

from vissl_like.models.heads.dino import DINOHead
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.ema import EMATeacher
from vissl_like.records import Progress
from vissl_like.registry import TEACHERS

NAMES = ["ema", "previous_epoch", "previous_iteration", "student_copy"]


class Dropping(nn.Module):
    """Drop path: some rows are zeroed in training, under timm's name of the probability."""

    def __init__(self):
        super().__init__()
        self.drop_prob = 0.5

    def forward(self, x):
        return x * (torch.rand(len(x), 1) >= self.drop_prob) if self.training and self.drop_prob else x


class Trunk(nn.Module):
    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(1, 3), nn.BatchNorm1d(3), Dropping()

    def forward(self, images):
        return self.drop(self.norm(self.layer(images.mean((2, 3)))))


def student(seed=0, predictor=0):
    torch.manual_seed(seed)
    options = {"layers": 2, "hidden_dim": 4, "bottleneck_dim": 3, "num_prototypes": 5, "predictor_dim": predictor}
    return SSLModel(Trunk(), DINOHead(3, **options))


def fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def views(seed=0, count=2):
    return list(torch.randn(count, 6, 1, 4, 4, generator=torch.Generator().manual_seed(seed)))


def weight_of(teacher):
    """The one number that all weights of the teacher are."""
    values = torch.cat([parameter.flatten() for parameter in teacher.network.parameters()])
    torch.testing.assert_close(values, values[:1].expand_as(values))
    return float(values[0])


def seen_at_each_step(teacher, model, steps, steps_per_epoch=1, total=None, first=0):
    """The student's weights are 0 at the start and t after update number t; what has the teacher at each step?"""
    seen = []
    for step in range(first, steps):
        teacher.before_forward(model, Progress(step, total or steps, steps_per_epoch))
        seen.append(weight_of(teacher))
        fill(model, step + 1)
        teacher.after_update(model, Progress(step, total or steps, steps_per_epoch))
    return seen


def zero_student(**options):
    model = student(**options)
    fill(model, 0)
    return model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("student_copy", [0, 1, 2, 3, 4, 5, 6]),
        ("previous_iteration", [0, 0, 1, 2, 3, 4, 5]),
        ("previous_epoch", [0, 0, 0, 3, 3, 3, 6]),
    ],
)
def test_copies_of_earlier_students(name, expected):
    model = zero_student()
    assert seen_at_each_step(TEACHERS.get(name)(model), model, 7, steps_per_epoch=3) == expected


def test_moving_average_by_hand():
    model = zero_student()
    teacher = EMATeacher(model, momentum=0.75, final_momentum=0.75)
    # 3/4 * 0 + 1/4 * 1, 3/4 * 1/4 + 1/4 * 2, 3/4 * 11/16 + 1/4 * 3
    assert seen_at_each_step(teacher, model, 4) == pytest.approx([0, 0.25, 0.6875, 1.265625])


@pytest.mark.parametrize(("momentum", "final"), [(0.996, 1.0), (0.5, 1.0), (0.9, 0.4)])
def test_momentum_is_the_official_array(momentum, final):
    steps, model = 12, zero_student()
    schedule = final + 0.5 * (momentum - final) * (1 + np.cos(np.pi * np.arange(steps) / steps))
    teacher = EMATeacher(model, momentum=momentum, final_momentum=final)
    ours = [teacher.momentum_at(Progress(step, steps, 4)) for step in range(steps)]
    np.testing.assert_allclose(ours, schedule, rtol=1e-12)
    expected = [0.0]
    for step, m in enumerate(schedule):
        expected.append(m * expected[-1] + (1 - m) * (step + 1))
    seen = seen_at_each_step(teacher, model, steps, steps_per_epoch=4)
    assert [*seen, weight_of(teacher)] == pytest.approx(expected, rel=1e-5)


def test_momentum_zero_is_the_student_copy_and_one_never_moves():
    for momentum, expected in ((0.0, [0, 1, 2, 3]), (1.0, [0, 0, 0, 0])):
        model = zero_student()
        teacher = EMATeacher(model, momentum=momentum, final_momentum=momentum)
        assert seen_at_each_step(teacher, model, 4) == expected


@pytest.mark.parametrize("name", NAMES)
def test_starts_as_a_copy_that_shares_nothing(name):
    model = student()
    teacher = TEACHERS.get(name)(model)
    model.trunk.drop.drop_prob = 0.0
    before = teacher(views())
    assert torch.equal(before.head.logits[0], model(views()).head.logits[0].detach()) and before.num_views == 2
    storages = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert storages.isdisjoint(tensor.data_ptr() for tensor in (*teacher.parameters(), *teacher.buffers()))
    fill(model, 0)
    assert torch.equal(teacher(views()).head.logits[0], before.head.logits[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_has_no_gradient(name):
    model = student()
    teacher = TEACHERS.get(name)(model)
    inputs = [view.requires_grad_() for view in views()]
    taught, own = teacher(inputs), model(inputs)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not taught.features.requires_grad and not taught.head.logits[0].requires_grad
    (own.head.logits[0] * taught.head.logits[0]).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    teacher.after_update(model, Progress(0, 4, 1))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_only_the_student_drops(name):
    model = student()
    teacher = TEACHERS.get(name)(model)
    dropping = [module.drop_prob for module in teacher.modules() if isinstance(module, Dropping)]
    assert set(dropping) == {0.0} and model.trunk.drop.drop_prob == 0.5
    assert torch.equal(teacher(views()).features, teacher(views()).features)
    assert not torch.equal(model(views()).features, model(views()).features)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_student_predicts(name):
    model = zero_student(predictor=4)
    teacher = TEACHERS.get(name)(model)
    assert any(key.startswith("head.predictor") for key in dict(model.named_parameters()))
    assert not any("predictor" in key for key in dict(teacher.named_parameters()))
    seen_at_each_step(teacher, model, 3)  # names that only the student has are passed over
    assert weight_of(teacher) > 0


def test_the_head_is_told_that_its_copy_teaches():
    model, told = student(), []
    type_of_head = type("TellingHead", (DINOHead,), {"become_teacher": lambda self: told.append(self)})
    model.head = type_of_head(3, hidden_dim=4, bottleneck_dim=3, num_prototypes=5)
    teacher = EMATeacher(model)
    assert len(told) == 1 and told[0] is teacher.network.head and told[0] is not model.head


def running_statistics(network):
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("name", NAMES)
def test_running_statistics_are_its_own(name):
    model = student()
    teacher = TEACHERS.get(name)(model)
    assert teacher.network.trunk.norm.training
    teacher(views(1))
    model(views(2)), model(views(3))
    own = running_statistics(teacher.network)
    pooled = teacher.network.trunk.layer(torch.cat(views(1)).mean((2, 3)))
    torch.testing.assert_close(own["trunk.norm.running_mean"], 0.1 * pooled.mean(0))  # BatchNorm's default share
    teacher.after_update(model, Progress(0, 4, 1))
    for key, buffer in teacher.network.named_buffers():
        assert torch.equal(buffer, own[key]), key
    assert not torch.equal(own["trunk.norm.running_mean"], model.trunk.norm.running_mean)


def test_running_statistics_can_be_taken_from_the_student():
    model = student()
    teacher = EMATeacher(model, copy_buffers=True)
    teacher(views(1))
    model(views(2)), model(views(3))
    expected = running_statistics(model)
    teacher.after_update(model, Progress(0, 4, 1))
    for key, buffer in teacher.network.named_buffers():
        assert torch.equal(buffer, expected[key]), key
    assert int(teacher.network.trunk.norm.num_batches_tracked) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_teacher_goes_on_as_if_never_stopped(name):
    model = zero_student()
    straight = TEACHERS.get(name)(model)
    expected = seen_at_each_step(straight, model, 6, steps_per_epoch=3)
    model = zero_student()
    stopped = TEACHERS.get(name)(model)
    seen = seen_at_each_step(stopped, model, 4, steps_per_epoch=3, total=6)
    resumed = TEACHERS.get(name)(student(seed=7))  # built anew, from other weights
    resumed.load_state_dict(stopped.state_dict())
    assert seen + seen_at_each_step(resumed, model, 6, steps_per_epoch=3, first=4) == expected


def test_before_forward_reaches_the_teachers_own_head():
    model, calls = student(), []
    teacher = EMATeacher(model)
    teacher.network.head.before_forward = calls.append
    model.head.before_forward = None
    teacher.before_forward(model, Progress(2, 4, 1))
    assert calls == [Progress(2, 4, 1)]


def test_a_skipped_update_at_the_end_of_an_epoch_does_not_cost_the_teacher_an_epoch():
    model = zero_student()
    teacher = TEACHERS.get("previous_epoch")(model)
    fill(model, 5)  # what the epoch has learnt; its last update was skipped, so after_update was not called
    teacher.before_forward(model, Progress(3, 6, 3))
    assert weight_of(teacher) == 5


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_can_begin_in_the_middle_of_a_run(name):
    model = zero_student()
    teacher = TEACHERS.get(name)(model)
    fill(model, 3)
    model.trunk.norm.running_mean.fill_(2.0)
    teacher.start_from(model)
    assert weight_of(teacher) == 3 and teacher.network.trunk.norm.running_mean.tolist() == [2.0] * 3
    teacher.after_update(model, Progress(4, 6, 3))
    assert weight_of(teacher) == 3
