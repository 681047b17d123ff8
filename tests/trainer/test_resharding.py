"""Queues and banks of W processes become those that a run of W' processes has, row by row."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from vissl_like.data.samplers.sequential import SequentialSampler
from vissl_like.distributed import comm
from vissl_like.losses.bank import BankLoss
from vissl_like.losses.base import Loss, LossContext
from vissl_like.losses.per_rank import Division, RowCount, StepRows
from vissl_like.losses.swav import SwAVLoss
from vissl_like.records import Progress
from vissl_like.trainer.checkpoint import Checkpoint
from vissl_like.trainer.resharding import Resharding
from vissl_like.trainer.rng import restore_rng_state
from vissl_like.utils.errors import UserError

G, STEPS = 8, 3

# Places of a step's 8 images, by (processes, forwards): for each process its micro-batches. Worked out by hand.
DEALT = {
    (1, 1): [[[0, 1, 2, 3, 4, 5, 6, 7]]],
    (1, 2): [[[0, 1, 2, 3], [4, 5, 6, 7]]],
    (2, 1): [[[0, 1, 2, 3]], [[4, 5, 6, 7]]],
    (2, 2): [[[0, 1], [4, 5]], [[2, 3], [6, 7]]],
    (2, 4): [[[0], [2], [4], [6]], [[1], [3], [5], [7]]],
    (4, 1): [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]],
    (4, 2): [[[0], [4]], [[1], [5]], [[2], [6]], [[3], [7]]],
}


def bank_of(dealt):
    """A process's bank of image numbers: steps and micro-batches in the order of training."""
    return [step * G + place for step in range(STEPS) for micro in dealt for place in micro]


def queue_of(dealt):
    """A process's queue of image numbers: the newest step first, of each the last micro-batch first."""
    return [step * G + place for step in (2, 1, 0) for micro in reversed(dealt) for place in micro]


def as_rows(numbers, dim):
    """Image numbers as rows of two numbers each, of a buffer with a bank for either of two views."""
    rows = torch.tensor(numbers, dtype=torch.float32)[:, None] + torch.tensor([0.0, 0.5])
    return torch.stack([rows, rows + 100]) if dim else rows


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", [bank_of, queue_of])
@pytest.mark.parametrize("after", DEALT, ids=str)
@pytest.mark.parametrize("before", DEALT, ids=str)
def test_any_division_becomes_any_other(before, after, kind, dim):
    layout = StepRows(dim=dim, newest_first=kind is queue_of)
    whole = layout.join([as_rows(kind(dealt), dim) for dealt in DEALT[before]], Division(G, *before))
    assert whole.shape[dim] == STEPS * G
    for rank, dealt in enumerate(DEALT[after]):
        assert torch.equal(layout.split(whole, Division(G, *after), rank), as_rows(kind(dealt), dim))


def test_counts_add_up_and_are_divided():
    whole = RowCount().join([torch.tensor(6), torch.tensor(6)], Division(G, 2, 1))
    assert int(whole) == 12 and int(RowCount().split(whole, Division(G, 4, 2), 3)) == 3


def context_of(world, accumulation):
    return LossContext(2, 2, (3,), G // world // accumulation, G, world, STEPS * G, STEPS, 2 * STEPS)


def losses_of(division, make, steps):
    """The losses of all processes after some updates; the embedding of an image is its number."""
    world, accumulation = division
    made = [make(context_of(*division)) for _ in range(world)]
    for rank, loss in enumerate(made):
        sampler = SequentialSampler(STEPS * G, G // world // accumulation, accumulation, rank, world, 0)
        batches = list(sampler.batches(0, steps))
        for step in range(steps):
            for batch in batches[step * accumulation : (step + 1) * accumulation]:
                index = torch.tensor([image for _, image in batch])
                rows = as_rows((index + 1000 * step).tolist(), 1)
                loss._pending.append((index, rows) if isinstance(loss, BankLoss) else list(rows))
            loss.after_update(Progress(step, 2 * STEPS, STEPS))
    return made


def swav(context):
    return SwAVLoss(context, queue_length=2 * G, queue_start="0 steps")


def bank(context):
    return BankLoss(context, [3], 0.1, None)


@dataclass
class Saved:
    """A run of some processes, saved; and the way it is taken up by others."""

    folder: object
    division: tuple
    settings: dict

    def checkpoint(self):
        manifest = {"world_size": self.division[0], "settings": {"TRAIN": self.settings}}
        return Checkpoint(self.folder, 7, manifest)

    def take_up(self, monkeypatch, loss, division, rank, global_batch=G):
        monkeypatch.setattr(comm, "rank", lambda: rank)
        plan = SimpleNamespace(global_batch=global_batch, world_size=division[0], accumulation=division[1])
        resharding = Resharding(loss, plan, seed=3)
        return resharding(self.checkpoint()), resharding.describe(self.checkpoint())


def save(folder, losses, division, **more):
    for rank, loss in enumerate(losses):
        own = {name: value for name, value in loss.state_dict().items() if name in loss.per_rank_buffers}
        torch.save({"rng": {}, "loss": own}, folder / f"rank_{rank:05d}.pt")
    settings = {"global_batch": G, "accumulation": division[1], "max_per_rank_batch": None, **more}
    return Saved(folder, division, settings)


@pytest.mark.parametrize("make, steps", [(swav, 1), (swav, 3), (bank, 3), (bank, 5)])
@pytest.mark.parametrize("before, after", [((1, 1), (2, 1)), ((2, 1), (1, 1)), ((2, 2), (4, 2)), ((4, 1), (2, 4))])
def test_real_losses_go_on_with_the_buffers_of_the_other_run(tmp_path, monkeypatch, make, steps, before, after):
    saved = save(tmp_path, losses_of(before, make, steps), before)
    for rank, straight in enumerate(losses_of(after, make, steps)):
        state, _ = saved.take_up(monkeypatch, make(context_of(*after)), after, rank)
        assert set(state["loss"]) == set(straight.per_rank_buffers)
        for name, found in state["loss"].items():
            assert torch.equal(found, straight.get_buffer(name)), name
            assert found.any()


def test_what_is_saved_by_auto_accumulation_is_understood(tmp_path, monkeypatch):
    """auto with at most 2 images a forward: 4 forwards in one process, 2 in two."""
    made = losses_of((1, 4), swav, 3)
    saved = save(tmp_path, made, (1, 4), accumulation="auto", max_per_rank_batch=2)
    straight = losses_of((2, 2), swav, 3)[1]
    state, (said, level) = saved.take_up(monkeypatch, swav(context_of(2, 2)), (2, 2), 1)
    assert torch.equal(state["loss"]["queue"], straight.queue)
    assert level == "warning" and "Forwards per step: 4 -> 2: assignments are balanced within each" in said


class Silent(Loss):
    """A loss of somebody else's, that does not say how its rows lie."""

    per_rank_buffers = ("memory",)

    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.zeros(4))


def test_a_loss_that_does_not_say_how_it_is_divided_is_refused(tmp_path, monkeypatch):
    saved = save(tmp_path, [Silent(), Silent()], (2, 1))
    with pytest.raises(UserError, match=r"by 2 processes, this run has 1, and Silent does not say how its memory is"):
        saved.take_up(monkeypatch, Silent(), (1, 1), 0)
    with pytest.raises(UserError, match=r"DISTRIBUTED.processes=2, or a new OUTPUT_DIR with MODEL.WEIGHTS.path="):
        saved.take_up(monkeypatch, Silent(), (1, 1), 0)


def test_another_global_batch_is_refused_only_where_rows_depend_on_it(tmp_path, monkeypatch):
    saved = save(tmp_path, losses_of((2, 1), swav, 2), (2, 1))
    with pytest.raises(UserError, match=r"with 8 images per step .*, this run has 1 with 16: only with the same"):
        saved.take_up(monkeypatch, swav(context_of(1, 1)), (1, 1), 0, global_batch=16)
    state, _ = saved.take_up(monkeypatch, Loss(), (1, 1), 0, global_batch=16)
    assert state["loss"] == {}
    broken = Saved(tmp_path, (2, 1), {"global_batch": None})
    with pytest.raises(UserError, match="with an unknown number of images per step"):
        broken.take_up(monkeypatch, swav(context_of(1, 1)), (1, 1), 0)


@pytest.mark.parametrize("other", [bank, lambda context: SwAVLoss(context, queue_length=G)])
def test_buffers_of_another_loss_are_refused(tmp_path, monkeypatch, other):
    saved = save(tmp_path, losses_of((2, 1), swav, 2), (2, 1))
    with pytest.raises(UserError, match="does not fit this run: the data, the loss or its options are others"):
        saved.take_up(monkeypatch, other(context_of(1, 1)), (1, 1), 0)


def test_random_states_begin_anew_the_same_way_each_time(tmp_path, monkeypatch):
    saved = save(tmp_path, losses_of((2, 1), swav, 2), (2, 1))

    def draws(rank):
        state, (said, level) = saved.take_up(monkeypatch, swav(context_of(4, 1)), (4, 1), rank)
        assert level == "info" and said.startswith("resumed from step 7, made by 2 processes; this run has 4 processes")
        assert "Divided anew: queue, queue_rows." in said and "begin anew" in said
        restore_rng_state(state["rng"])
        return torch.rand(3).tolist()

    first = [draws(rank) for rank in range(4)]
    assert [draws(rank) for rank in range(4)] == first
    assert len({tuple(numbers) for numbers in first}) == 4
