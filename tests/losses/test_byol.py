"""BYOL's whole update, and its variants with a centre and with scores, against a loop written from the papers."""

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
    plain_linear,
    plain_mlp,
    plain_rows,
    plain_training,
    plain_trunk,
    plain_unit,
    plain_views,
    plain_weights,
    poisoned,
)

from vissl_like.losses.byol import BYOLLoss
from vissl_like.models.heads.dino import DINOHead
from vissl_like.models.heads.mlp import MLPHead
from vissl_like.models.heads.predictor import PredictorHead
from vissl_like.models.teachers.previous_epoch import PreviousEpochTeacher
from vissl_like.models.teachers.previous_iteration import PreviousIterationTeacher
from vissl_like.models.teachers.student_copy import StudentCopyTeacher
from vissl_like.records import HeadOutput, ModelOutput, Progress
from vissl_like.utils.errors import UserError

predictor = partial(PredictorHead, hidden_dim=10, output_dim=7, predictor_hidden_dim=9)
dino = partial(DINOHead, layers=2, hidden_dim=10, bottleneck_dim=7, num_prototypes=5, freeze_last_layer="0 steps")
VARIANTS = {
    "byol": (predictor, {}),
    "byol with a centre": (predictor, {"center_momentum": 0.6}),
    "scores": (dino, {"compare": "scores"}),
    "scores with a centre": (dino, {"compare": "scores", "center_momentum": 0.6}),
}


def run_of(variant, share=(0, 1, 1), teacher=None, **options):
    head, given = VARIANTS[variant]
    model = model_of(head)
    return SmallRun(model, BYOLLoss(context_of(model, *share[1:]), **{**given, **options}), teacher, share)


def embedding(weights, views, predicts):
    projection = plain_mlp(weights, "head.projection_head", plain_trunk(weights, views))
    return plain_mlp(weights, "head.predictor", projection) if predicts else projection


def scores(weights, views, predicts):
    hidden = torch.nn.functional.gelu(plain_linear(weights, "head.mlp.0", plain_trunk(weights, views)))
    bottleneck = plain_unit(plain_linear(weights, "head.mlp.2", hidden))
    return bottleneck @ plain_unit(weights["head.last_layer.weight_v"]).t()


def plain_byol(variant, teacher_views=(0, 1), mistake=None):
    """``objective(student, teacher, step)`` with its own centre, pair by pair and image by image."""
    head, options = VARIANTS[variant]
    vectors = embedding if head is predictor else scores
    momentum, centre = options.get("center_momentum"), torch.zeros((), dtype=torch.float64)

    def objective(student, teacher, step):
        nonlocal centre
        views = plain_views(step)
        s = vectors(student, views, predicts=True)
        with torch.no_grad():
            seen = [views[view] for view in teacher_views]
            z = vectors(teacher, seen, predicts=mistake == "teacher predicts")
            new = centre if momentum is None else momentum * centre + (1 - momentum) * z.mean(0)
            if mistake == "centre moved before use":
                centre = new
            if mistake == "centre of unit vectors":
                z = plain_unit(z)
            z = z + centre if mistake == "centre sign" else z - centre
            if mistake == "centre after use of student":
                new = momentum * centre + (1 - momentum) * s.detach().mean(0)
            centre = new
        total, pairs = 0, 0
        for slot, view in enumerate(teacher_views):
            for v in range(VIEWS):
                if v == view and mistake != "pair of a view with itself":
                    continue
                p, target = plain_rows(s, v), plain_rows(z, slot)
                if mistake != "no normalisation":
                    p, target = plain_unit(p), plain_unit(target)
                total, pairs = total + ((p - target) ** 2).sum(1).mean(), pairs + 1
        return total / (1 if mistake == "sum over pairs" else pairs)

    return objective


def reference(run, variant, steps, teacher_views=(0, 1), mistake=None):
    weights = {n: w for n, w in plain_weights(run.model).items() if "weight_g" not in n}
    return plain_training(weights, plain_byol(variant, teacher_views, mistake), steps, mistake)


@pytest.mark.parametrize(
    ("variant", "teacher_views"), [*((name, (0, 1)) for name in VARIANTS), ("byol", (2,)), ("byol", (3, 0))]
)
def test_whole_loop_equals_the_plain_one(variant, teacher_views):
    run = run_of(variant, teacher_views=list(teacher_views))
    plain = reference_with_lengths(run, variant, teacher_views)
    assert_same_training(run, run.train(range(6)), plain)


def reference_with_lengths(run, variant, teacher_views):
    """The plain loop; lengths of DINO's prototypes are not trained, so they are 1 in it."""
    values, student, teacher = reference(run, variant, 6, teacher_views)
    for name, weight in plain_weights(run.model).items():
        if "weight_g" in name:
            student[name] = teacher[name] = torch.ones_like(weight)
    return values, student, teacher


@pytest.mark.parametrize(
    ("variant", "mistake"),
    [
        ("byol", "pair of a view with itself"),
        ("byol", "no normalisation"),
        ("byol", "sum over pairs"),
        ("byol", "teacher predicts"),
        ("byol", "teacher before the step"),
        ("byol with a centre", "centre sign"),
        ("byol with a centre", "centre of unit vectors"),
        ("byol with a centre", "centre after use of student"),
        ("scores with a centre", "centre moved before use"),
        ("scores with a centre", "centre sign"),
    ],
)
def test_the_comparison_notices_mistakes(variant, mistake):
    run = run_of(variant)
    plain = reference(run, variant, 5, mistake=mistake)
    assert differs(run.train(range(5)), plain)


def test_hand_worked():
    # One image, two views. Student (0, 2), (3, 0); teacher (5, 0), (0, 1). Pairs: z0 with s1 -> cos 1, z1 with s0 -> 1.
    model = model_of(partial(MLPHead, layers=1, output_dim=2))
    loss = BYOLLoss(context_of(model, num_views=2))
    student, taught = torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 1.0]])

    def value(student, taught):
        teacher = ModelOutput(2, taught, HeadOutput(taught))
        return float(loss(ModelOutput(2, student, HeadOutput(student), teacher), None, Progress(0, 1, 1))["loss"])

    assert value(student, taught) == pytest.approx(0)
    assert value(student, taught.flip(0)) == pytest.approx(2)
    assert value(-student, taught) == pytest.approx(4)


def test_official_value_is_the_sum_of_the_two_directions():
    torch.manual_seed(0)
    model = model_of(predictor)
    loss = BYOLLoss(context_of(model, num_views=2))
    p, z = torch.randn(2, IMAGES, 7), torch.randn(2, IMAGES, 7)
    teacher = ModelOutput(2, z, HeadOutput(z.flatten(0, 1)))
    ours = loss(ModelOutput(2, p, HeadOutput(p.flatten(0, 1)), teacher), None, Progress(0, 1, 1))["loss"]
    cosine = torch.nn.functional.cosine_similarity
    official = (2 - 2 * cosine(p[0], z[1])) + (2 - 2 * cosine(p[1], z[0]))
    torch.testing.assert_close(2 * ours, official.mean())


def test_constant_outputs_cost_nothing_and_there_is_no_trivial_value():
    model = model_of(partial(predictor, last_bias=True))
    run = SmallRun(model, BYOLLoss(context_of(model)))
    for layer in (run.model.head.predictor[3], run.teacher.network.head.projection_head[3]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)
    assert run.train([0]) == [pytest.approx(0, abs=1e-6)]
    assert run.loss.trivial_value() is None


def test_a_skipped_update_leaves_the_centre_alone():
    run, other = run_of("byol with a centre"), run_of("byol with a centre")
    run.train([0])
    before = run.state()
    assert before["loss/center"].any()
    run.loss.forward = poisoned(run.loss)
    run.train([1])
    assert torch.equal(run.loss.center, before["loss/center"])
    del run.loss.forward
    run.train([2])
    other.load(before)
    other.train([2])
    assert torch.equal(run.loss.center, other.loss.center)


@pytest.mark.parametrize("variant", ["byol", "scores with a centre"])
def test_resumed_from_its_state_it_goes_on_bit_by_bit(variant):
    run, other = run_of(variant), run_of(variant)
    run.train(range(3))
    other.load(run.state())
    assert run.train(range(3, 6)) == other.train(range(3, 6))
    mine, others = run.state(), other.state()
    assert all(torch.equal(mine[name], others[name]) for name in mine if isinstance(mine[name], torch.Tensor))


def test_micro_batches_equal_one_batch_without_batch_norm():
    whole, parts = run_of("scores with a centre"), run_of("scores with a centre", (0, 1, 3))
    torch.testing.assert_close(whole.train(range(4)), parts.train(range(4)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.loss.center, parts.loss.center, rtol=1e-5, atol=1e-6)


def _share(rank, world_size):
    results = []
    for variant in ("byol with a centre", "scores"):
        run = run_of(variant, (rank, world_size, 1))
        results.append((run.train(range(4)), run.gradients, list(run.loss.buffers())))
    return results


def test_two_processes_equal_one():
    both = run_in_processes(_share, 2)
    for number, variant in enumerate(("byol with a centre", "scores")):
        run = run_of(variant)
        values = run.train(range(4))
        for rank in range(2):
            theirs, gradients, buffers = both[rank][number]
            torch.testing.assert_close(values, theirs, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(run.gradients, gradients, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(list(run.loss.buffers()), buffers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("teacher", [StudentCopyTeacher, PreviousIterationTeacher, PreviousEpochTeacher])
@pytest.mark.parametrize("variant", ["byol", "scores with a centre"])
def test_runs_with_every_teacher(variant, teacher):
    run = run_of(variant, teacher=teacher)
    values = run.train(range(TOTAL))
    assert all(0 < value < 4 for value in values) and len(set(values)) == TOTAL
    if teacher is StudentCopyTeacher:
        for name, parameter in run.teacher.network.named_parameters():
            assert torch.equal(parameter, dict(run.model.named_parameters())[name])


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="the head gives 0 sets of them"):
        run_of("byol", compare="scores")
    with pytest.raises(UserError, match="prototypes that nothing would train"):
        run_of("scores", compare="embedding")
    with pytest.raises(UserError, match=r"teacher_views is \[0, 4\]"):
        run_of("byol", teacher_views=[0, 4])
