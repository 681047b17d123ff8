"""The loop that trains with labels: by hand, stopped and resumed, and in two processes as in one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_in_processes
from torch import Tensor, nn
from torch.nn import functional

from vissl_like.evaluation import supervised
from vissl_like.evaluation.supervised import Keeper, Training
from vissl_like.utils.errors import UserError

STEPS = 24


class Net(nn.Module):
    """A small network that draws (dropout)."""

    def __init__(self, dropout: float):
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(5, 8), nn.Linear(8, 3), nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """``[n, 5] -> [n, 3]``."""
        return self.last(self.dropout(self.first(rows).relu()))


def network(dropout: float = 0.3) -> Net:
    """Always the same start."""
    torch.manual_seed(3)
    return Net(dropout)


def batches(first: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Eight rows a step, of which process ``rank`` has its part."""
    for step in range(first, STEPS):
        generator = torch.Generator().manual_seed(step)
        rows, labels = torch.randn(8, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        yield rows[rank::world], labels[rank::world]


def objective(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Cross-entropy in two parts, whose sum counts."""
    loss = functional.cross_entropy(model(batch[0]), batch[1])
    return {"half": 0.5 * loss, "other_half": 0.5 * loss}


def training(model: Net, **changes: Any) -> Training:
    """SGD whose rate falls linearly."""
    optimizer = torch.optim.SGD(
        [{"params": model.first.parameters(), "lr": 0.1}, {"params": model.last.parameters(), "lr": 0.5}],
        lr=0.1,
        momentum=0.9,
    )
    rate = lambda step: 1 - step / STEPS  # noqa: E731
    options = {"draw": batches, "objective": objective, "steps": STEPS, "rate": rate, "seed": 1, "name": "test"}
    return Training(model, optimizer, **{**options, **changes})


def test_updates_are_those_of_the_formula() -> None:
    model = network(0.0)
    weight, velocity = model.last.weight.detach().clone().double(), torch.zeros(3, 8).double()
    reference = copy.deepcopy(model).double()
    states = torch.random.get_rng_state()
    facts = training(model, steps=2).run()
    assert torch.equal(states, torch.random.get_rng_state())
    buffers = [torch.zeros_like(value) for value in reference.parameters()]
    for step, (rows, labels) in zip(range(2), batches(0), strict=False):
        loss = functional.cross_entropy(reference(rows.double()), labels)
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        for number, (value, gradient) in enumerate(zip(reference.parameters(), gradients, strict=True)):
            buffers[number] = 0.9 * buffers[number] + gradient
            value.data -= (0.1 if number < 2 else 0.5) * (1 - step / STEPS) * buffers[number]
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)
    assert facts["steps"] == 2 and facts["resumed_from"] is None
    assert not torch.equal(weight, model.last.weight.double()) and velocity.sum() == 0


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    straight = network()
    training(straight).run()
    keeper = Keeper(tmp_path / "state" / "a.pt", every=0.0)

    def stopping(first: int) -> Iterator[Any]:
        for step, batch in enumerate(batches(first), first):
            if step == 14:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        training(network(), keeper=keeper, draw=stopping).run()
    resumed = network()
    facts = training(resumed, keeper=keeper).run()
    assert facts["resumed_from"] == 10
    for mine, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    keeper.drop()
    assert keeper.load() is None


def test_a_damaged_state_is_made_anew(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "a.pt")
    keeper.path.write_bytes(b"no state")
    model, straight = network(), network()
    assert training(model, keeper=keeper).run()["resumed_from"] is None
    training(straight).run()
    assert torch.equal(model.first.weight, straight.first.weight)


@pytest.mark.parametrize("change", [{"model": {}}, {"step": 99}, {"step": 0}, {"optimizer": {}}, {"step": "ten"}])
def test_a_state_that_does_not_fit_is_made_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    keeper = Keeper(tmp_path / "a.pt", every=0.0)
    training(network(), keeper=keeper).run()
    kept = keeper.load()
    assert kept is not None and kept["step"] == STEPS  # the last one too: scoring comes after it
    keeper.save({**kept, **change})
    model, straight = network(), network()
    assert training(model, keeper=keeper).run()["resumed_from"] is None
    training(straight).run()
    assert torch.equal(model.first.weight, straight.first.weight)
    assert training(network(), keeper=keeper).run()["resumed_from"] == STEPS


def test_divergence_is_told() -> None:
    model = network()
    model.first.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"diverged.*step 0 of 24"):
        training(model).run()


def test_batches_that_end_are_told() -> None:
    with pytest.raises(UserError, match="ended at step 24 of 30"):
        training(network(), steps=30).run()


def test_clipping_bounds_the_whole_gradient() -> None:
    model = network(0.0)
    before = [value.detach().clone() for value in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    task = training(model, steps=1, clip=0.01)
    task.optimizer = optimizer
    task.run()
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(0.01, rel=1e-3)


def _one_fails(rank: int, world: int) -> list[str]:
    def draw(first: int) -> Iterator[Any]:
        for step, batch in enumerate(batches(first, rank, world)):
            if step == 3 and rank == 1:
                raise UserError("the disk of process 1 is gone")
            yield batch

    with pytest.raises(UserError) as told:
        training(network(0.0), draw=draw).run()
    return [str(told.value)]


def test_what_one_process_meets_all_are_told() -> None:
    assert run_in_processes(_one_fails, 2) == [["the disk of process 1 is gone"]] * 2


def _in_a_process(rank: int, world: int) -> dict[str, Any]:
    model = network(0.0)
    unused = nn.Parameter(torch.ones(2))
    task = training(model, draw=lambda first: batches(first, rank, world))
    task.optimizer.add_param_group({"params": [unused], "lr": 0.1, "weight_decay": 0.5})
    facts = task.run()
    return {"model": model.state_dict(), "unused": unused.detach(), **facts}


def test_two_processes_train_as_one_on_the_joined_batch() -> None:
    alone = network(0.0)
    facts = training(alone).run()
    for found in run_in_processes(_in_a_process, 2):
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found["model"][name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(found["unused"], torch.ones(2))
        assert found["last_loss"] == pytest.approx(facts["last_loss"], rel=1e-4)


def test_gradients_lie_in_memory_as_their_parameters_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fused optimizers go through both without looking at the order of their dimensions."""
    monkeypatch.setattr(supervised.comm, "active", lambda: True)
    monkeypatch.setattr(supervised.comm, "all_reduce", lambda tensor: tensor)
    layer = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layer.weight.grad = torch.arange(48.0).view(4, 3, 2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, fused=True)
    expected = layer.weight.detach() - layer.weight.grad
    supervised.average_gradients(optimizer, torch.tensor(0.0))
    assert layer.weight.grad.stride() == layer.weight.stride() == (12, 1, 6, 3)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), expected)
