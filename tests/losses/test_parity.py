"""Every registered loss: two processes equal one at the same global batch, in loss, gradient and all that they keep."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from processes import run_in_processes
from torch import nn

from vissl_like.clustering import sinkhorn as sinkhorn_module
from vissl_like.losses import dino as dino_module
from vissl_like.losses import moco as moco_module
from vissl_like.losses.base import LossContext
from vissl_like.losses.per_rank import Division
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.ema import EMATeacher
from vissl_like.records import Batch, Progress
from vissl_like.registry import HEADS, LOSSES, SAMPLERS
from vissl_like.trainer.precision import Precision
from vissl_like.trainer.step import TrainStep

G, EPOCH, STEPS, VIEWS, SEED = 8, 2, 3, 3, 5  # images of a step, steps of an epoch, steps taken
SIZES = (6, 6, 4)


@dataclass
class Case:
    """A loss as the sweep builds it: the head it stands on, its options, and whether there is a teacher."""

    head: str
    head_options: dict
    loss_options: dict = field(default_factory=dict)
    teacher: bool = False
    sizes: tuple[int, ...] = SIZES


MLP = ("mlp", {"hidden_dim": 10, "output_dim": 6})
SWAV = ("swav", {"hidden_dim": 10, "output_dim": 6, "num_prototypes": [4, 3], "freeze_prototypes": "0 steps"})
PREDICTOR = ("predictor", {"hidden_dim": 10, "output_dim": 6, "predictor_hidden_dim": 10})
DINO = ("dino", {"hidden_dim": 10, "bottleneck_dim": 6, "num_prototypes": 5, "batch_norm": True})
QUEUE = {"queue_length": G, "queue_start": "0 steps"}

CASES = {
    "swav": [Case(*SWAV, QUEUE), Case(*SWAV, QUEUE, teacher=True)],
    "dino": [Case(*DINO, {}, True), Case(*DINO, {"targets": "sinkhorn"}, True)],
    "byol": [Case(*PREDICTOR, {"center_momentum": 0.5}, True)],
    "moco": [Case(*MLP, {"queue_length": 4 * G}, True)],
    "deepcluster_v2": [Case(*MLP, {"heads": 2, "num_prototypes": 3, "iterations": 2})],
    "sela_v2": [Case(*SWAV)],
    "rotation": [Case("classifier", {"classes": 4}, sizes=(6, 6, 6, 6))],
}
"""A line for every loss; where options change what goes between processes, a case for each."""

NAMES = [component.name for component in LOSSES.components() if "vissl_like/losses" in str(component.file)]
RUNS = [(name, number, forwards) for name in CASES for number in range(len(CASES[name])) for forwards in (1, 2)]


class TinyTrunk(nn.Module):
    """Three pooled statistics, a linear layer and BatchNorm."""

    feature_dim = 12

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 12, bias=False), nn.BatchNorm1d(12)

    def forward(self, images):
        pooled = torch.cat([images.mean((2, 3)), images.amax((2, 3)), images.std((2, 3))], 1)
        return torch.tanh(self.norm(self.layer(pooled)))


def views_of(epoch, indices, sizes):
    """float64 views; an image has its own noise in every epoch and view."""
    views = []
    for view, size in enumerate(sizes):
        images = []
        for index in indices:
            kind = torch.rand(1, 2, 2, generator=torch.Generator().manual_seed(index), dtype=torch.float64) * 3
            noise = torch.Generator().manual_seed(1000 * epoch + 10 * index + view)
            large = kind.repeat_interleave(size // 2, 1).repeat_interleave(size // 2, 2)
            images.append(large + torch.randn(1, size, size, generator=noise, dtype=torch.float64))
        views.append(torch.stack(images))
    return views


class Share:
    """What one process is given of every step, by the real sampler."""

    def __init__(self, rank, world, forwards, sizes):
        self.forwards, self.sizes = forwards, sizes
        self.sampler = SAMPLERS.get("shuffled")(G * EPOCH + 3, G // world // forwards, forwards, rank, world, SEED)

    def batches(self, step, stop):
        for keys in self.sampler.batches(step, stop):
            index = [image for _, image in keys]
            yield Batch(views_of(keys[0][0], index, self.sizes), torch.tensor(index))


class Source:
    """The pass over the epoch that begins, for losses that ask for it."""

    def __init__(self, model, share, step):
        self.model, self.share, self.step = model, share, step

    @torch.no_grad()
    def one_pass(self, views):
        for batch in self.share.batches(self.step, self.step + EPOCH):
            yield batch, [self.model([batch.views[view]]) for view in views]


def train(rank, world, name, number, forwards):
    """Loss parts and gradients of some steps, and the loss's and the network's state after them."""
    case = CASES[name][number]
    torch.manual_seed(3)
    model = SSLModel(TinyTrunk(), HEADS.get(case.head)(12, **case.head_options)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    context = LossContext(
        num_views=len(case.sizes),
        embedding_dim=model.head.embedding_dim,
        num_prototypes=tuple(model.head.num_prototypes),
        per_rank_batch=G // world // forwards,
        global_batch=G,
        world_size=world,
        dataset_size=G * EPOCH + 3,
        steps_per_epoch=EPOCH,
        total_steps=2 * EPOCH,
        seed=SEED,
    )
    loss = LOSSES.get(name)(context, **case.loss_options)
    if world > 1:
        model = synchronise_batch_norm(model, "cpu")
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    teacher = EMATeacher(model, momentum=0.7) if case.teacher else None
    optimizer, record = torch.optim.SGD(model.parameters(), lr=0.1), {}

    def note(*_):
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                record[f"gradient of {key}, update {len(parts)}"] = parameter.grad.clone()

    optimizer.register_step_pre_hook(note)
    schedules, parts = {"lr": lambda progress: 0.1}, []
    step = TrainStep(
        model, wrapped, loss, optimizer, schedules, Precision("fp32", "cpu"), lambda view: view, None, teacher
    )
    share = Share(rank, world, forwards, case.sizes)
    for place in range(STEPS):
        progress = Progress(place, 2 * EPOCH, EPOCH)
        if place % EPOCH == 0:
            loss.before_epoch(Source(model, share, place), progress)
        report = step(list(share.batches(place, place + 1)), progress)
        parts.append(torch.tensor([report.loss, report.grad_norm], dtype=torch.float64))
    record["loss and norm of the gradient"] = torch.stack(parts)
    for label, module in (("network", model), ("loss", loss)):
        record |= {f"{label}: {key}": value.clone() for key, value in module.state_dict().items()}
    return record


def whole_record(records, name, division):
    """Of both processes' records one: what belongs to processes is joined, all else must be equal."""
    layout, found = LOSSES.get(name).per_rank_layout, {}
    for key, value in records[0].items():
        parts = [record[key] for record in records]
        buffer = key.removeprefix("loss: ")
        if buffer in layout and key != buffer:
            found[key] = layout[buffer].join(parts, division)
        else:
            torch.testing.assert_close(parts[-1], value, rtol=1e-9, atol=1e-12, msg=lambda text: f"{key}: {text}")  # noqa: B023
            found[key] = value
    return found


def difference(found, expected):
    """Largest difference of all numbers, relative to the largest number of the same tensor but at least 0.01 of 1."""
    assert found.keys() == expected.keys() and len(expected) > 20
    worst = {}
    for key, value in expected.items():
        scale = max(float(value.double().abs().max()), 0.01) if value.numel() else 1.0
        apart = (found[key].double() - value.double()).abs()
        worst[key] = float(apart.max()) / scale if value.numel() else 0.0
    key = max(worst, key=worst.__getitem__)
    return worst[key], key


TOLERANCE = 2e-5
MISTAKES = {
    "dino": (0, dino_module),
    "dino, sinkhorn": (1, sinkhorn_module),
    "swav": (0, sinkhorn_module),
    "moco": (0, moco_module),
}
"""Where exchange is left out: case, and the module that would do it."""


def mistaken(rank, world, name):
    """The run of a process that believes that all others have what it has."""
    number, module = MISTAKES[name]
    real = module.comm
    module.comm = SimpleNamespace(
        all_reduce=lambda tensor, op="sum": tensor * world if op == "sum" else tensor,
        all_gather=lambda tensor: torch.cat([tensor] * world),
    )
    try:
        return train(rank, world, name.split(",")[0], number, 1)
    finally:
        module.comm = real


def all_runs(rank, world):
    """Everything that two processes do here; they start once."""
    return [train(rank, world, *run) for run in RUNS], [mistaken(rank, world, name) for name in MISTAKES]


@pytest.fixture(scope="module")
def in_two_processes():
    return run_in_processes(all_runs, 2)


@pytest.mark.parametrize("forwards", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(in_two_processes, name, forwards):
    assert name in CASES, f"LOSSES has {name!r}, which this sweep cannot build: add a line to CASES in {__file__}"
    for number in range(len(CASES[name])):
        place = RUNS.index((name, number, forwards))
        alone = whole_record([train(0, 1, name, number, forwards)], name, Division(G, 1, forwards))
        both = whole_record([runs[place] for runs, _ in in_two_processes], name, Division(G, 2, forwards))
        apart, where = difference(both, alone)
        print(f"{name} {number} {forwards}: {apart:.1e} in {where}")
        assert apart < TOLERANCE, (number, where, apart)


@pytest.mark.parametrize("name", MISTAKES)
def test_the_sweep_notices_what_is_not_exchanged(in_two_processes, name):
    loss, (number, _) = name.split(",")[0], MISTAKES[name]
    alone = train(0, 1, loss, number, 1)
    wrong = in_two_processes[0][1][list(MISTAKES).index(name)]
    keys = [key for key in alone if key.startswith("gradient")]
    apart, _ = difference({key: wrong[key] for key in keys}, {key: alone[key] for key in keys})
    assert apart > 100 * TOLERANCE


SAMPLER_NAMES = [component.name for component in SAMPLERS.components() if "vissl_like/data" in str(component.file)]


@pytest.mark.parametrize("world, forwards", [(2, 1), (2, 2), (4, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_gives_processes_what_one_process_has_in_the_same_order(name, world, forwards):
    size, batch = 103, 12
    whole = list(SAMPLERS.get(name)(size, batch, 1, 0, 1, SEED).batches(3, 20))  # over two borders of epochs
    assert len(whole) == 17 and {len(step) for step in whole} == {batch}
    made = [SAMPLERS.get(name)(size, batch // world // forwards, forwards, r, world, SEED) for r in range(world)]
    own = [list(sampler.batches(3, 20)) for sampler in made]
    for step, expected in enumerate(whole):
        micro = range(step * forwards, (step + 1) * forwards)
        assert [key for m in micro for r in range(world) for key in own[r][m]] == expected
