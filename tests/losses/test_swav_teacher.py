"""SwAV with a momentum encoder: assignments and queue come from a teacher. Against a loop written from the facts."""

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
    micro_batches,
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

from vissl_like.losses.swav import SwAVLoss
from vissl_like.models.heads.swav import SwAVHead
from vissl_like.models.teachers.ema import EMATeacher
from vissl_like.models.teachers.previous_epoch import PreviousEpochTeacher
from vissl_like.models.teachers.previous_iteration import PreviousIterationTeacher
from vissl_like.models.teachers.student_copy import StudentCopyTeacher
from vissl_like.records import Progress

DIM, PROTOTYPES, QUEUE = 7, 5, 2 * IMAGES
LR = 0.02
"""Small: Sinkhorn and temperature make rounding grow from step to step."""
momentum_encoder = partial(EMATeacher, momentum=0.7, copy_buffers=True)


def run_of(share=(0, 1, 1), teacher=momentum_encoder, batch_norm=True, queue=QUEUE, **options):
    model = model_of(
        partial(
            SwAVHead,
            hidden_dim=10,
            output_dim=DIM,
            num_prototypes=PROTOTYPES,
            batch_norm=batch_norm,
            freeze_prototypes="0 steps",
        )
    )
    options = {"queue_length": queue, "queue_start": "0 steps", **options}
    return SmallRun(model, SwAVLoss(context_of(model, *share[1:]), **options), teacher, share, LR)


def plain_sinkhorn(scores):
    """Equal shares of the prototypes, then rows that sum to 1; three times."""
    q = torch.exp(scores / 0.05)
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    return q


def plain_embedding(weights, views):
    return plain_unit(plain_mlp(weights, "head.projection_head", plain_trunk(weights, views)))


def normalise_prototypes(mistake, *networks):
    student, teacher = networks
    name = "head.prototypes.weight"
    student[name].copy_(plain_unit(student[name]))
    if mistake != "teacher's prototypes not normalised":
        teacher[name].copy_(plain_unit(teacher[name]))


def plain_swav(assign_views, queue_rows, mistake=None):
    """``objective(student, teacher, step)`` with one queue per assign view, newest embeddings first."""
    queues = [torch.zeros(0, DIM, dtype=torch.float64) for _ in assign_views]

    def objective(student, teacher, step):
        views = plain_views(step)
        z, prototypes = plain_embedding(student, views), student["head.prototypes.weight"]
        with torch.no_grad():
            seen = range(VIEWS) if mistake == "teacher sees all views" else assign_views
            taught = plain_embedding(teacher, [views[v] for v in seen])
            given = teacher["head.prototypes.weight"]
            own = {v: plain_rows(taught, slot) for slot, v in enumerate(seen)}
            if mistake == "student's assignments":
                own, given = {v: plain_rows(z, v) for v in assign_views}, prototypes
            for_queue = given if mistake != "queue scored by the student" else prototypes
        loss = 0
        for slot, view in enumerate(assign_views):
            with torch.no_grad():
                current = own[view]
                kept = current if mistake != "embeddings of the student kept" else plain_rows(z, view)
                if mistake == "too few rows kept":
                    kept = kept[: len(assign_views) * IMAGES // VIEWS]
                if mistake == "current batch in the queue":
                    queues[slot] = torch.cat([kept, queues[slot]])[:queue_rows]
                scores = current @ given.t()
                if queue_rows and (len(queues[slot]) == queue_rows or mistake == "queue used before full"):
                    scores = torch.cat([queues[slot] @ for_queue.t(), scores])
                if mistake != "current batch in the queue":
                    queues[slot] = torch.cat([kept, queues[slot]])[:queue_rows]
                q = plain_sinkhorn(scores)[-IMAGES:]
            others = [v for v in range(VIEWS) if v != view]
            for other in others:
                log_p = torch.log_softmax(plain_rows(z, other) @ prototypes.t() / 0.1, 1)
                loss = loss - (q * log_p).sum(1).mean() / len(others)
        return loss / len(assign_views)

    return objective, queues


def reference(run, steps, assign_views=(0, 1), queue_rows=QUEUE, mistake=None):
    objective, queues = plain_swav(assign_views, queue_rows, mistake)
    before = partial(normalise_prototypes, mistake)
    return plain_training(plain_weights(run.model), objective, steps, mistake, before, LR), queues


@pytest.mark.parametrize(
    ("assign_views", "queue"), [((0, 1), QUEUE), ((0, 1), 0), ((2, 0), QUEUE), ((3,), IMAGES), ((0, 1, 2), QUEUE)]
)
def test_whole_loop_equals_the_plain_one(assign_views, queue):
    run = run_of(assign_views=list(assign_views), queue=queue)
    plain, queues = reference(run, 6, assign_views, queue)
    assert_same_training(run, run.train(range(6)), plain)
    assert run.loss.queue.shape == (len(assign_views), queue, DIM)
    torch.testing.assert_close(run.loss.queue.double(), torch.stack(queues), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "mistake",
    [
        "student's assignments",
        "teacher's prototypes not normalised",
        "teacher sees all views",
        "queue scored by the student",
        "embeddings of the student kept",
        "too few rows kept",
        "current batch in the queue",
        "queue used before full",
        "teacher before the step",
    ],
)
def test_the_comparison_notices_mistakes(mistake):
    run = run_of()
    plain, _ = reference(run, 6, mistake=mistake)
    assert differs(run.train(range(6)), plain)


def test_the_queue_keeps_all_rows_of_every_assign_view():
    run = run_of()
    with torch.no_grad():
        given = plain_embedding(plain_weights(run.teacher.network), plain_views(0)[:2])
    run.train([0])
    assert int(run.loss.queue_rows) == IMAGES
    torch.testing.assert_close(run.loss.queue[:, :IMAGES].double(), given.view(2, IMAGES, DIM), rtol=1e-4, atol=1e-5)
    assert not run.loss.queue[:, IMAGES:].any()


@pytest.mark.parametrize("copies", [True, False])
def test_running_statistics_of_the_teacher(copies):
    run = run_of(teacher=partial(momentum_encoder, copy_buffers=copies))
    run.train(range(3))
    for (name, mine), (_, students) in zip(run.teacher.network.named_buffers(), run.model.named_buffers()):
        assert torch.equal(mine, students) == (copies or "num_batches" in name), name


def test_a_copy_of_the_student_gives_what_no_teacher_gives():
    """Without BatchNorm nothing depends on which views are seen together, so both loops are the same."""
    run = run_of(teacher=StudentCopyTeacher, batch_norm=False)
    values = run.train(range(6))
    alone = run_of(batch_norm=False)
    optimizer, expected = torch.optim.SGD(alone.model.parameters(), lr=LR, momentum=0.9), []
    for step in range(6):
        progress, (batch,) = Progress(step, TOTAL, 2), micro_batches(step)
        alone.model.head.before_forward(progress)
        output = alone.model([alone.step.normalise(view) for view in batch.views])
        assert output.teacher is None
        loss = alone.loss(output, batch, progress)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        alone.loss.after_update(progress)
        expected.append(float(loss.detach()))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run.loss.queue, alone.loss.queue, rtol=1e-4, atol=1e-5)


def test_a_skipped_update_leaves_queue_and_teacher_alone():
    run = run_of()
    run.train([0])
    before = run.state()
    run.loss.forward = poisoned(run.loss)
    run.train([1])
    after = run.state()
    untouched = [name for name in before if name.startswith(("loss/", "teacher/")) and "prototypes" not in name]
    assert len(untouched) > 5 and all(torch.equal(before[name], after[name]) for name in untouched)


def test_resumed_from_its_state_it_goes_on_bit_by_bit():
    run, other = run_of(), run_of()
    run.train(range(3))
    other.load(run.state())
    assert run.train(range(3, 6)) == other.train(range(3, 6))
    mine, others = run.state(), other.state()
    assert all(torch.equal(mine[name], others[name]) for name in mine if isinstance(mine[name], torch.Tensor))


def _share(rank, world_size):
    run = run_of((rank, world_size, 1))
    return run.train(range(5)), run.gradients, run.loss.queue, list(run.teacher.network.parameters())


def test_two_processes_equal_one():
    both = run_in_processes(_share, 2)
    run = run_of()
    values = run.train(range(5))
    for rank in range(2):
        theirs, gradients, queue, teacher = both[rank]
        torch.testing.assert_close(values, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(run.gradients, gradients, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(list(run.teacher.network.parameters()), teacher, rtol=1e-4, atol=1e-5)
        half = IMAGES // 2
        own = run.loss.queue.unflatten(1, (-1, 2, half))[:, :, rank].flatten(1, 2)  # each process keeps its own rows
        torch.testing.assert_close(own, queue, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("teacher", [StudentCopyTeacher, PreviousIterationTeacher, PreviousEpochTeacher])
def test_runs_with_every_teacher(teacher):
    values = run_of(teacher=teacher).train(range(TOTAL))
    assert all(0 < value < 10 for value in values) and len(set(values)) == TOTAL
