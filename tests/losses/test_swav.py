"""SwAV's whole update, through the real training step, against a plain float64 transcription of the official loop."""

import inspect
import math

import pytest
import torch
from plain_swav import (
    DIM,
    FROZEN,
    IMAGES,
    LARC,
    LENGTH,
    PROTOTYPES,
    QUEUE_ASKED,
    QUEUE_EPOCH,
    SGD,
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
from vissl_like.losses.swav import SwAVLoss
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.models.heads.swav import SwAVHead
from vissl_like.models.ssl_model import SSLModel
from vissl_like.optimizers.larc import LARC as OurLARC
from vissl_like.optimizers.sgd import sgd
from vissl_like.records import Batch, Progress
from vissl_like.schedules.cosine import Cosine
from vissl_like.trainer.precision import Precision
from vissl_like.trainer.step import TrainStep
from vissl_like.utils.errors import UserError

VIEWS, TOLERANCE = 4, 1e-5


class TinyTrunk(nn.Module):
    """Three pooled statistics and a linear layer: sees size and content, quick to train."""

    feature_dim = 12

    def __init__(self, batch_norm=False):
        super().__init__()
        self.layer = nn.Linear(3, 12, bias=not batch_norm)
        self.norm = nn.BatchNorm1d(12) if batch_norm else nn.Identity()

    def forward(self, images):
        pooled = torch.cat([images.mean((2, 3)), images.amax((2, 3)), images.std((2, 3))], 1)
        return torch.tanh(self.norm(self.layer(pooled)))


def make_model(batch_norm=False, freeze="0 steps"):
    """A network in the middle of its life, with one bias at zero, whose first gradient LARC must leave as it is.

    That bias is the last layer's. The one in front of BatchNorm has no gradient but rounding noise, which the official
    LARC blows up to steps of full size: no two implementations agree on it. It is kept away from zero, and the eps of
    this comparison is far above the noise, so that it hardly moves except by its decay and can be compared too.
    """
    torch.manual_seed(4)
    options = {"hidden_dim": 10, "output_dim": DIM, "num_prototypes": PROTOTYPES, "batch_norm": batch_norm}
    model = SSLModel(TinyTrunk(batch_norm), SwAVHead(12, freeze_prototypes=freeze, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * torch.randn(parameter.shape)
        model.head.projection_head[3].bias.zero_()
    return model.double()


def our_training(batch_norm=False, larc=True):
    """Losses, weights and queues, by the package's own parts."""
    model = make_model(batch_norm, f"{FROZEN} steps")
    context = LossContext(VIEWS, DIM, (PROTOTYPES,), IMAGES, IMAGES, 1, 100)
    loss = SwAVLoss(context, queue_length=QUEUE_ASKED, queue_start=f"{QUEUE_EPOCH} epochs")
    rates, named = LARC if larc else SGD, list(model.named_parameters())
    if larc:
        optimizer = OurLARC(named, LARC["base"], weight_decay=LARC["decay"], trust=LARC["trust"], eps=LARC["eps"])
    else:
        optimizer = sgd(named, SGD["base"], weight_decay=SGD["decay"])
    ratio = rates["start"] / rates["base"]
    schedules = {"lr": Cosine(rates["base"], final=rates["final"], warmup="1 epochs", warmup_start_ratio=ratio)}
    step = TrainStep(model, model, loss, optimizer, schedules, Precision("fp32", "cpu"), normalised)
    losses = []
    for number in range(STEPS):
        report = step([Batch(views_of(number), torch.arange(IMAGES))], Progress(number, STEPS, LENGTH))
        assert not report.skipped_update
        losses.append(report.loss)
    return record(losses, dict(model.named_parameters()), loss.queue)


@pytest.fixture(scope="module")
def trained():
    return our_training()


def start(batch_norm=False):
    return dict(make_model(batch_norm).named_parameters())


@pytest.fixture(scope="module")
def trained_by_sgd():
    return our_training(larc=False)


def test_whole_loop_equals_the_official_one(trained):
    official = Official(start())
    assert difference(trained, official.train()) < TOLERANCE
    assert official.balanced == [IMAGES] * 14 + [IMAGES + 18] * 18  # two crops a step, the queue full before step 7


def test_whole_loop_with_batch_norm_in_trunk_and_head():
    assert difference(our_training(batch_norm=True), Official(start(True), batch_norm=True).train()) < TOLERANCE


def test_whole_loop_with_sgd_alone(trained_by_sgd):
    assert difference(trained_by_sgd, Official(start(), larc=False).train()) < TOLERANCE


def test_numbers_that_the_comparison_replaced_are_the_official_ones():
    options = {name: parameter.default for name, parameter in inspect.signature(OurLARC).parameters.items()}
    official = {"momentum": 0.9, "weight_decay": 1e-6, "trust": 1e-3, "clip": False, "eps": 1e-8, "decay_vectors": True}
    assert options.items() >= official.items()


@pytest.mark.parametrize(
    "mistake",
    [
        "prototypes not normalised",
        "prototypes normalised once",
        "prototypes normalised after the update",
        "queue updated before use",
        "queue used before full",
        "queue appended at the end",
        "queue too early",
        "queue scored with earlier prototypes",
        "one queue for both crops",
        "first rows taken",
        "divisor V",
        "view paired with itself",
        "no temperature",
        "one Sinkhorn iteration",
        "rows before prototypes",
        "targets from softmax",
        "gradient through the targets",
        "freeze ignored",
        "freeze one step too long",
        "not rescaled",
        "vectors not rescaled",
        "zero tensor left at zero",
        "norm of the sum",
        "eps missing",
        "clip",
        "decay missing",
        "decay after rescaling",
        "vectors not decayed",
        "momentum missing",
        "rate inside the momentum",
        "lr off by one",
        "lr of the epoch",
        "no warm-up",
        "warm-up from zero",
    ],
)
def test_the_comparison_notices_mistakes(trained, mistake):
    assert difference(trained, Official(start(), mistake).train()) > 100 * TOLERANCE


@pytest.mark.parametrize("mistake", ["trunk sees every view apart", "head run per resolution"])
def test_the_comparison_notices_mistakes_with_batch_norm(mistake):
    assert difference(our_training(batch_norm=True), Official(start(True), mistake, True).train()) > 100 * TOLERANCE


def test_frozen_by_zeros_is_noticed_with_sgd_and_is_the_same_with_larc(trained, trained_by_sgd):
    """SGD's decay fills the momentum of frozen prototypes; LARC leaves a gradient of zero alone, decay included."""
    assert difference(trained_by_sgd, Official(start(), "frozen by zeros", larc=False).train()) > 100 * TOLERANCE
    assert difference(trained, Official(start(), "frozen by zeros").train()) < TOLERANCE


def build(queue=0, start="0 steps", freeze="0 steps", **options):
    context = LossContext(VIEWS, DIM, (PROTOTYPES,), IMAGES, IMAGES, 1, 100)
    return make_model(freeze=freeze).float(), SwAVLoss(context, queue_length=queue, queue_start=start, **options)


def small_views(step):
    return [normalised(view).float() for view in views_of(step)]


def batch(views):
    return Batch(views=views, index=torch.arange(len(views[0])))


def test_frozen_prototypes_have_no_gradient_at_all():
    model, loss = build(freeze="2 steps")
    views = small_views(0)
    loss(model(views), batch(views), Progress(0, 4, 2))["loss"].backward()
    model.head.before_update(Progress(1, 4, 2))
    assert model.head.prototypes.weight.grad is None
    assert model.head.projection_head[0].weight.grad is not None


def test_a_skipped_update_leaves_the_queue_alone():
    model, loss = build(queue=IMAGES)
    views = small_views(0)
    loss(model(views), batch(views), Progress(0, 4, 2))
    loss.forget_pending()
    loss.after_update(Progress(0, 4, 2))
    assert int(loss.queue_rows) == 0 and not loss.queue.any()


def test_queue_starts_when_told_and_holds_the_newest_first():
    model, loss = build(queue=2 * IMAGES, start="1 epochs")
    for step in range(4):
        progress, views = Progress(step, 8, 2), small_views(step)
        output = model(views)
        loss(output, batch(views), progress)
        loss.after_update(progress)
        assert int(loss.queue_rows) == min(2 * IMAGES, max(0, step - 1) * IMAGES)
    torch.testing.assert_close(loss.queue[0, :IMAGES], output.head.embedding[:IMAGES].detach())


def test_trivial_value_is_what_uniform_outputs_give():
    model, loss = build()
    assert loss.trivial_value() == pytest.approx(math.log(PROTOTYPES))
    nn.init.zeros_(model.head.projection_head[3].weight)
    nn.init.zeros_(model.head.projection_head[3].bias)
    views = small_views(0)
    parts = loss(model(views), batch(views), Progress(0, 4, 2))
    assert float(parts["loss"].detach()) == pytest.approx(math.log(PROTOTYPES), abs=1e-5)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="less than the global batch"):
        build(queue=IMAGES - 1)
    with pytest.raises(UserError, match=r"assign_views is \[0, 4\]"):
        build(assign_views=[0, 4])


def test_advice_on_ratios():
    context = LossContext(4, 8, (500,), 16, 16, 1, 100)
    assert "500 prototypes are balanced over only 16" in SwAVLoss(context).advice()[0]
    assert "more than half of the 100 images" in SwAVLoss(context, queue_length=64).advice()[-1]


def four_steps(rank, world_size, queue, batch_norm):
    """Loss parts, gradients, weights and running statistics of four SGD steps on this process's images; and its queue.

    With BatchNorm in float32, in which the synchronised one computes; without it in float64.
    """
    model = make_model(batch_norm)
    if batch_norm:
        model = synchronise_batch_norm(model.float(), "cpu")
    context = LossContext(VIEWS, DIM, (PROTOTYPES,), IMAGES // world_size, IMAGES, world_size, 100)
    loss = SwAVLoss(context, queue_length=queue, queue_start="0 steps")
    wrapped = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    optimizer, schedules = torch.optim.SGD(model.parameters(), lr=0.02), {"lr": lambda progress: 0.02}
    seen = []

    def as_floats(view):
        return normalised(view).float() if batch_norm else normalised(view)

    def note(parameters, norm):
        seen.extend(parameter.grad.clone() for parameter in parameters)

    step = TrainStep(model, wrapped, loss, optimizer, schedules, Precision("fp32", "cpu"), as_floats, note)
    for number in range(4):
        own = [view.chunk(world_size)[rank] for view in views_of(number)]
        report = step([Batch(own, torch.arange(len(own[0])))], Progress(number, 4, 2))
        seen.append(torch.tensor(list(report.parts.values()), dtype=torch.float64))
    return [tensor.detach() for tensor in [*seen, *model.state_dict().values()]], loss.queue.clone()


CASES = {"float64": (2 * IMAGES, False), "batch norm": (2 * IMAGES, True), "batch norm, no queue": (0, True)}


def _all_cases(rank, world_size):
    return [four_steps(rank, world_size, *case) for case in CASES.values()]


@pytest.fixture(scope="module")
def in_two_processes():
    return run_in_processes(_all_cases, 2)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_in_loss_gradient_prototypes_statistics_and_queue(in_two_processes, case):
    queue, batch_norm = CASES[case]
    expected, whole_queue = four_steps(0, 1, queue, batch_norm)
    # In float32 rounding of 1e-7 is magnified by Sinkhorn (20 times), temperature (10 times) and BatchNorm of a few
    # rows; a bias in front of BatchNorm has no gradient but this noise, so the tolerance is absolute there.
    limits = {"rtol": 1e-4, "atol": 5e-5} if batch_norm else {"rtol": 1e-5, "atol": 1e-6}
    shards = [in_two_processes[rank][list(CASES).index(case)] for rank in range(2)]
    for mine, _ in shards:
        assert len(mine) == len(expected) > 30
        for one, other in zip(mine, expected):
            torch.testing.assert_close(one, other, **limits)
    parts = [rows.view(2, -1, IMAGES // 2, DIM) for _, rows in shards]  # crop, batch, image of this process
    torch.testing.assert_close(torch.cat(parts, 2).view(2, queue, DIM), whole_queue, **limits)
