"""DINO's targets, temperature schedule, centre and remarks, on made-up scores."""

import math

import numpy as np
import pytest
import torch

from vissl_like.losses.base import LossContext
from vissl_like.losses.dino import DINOLoss
from vissl_like.records import Batch, HeadOutput, ModelOutput, Progress
from vissl_like.utils.errors import UserError

VIEWS, IMAGES, OUTPUTS, LENGTH = 3, 5, 4, 6


def make(num_prototypes=(OUTPUTS,), per_rank_batch=IMAGES, **options):
    return DINOLoss(LossContext(VIEWS, 2, num_prototypes, per_rank_batch, per_rank_batch, 1, 100), **options)


def scores(seed, views, outputs=OUTPUTS):
    return torch.randn(views * IMAGES, outputs, generator=torch.Generator().manual_seed(seed))


def output_of(student, teacher):
    """Made-up logits of all views of a student, and of its teacher's views."""
    given = student if isinstance(student, tuple) else (student,)
    taught = teacher if isinstance(teacher, tuple) else (teacher,)
    nothing = torch.zeros(1, 2)
    theirs = ModelOutput(len(taught[0]) // IMAGES, nothing, HeadOutput(nothing, taught))
    return ModelOutput(VIEWS, nothing, HeadOutput(nothing, given), theirs)


def parts_of(loss, student, teacher, step=0):
    batch = Batch([], torch.arange(IMAGES))
    return loss(output_of(student, teacher), batch, Progress(step, 10 * LENGTH, LENGTH))


def plain_sinkhorn(t, temperature, iterations):
    """The official routine: outputs by samples, alternately divided by sums."""
    q = torch.exp(t.double() / temperature).t()
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


def plain_batch_softmax(t, temperature):
    over_the_batch = torch.softmax(t.double() / temperature, 0)
    return over_the_batch / over_the_batch.sum(1, keepdim=True)


def one_hot(t):
    return torch.eye(OUTPUTS, dtype=torch.float64)[t.argmax(1)]


CENTER = torch.tensor([[0.5, -0.2, 0.1, 2.0]])
TARGETS = {
    "centering": ({}, lambda t: torch.softmax((t - CENTER).double() / 0.3, 1)),
    "centering, argmax": ({"teacher_temperature": 0.0}, lambda t: one_hot(t - CENTER)),
    "none": ({"targets": "none"}, lambda t: torch.softmax(t.double() / 0.3, 1)),
    "none, argmax": ({"targets": "none", "teacher_temperature": 0.0}, one_hot),
    "sinkhorn": ({"targets": "sinkhorn"}, lambda t: plain_sinkhorn(t, 0.3, 3)),
    "sinkhorn, ten": ({"targets": "sinkhorn", "sinkhorn_iterations": 10}, lambda t: plain_sinkhorn(t, 0.3, 10)),
    "batch_softmax": ({"targets": "batch_softmax"}, lambda t: plain_batch_softmax(t, 0.3)),
}


@pytest.mark.parametrize("teacher_views", [None, [2], [1, 2]])
@pytest.mark.parametrize("kind", TARGETS)
def test_parts_equal_the_sum_over_pairs(kind, teacher_views):
    options, expected_targets = TARGETS[kind]
    loss = make(teacher_views=teacher_views, student_temperature=0.2, **{"teacher_temperature": 0.3, **options})
    loss.center.copy_(CENTER)
    seen = teacher_views or [0, 1]
    assert loss.teacher_views == tuple(seen)
    student, teacher = scores(0, VIEWS), scores(1, len(seen))
    parts = parts_of(loss, student, teacher)
    cross, divergence, entropy = [], [], []
    for view, rows in zip(seen, teacher.split(IMAGES)):
        q = expected_targets(rows)
        log_q = torch.log(q.clamp(min=1e-300))
        entropy.append(-(q * log_q).sum(1).mean())
        for other in [v for v in range(VIEWS) if v != view]:
            log_p = torch.log_softmax(student.split(IMAGES)[other].double() / 0.2, 1)
            cross.append(-(q * log_p).sum(1).mean())
            divergence.append((q * (log_q - log_p)).sum(1).mean())
    for name, values in (("loss", cross), ("target_entropy", entropy), ("divergence", divergence)):
        assert float(parts[name]) == pytest.approx(float(torch.stack(values).mean()), rel=1e-5, abs=1e-6), name


def test_at_temperature_zero_the_first_of_equal_scores_takes_all():
    tied = torch.tensor([[1.0, 3.0, 3.0, 0.0]]).repeat(2 * IMAGES, 1)
    student = scores(0, VIEWS)
    parts = parts_of(make(teacher_temperature=0.0), student, tied)
    log_p = torch.log_softmax(student / 0.1, 1)[:, 1].view(VIEWS, IMAGES).mean(1)
    expected = -(log_p[0] + log_p[1] + 2 * log_p[2]) / 4
    assert float(parts["loss"]) == pytest.approx(float(expected), rel=1e-5) and float(parts["target_entropy"]) == 0


def test_several_heads_are_averaged_and_have_their_own_centres():
    both = make(num_prototypes=(4, 3))
    student, teacher = (scores(0, VIEWS), scores(1, VIEWS, 3)), (scores(2, 2), scores(3, 2, 3))
    single = [make(num_prototypes=(count,)) for count in (4, 3)]
    separate = [parts_of(loss, s, t)["loss"] for loss, s, t in zip(single, student, teacher)]
    assert float(parts_of(both, student, teacher)["loss"]) == pytest.approx(float(sum(separate) / 2))
    both.after_update(Progress(0, 10, 5))
    torch.testing.assert_close(both.center, 0.1 * teacher[0].mean(0, keepdim=True))
    torch.testing.assert_close(both.center1, 0.1 * teacher[1].mean(0, keepdim=True))
    assert both.trivial_value() == pytest.approx((math.log(4) + math.log(3)) / 2)


def test_gradients_reach_the_student_only():
    student, teacher = scores(0, VIEWS).requires_grad_(), scores(1, 2).requires_grad_()
    parts = parts_of(make(), student, teacher)
    parts["loss"].backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert not parts["target_entropy"].requires_grad and not parts["divergence"].requires_grad


def test_half_precision_scores_are_compared_in_float32():
    student, teacher = scores(0, VIEWS).bfloat16(), scores(1, 2).bfloat16()
    parts = parts_of(make(), student, teacher)
    assert parts["loss"].dtype == torch.float32
    assert torch.equal(parts["loss"], parts_of(make(), student.float(), teacher.float())["loss"])


@pytest.mark.parametrize(
    ("first", "last", "epochs"), [(0.04, 0.07, 3), (0.04, 0.07, 1), (0.04, 0.07, 0), (0.0, 0.1, 5)]
)
def test_temperature_schedule_is_the_official_array(first, last, epochs):
    loss = make(
        teacher_temperature=last, teacher_temperature_start=first, teacher_temperature_warmup=f"{epochs} epochs"
    )
    expected = np.concatenate((np.linspace(first, last, epochs), np.ones(10 - epochs) * last))
    ours = [loss.temperature(Progress(step, 10 * LENGTH, LENGTH)) for step in range(10 * LENGTH)]
    np.testing.assert_allclose(ours, expected.repeat(LENGTH), rtol=1e-12)


def test_temperature_can_change_with_each_step():
    loss = make(teacher_temperature=0.07, teacher_temperature_warmup="9 steps", temperature_changes="step")
    expected = np.concatenate((np.linspace(0.04, 0.07, 9), np.ones(3) * 0.07))
    np.testing.assert_allclose([loss.temperature(Progress(s, 60, LENGTH)) for s in range(12)], expected, rtol=1e-12)


def test_the_temperature_of_the_step_is_the_one_used():
    loss = make(teacher_temperature=0.5, teacher_temperature_start=0.05, teacher_temperature_warmup="2 epochs")
    sharp, soft = (parts_of(loss, scores(0, VIEWS), scores(1, 2), step) for step in (0, LENGTH))
    for parts, temperature in ((sharp, 0.05), (soft, 0.5)):
        q = torch.softmax(scores(1, 2) / temperature, 1)
        assert float(parts["target_entropy"]) == pytest.approx(
            float(-(q * q.log()).nan_to_num().sum(1).mean()), rel=1e-4
        )


def test_centre_moves_after_the_update_by_hand():
    loss = make(center_momentum=0.75)
    expected = torch.zeros(1, OUTPUTS)
    for step in range(3):
        teacher = scores(step, 2) + 3
        parts_of(loss, scores(9, VIEWS), teacher)
        torch.testing.assert_close(loss.center, expected)  # forward alone leaves it
        loss.after_update(Progress(step, 10, 5))
        expected = 0.75 * expected + 0.25 * teacher.sum(0, keepdim=True) / (2 * IMAGES)
        torch.testing.assert_close(loss.center, expected)


def test_a_skipped_update_leaves_the_centre_alone():
    loss = make()
    parts_of(loss, scores(0, VIEWS), scores(1, 2))
    loss.forget_pending()
    loss.after_update(Progress(0, 10, 5))
    assert not loss.center.any()


@pytest.mark.parametrize("targets", ["sinkhorn", "batch_softmax", "none"])
def test_only_centering_has_a_moving_centre(targets):
    loss = make(targets=targets)
    parts_of(loss, scores(0, VIEWS), scores(1, 2))
    loss.after_update(Progress(0, 10, 5))
    assert not loss.center.any()


def test_the_centre_is_saved_under_its_official_name():
    loss, other = make(), make()
    loss.center.copy_(CENTER)
    assert list(loss.state_dict()) == ["center"] and loss.center.shape == (1, OUTPUTS)
    other.load_state_dict(loss.state_dict())
    student, teacher = scores(0, VIEWS), scores(1, 2)
    assert torch.equal(parts_of(other, student, teacher)["loss"], parts_of(loss, student, teacher)["loss"])
    assert not torch.equal(parts_of(make(), student, teacher)["loss"], parts_of(loss, student, teacher)["loss"])


@pytest.mark.parametrize("targets", ["centering", "sinkhorn", "batch_softmax", "none"])
def test_trivial_value_is_what_uniform_outputs_give(targets):
    loss, flat = make(targets=targets), torch.full((VIEWS * IMAGES, OUTPUTS), 0.3)
    parts = parts_of(loss, flat, flat[: 2 * IMAGES])
    assert loss.trivial_value() == pytest.approx(math.log(OUTPUTS))
    assert float(parts["loss"]) == pytest.approx(math.log(OUTPUTS), rel=1e-6)
    assert float(parts["target_entropy"]) == pytest.approx(math.log(OUTPUTS), rel=1e-6)


@pytest.mark.parametrize("targets", ["sinkhorn", "batch_softmax"])
@pytest.mark.parametrize("which", ["teacher_temperature", "teacher_temperature_start"])
def test_balancing_at_temperature_zero_is_refused(targets, which):
    with pytest.raises(UserError, match="divides by the teacher's temperature, which is 0"):
        make(targets=targets, **{which: 0.0})


@pytest.mark.parametrize("views", [[0, 3], [1, 1], []])
def test_views_that_are_not_there_are_refused(views):
    with pytest.raises(UserError, match=r"LOSS\.teacher_views is"):
        make(teacher_views=views)


def test_advice():
    assert make().advice() == []
    assert make(teacher_temperature=0.02).advice() == []
    assert "start (0.03) has no effect" in make(teacher_temperature_start=0.03).advice()[0]
    assert (
        "center_momentum has no effect" in make(targets="sinkhorn", center_momentum=0.5, per_rank_batch=64).advice()[0]
    )
    assert "(0.1) is not below the student's (0.1)" in make(teacher_temperature=0.1).advice()[0]
    assert make(targets="sinkhorn", teacher_temperature=0.1).advice() == []
    few = make(num_prototypes=(500,), per_rank_batch=16, targets="sinkhorn").advice()
    assert "500 outputs are balanced over only 16 samples" in few[0]
    assert "one output will take all images" in make(targets="none").advice()[0]
