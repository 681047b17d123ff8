"""MoCo v2's whole update, queue included, against a loop written from the paper."""

import math
from functools import partial

import pytest
import torch
from processes import run_in_processes
from teacher_runs import (
    IMAGES,
    TOTAL,
    VIEWS,
    SmallRun,
    assert_same_training,
    context_of,
    differs,
    model_of,
    plain_mlp,
    plain_rows,
    plain_training,
    plain_trunk,
    plain_unit,
    plain_views,
    plain_weights,
    poisoned,
)

from vissl_like.losses.moco import MoCoLoss
from vissl_like.models.heads.mlp import MLPHead
from vissl_like.models.heads.swav import SwAVHead
from vissl_like.models.teachers.previous_epoch import PreviousEpochTeacher
from vissl_like.models.teachers.previous_iteration import PreviousIterationTeacher
from vissl_like.models.teachers.student_copy import StudentCopyTeacher
from vissl_like.records import HeadOutput, ModelOutput, Progress
from vissl_like.utils.errors import UserError

LENGTH = 36
"""Three steps of 12 keys: full after three, so that five steps overwrite."""


def run_of(share=(0, 1, 1), teacher=None, normalize=False, batch_norm=True, seed=5, **options):
    model = model_of(
        partial(MLPHead, layers=2, hidden_dim=10, output_dim=7, normalize=normalize, batch_norm=batch_norm)
    )
    context = context_of(model, *share[1:], seed=seed)
    return SmallRun(model, MoCoLoss(context, **{"queue_length": LENGTH, **options}), teacher, share)


def plain_moco(queue, teacher_views=(0, 1), temperature=0.2, mistake=None):
    """``objective(student, teacher, step)``: cross-entropy with label 0 over [positive, queue], newest keys last."""
    queue = queue.clone()

    def objective(student, teacher, step):
        nonlocal queue
        views = plain_views(step)
        q = plain_mlp(student, "head.projection_head", plain_trunk(student, views))
        q = q if mistake == "no normalisation of queries" else plain_unit(q)
        with torch.no_grad():
            k = plain_mlp(teacher, "head.projection_head", plain_trunk(teacher, [views[v] for v in teacher_views]))
            k = k if mistake == "no normalisation of keys" else plain_unit(k)
            new = k[:IMAGES] if mistake == "keys of the first view only" else k
            newer = torch.cat([queue, new])[-len(queue) :]
        if mistake == "queue updated before use":
            queue = newer
        losses = []
        for slot, view in enumerate(teacher_views):
            for v in range(VIEWS):
                if v == view and mistake != "pair of a view with itself":
                    continue
                own, key = plain_rows(q, v), plain_rows(k, slot)
                logits = torch.cat([(own * key).sum(1, keepdim=True), own @ queue.t()], 1) / temperature
                if mistake == "positive not among the alternatives":
                    losses.append((torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]).mean())
                else:
                    losses.append(-torch.log_softmax(logits, 1)[:, 0].mean())
        queue = queue if mistake == "queue never updated" else newer
        return sum(losses) / len(losses)

    return objective


def reference(run, steps, teacher_views=(0, 1), mistake=None, temperature=0.2):
    objective = plain_moco(run.loss.queue.double(), teacher_views, temperature, mistake)
    return plain_training(plain_weights(run.model), objective, steps, mistake)


@pytest.mark.parametrize(
    ("teacher_views", "options"),
    [((0, 1), {}), ((0, 1), {"normalize": True}), ((1,), {}), ((2, 0), {"temperature": 0.07})],
)
def test_whole_loop_equals_the_plain_one(teacher_views, options):
    run = run_of(teacher_views=list(teacher_views), **options)
    plain = reference(run, 6, teacher_views, temperature=options.get("temperature", 0.2))
    assert_same_training(run, run.train(range(6)), plain)


@pytest.mark.parametrize(
    "mistake",
    [
        "queue updated before use",
        "queue never updated",
        "keys of the first view only",
        "no normalisation of queries",
        "no normalisation of keys",
        "pair of a view with itself",
        "positive not among the alternatives",
        "teacher before the step",
    ],
)
def test_the_comparison_notices_mistakes(mistake):
    run = run_of()
    plain = reference(run, 6, mistake=mistake)
    assert differs(run.train(range(6)), plain)


def given(student, keys):
    teacher = ModelOutput(2, keys, HeadOutput(keys))
    return ModelOutput(2, student, HeadOutput(student), teacher), None, Progress(0, 1, 1)


def hand_worked_loss():
    """Two views of one image and a queue of the two unit directions."""
    model = model_of(partial(MLPHead, layers=1, output_dim=2))
    loss = MoCoLoss(context_of(model, num_views=2, global_batch=1), queue_length=2, temperature=1.0)
    loss.queue.copy_(torch.eye(2))
    return loss


def test_hand_worked():
    loss, along = hand_worked_loss(), torch.tensor([[4.0, 0.0], [0.5, 0.0]])
    parts = loss(*given(along, along))
    # Positive e, negatives e and 1: -log(e / (2 e + 1)).
    assert float(parts["loss"]) == pytest.approx(math.log(2 + math.exp(-1)))
    assert float(parts["positive_cosine"]) == pytest.approx(1) and float(parts["accuracy"]) == 0
    parts = loss(*given(along, -along))
    assert float(parts["loss"]) == pytest.approx(math.log(1 + (math.e + 1) / math.exp(-1)))
    loss.queue.copy_(-torch.eye(2))
    assert float(loss(*given(along, along))["accuracy"]) == 1


def test_queue_holds_keys_image_by_image_and_overwrites_the_oldest():
    loss = hand_worked_loss()
    directions = [torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[-1.0, 0.0], [0.0, -1.0]])]
    for keys in directions:
        loss(*given(keys, keys))
        loss.after_update(Progress(0, 1, 1))
        assert torch.equal(loss.queue, torch.nn.functional.normalize(keys, dim=1)) and int(loss.queue_pointer) == 0
    run = run_of()
    start = run.loss.queue.clone()
    run.train([0])
    assert torch.equal(run.loss.queue[12:], start[12:]) and not torch.isclose(run.loss.queue[:12], start[:12]).any()
    assert int(run.loss.queue_pointer) == 12
    first = run.loss.queue.clone()
    run.train([1, 2, 3])
    assert int(run.loss.queue_pointer) == 12 and not torch.isclose(run.loss.queue, first).any()


def test_first_queue_is_random_directions_given_by_the_seed():
    queue, same, other = (run_of(seed=seed).loss.queue for seed in (5, 5, 6))
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(LENGTH))
    assert torch.equal(queue, same) and not torch.isclose(queue, other).any()
    assert queue.mean(0).norm() < 0.5


def test_trivial_value_is_what_constant_outputs_give_once_the_queue_is_full():
    run = run_of()
    for layer in (run.model.head.projection_head[3], run.teacher.network.head.projection_head[3]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)
    run.optimizer.param_groups.clear()
    values = run.train(range(4))
    assert values[3] == pytest.approx(run.loss.trivial_value(), abs=1e-5) == math.log(1 + LENGTH)
    assert values[0] < values[3]


def test_a_skipped_update_leaves_the_queue_alone():
    run, other = run_of(), run_of()
    run.train([0])
    before = run.state()
    run.loss.forward = poisoned(run.loss)
    run.train([1])
    assert torch.equal(run.loss.queue, before["loss/queue"]) and int(run.loss.queue_pointer) == 12
    del run.loss.forward
    run.train([2])
    other.load(before)
    other.train([2])
    assert torch.equal(run.loss.queue, other.loss.queue)
    assert int(run.loss.queue_pointer) == int(other.loss.queue_pointer) == 24


def test_resumed_from_its_state_it_goes_on_bit_by_bit():
    run, other = run_of(), run_of(seed=9)
    run.train(range(2))
    other.load(run.state())
    assert run.train(range(2, 6)) == other.train(range(2, 6))
    mine, others = run.state(), other.state()
    assert all(torch.equal(mine[name], others[name]) for name in mine if isinstance(mine[name], torch.Tensor))
    assert not run.loss.per_rank_buffers  # the queue is common to all processes


def test_micro_batches_equal_one_batch_without_batch_norm():
    whole, parts = run_of(batch_norm=False), run_of((0, 1, 3), batch_norm=False)
    torch.testing.assert_close(whole.train(range(5)), parts.train(range(5)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.loss.queue, parts.loss.queue, rtol=1e-4, atol=1e-5)


def _share(rank, world_size):
    results = []
    for accumulation, batch_norm in ((1, True), (3, False)):
        run = run_of((rank, world_size, accumulation), batch_norm=batch_norm)
        results.append((run.train(range(5)), run.gradients, run.loss.queue, run.loss.queue_pointer))
    return results


def test_two_processes_equal_one():
    both = run_in_processes(_share, 2)
    for number, batch_norm in enumerate((True, False)):
        run = run_of(batch_norm=batch_norm)
        values = run.train(range(5))
        for rank in range(2):
            theirs, gradients, queue, pointer = both[rank][number]
            torch.testing.assert_close(values, theirs, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(run.gradients, gradients, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(run.loss.queue, queue, rtol=1e-4, atol=1e-5)
            assert torch.equal(run.loss.queue_pointer, pointer)
        assert torch.equal(both[0][number][2], both[1][number][2])


@pytest.mark.parametrize("teacher", [StudentCopyTeacher, PreviousIterationTeacher, PreviousEpochTeacher])
def test_runs_with_every_teacher(teacher):
    values = run_of(teacher=teacher).train(range(TOTAL))
    assert all(0 < value < 10 for value in values) and len(set(values)) == TOTAL


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="less than the 12 keys of one step"):
        run_of(queue_length=11)
    assert run_of(queue_length=11, teacher_views=[1]).loss.queue_length == 6
    with pytest.raises(UserError, match=r"teacher_views is \[0, 4\]"):
        run_of(teacher_views=[0, 4])
    model = model_of(partial(SwAVHead, hidden_dim=10, output_dim=7, num_prototypes=5))
    with pytest.raises(UserError, match="prototypes that nothing would train"):
        MoCoLoss(context_of(model))


def test_advice_on_lengths():
    assert run_of().loss.advice() == []
    (rounded,) = run_of(queue_length=47).loss.advice()
    assert "47 is rounded down to 36" in rounded
    (long,) = run_of(queue_length=108).loss.advice()
    assert "goes back over 54 images, more than half of the 100" in long
