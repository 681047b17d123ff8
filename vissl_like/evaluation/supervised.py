"""Training with labels, for evaluations that train: one plain loop, restartable, in any number of processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.distributed import comm
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.features import untouched_randomness
from vissl_like.evaluation.keeper import Keeper
from vissl_like.evaluation.results import result_key
from vissl_like.utils.errors import UserError

Draw = Callable[[int], Iterator[Any]]
"""First step -> this process's batches from that step on; a batch may depend on the step and the process only."""
Objective = Callable[[nn.Module, Any], dict[str, Tensor]]
"""(model, batch) -> named scalars whose sum is minimised, each a mean over this process's batch."""
Rate = Callable[[int], float]
"""Step -> what the first learning rate of every group is multiplied by; a pure function."""

CHECKED_EVERY = 10
TOLD_EVERY = 30.0
"""Seconds between two lines about the progress."""


def keeper_of(bench: Bench, options: dict[str, Any], identity: str) -> Keeper | None:
    """Where a training of the bench's subject is kept, None where the bench has no folder.

    It is forgotten by whoever has put the result on disk.

    Args:
        bench: see ``Bench``.
        options: everything of the evaluation that changes the training.
        identity: of its images and labels.
    """
    if bench.folder is None:
        return None
    options = {**options, "torch": torch.__version__}
    keeper = Keeper(bench.folder / "training" / f"{bench.subject.slug}_{result_key(options, identity, bench)[:16]}.pt")
    bench.kept.append(keeper)
    return keeper


@dataclass
class Training:
    """How a network is trained with labels.

    Attributes:
        model: on its device; parameters that are to stay must not require gradients, modules in eval mode stay in it.
        optimizer: of its parameters, each group with its first learning rate.
        draw: see ``Draw``.
        objective: see ``Objective``.
        steps: optimizer steps.
        rate: see ``Rate``.
        seed: of what modules draw at a step (dropout, ...), with the step and the process.
        name: told with the progress.
        clip: largest l2 norm of the whole gradient; None for any.
        autocast: number format of the forward pass, None for float32.
        keeper: where the state is kept; None keeps none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    draw: Draw
    objective: Objective
    steps: int
    rate: Rate
    seed: int
    name: str
    clip: float | None = None
    autocast: torch.dtype | None = None
    keeper: Keeper | None = None

    def run(self) -> dict[str, Any]:
        """Trains to the end, from the state that was kept if there is one. Every process of the run calls it.

        Random states of the process come back as they were. A step is a pure function of the state, the seed and the
        batch, so a training that was stopped ends as one that was not.

        Returns:
            facts for the record: ``steps``, ``resumed_from`` (None if not), ``first_loss`` and ``last_loss`` (means of
            up to ten steps, since it went on).

        Raises:
            UserError: the loss is not finite, or the batches end too early.
        """
        first = self._resume()
        device = next(self.model.parameters()).device
        starts = [float(group.setdefault("initial_lr", group["lr"])) for group in self.optimizer.param_groups]
        batches = self.draw(first)
        early: list[Tensor] = []
        newest: deque[Tensor] = deque(maxlen=CHECKED_EVERY)
        begun = kept = told = time.monotonic()
        with untouched_randomness(device):
            for step in range(first, self.steps):
                for group, start in zip(self.optimizer.param_groups, starts, strict=True):
                    group["lr"] = start * self.rate(step)
                torch.manual_seed(((self.seed * 1_000_003 + step) * 8191 + comm.rank()) % 2**63)
                newest.append(self._step(batches, step, device))
                if len(early) < CHECKED_EVERY:
                    early.append(newest[-1])
                done = step + 1
                if done % CHECKED_EVERY == 0 or done == self.steps:
                    self._check(newest, done)
                    now = time.monotonic()
                    if comm.is_main() and now - told > TOLD_EVERY:
                        told = now
                        left, loss = (self.steps - done) * (now - begun) / (done - first), float(newest[-1])
                        print(
                            f"  {self.name}: step {done}/{self.steps}, loss {loss:.3f}, {left:.0f} s left", flush=True
                        )
                    # The last state too: scoring comes next, and the result is on disk only after it.
                    if done == self.steps or now - kept > (0.0 if self.keeper is None else self.keeper.every):
                        kept = now
                        self._keep(done)
        return {
            "steps": self.steps,
            "resumed_from": first or None,
            "first_loss": _mean(early),
            "last_loss": _mean(list(newest)),
        }

    def _step(self, batches: Iterator[Any], step: int, device: torch.device) -> Tensor:
        """One update; the loss over all processes, on the device."""
        batch, problem = None, None
        try:
            batch = next(batches, None)
            if batch is None:
                problem = f"{self.name}: the training images ended at step {step} of {self.steps}"
        except UserError as error:
            problem = str(error)
        comm.raise_together(problem, device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            parts = self.objective(self.model, batch)
        loss = torch.stack([value.float() for value in parts.values()]).sum()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        loss = average_gradients(self.optimizer, loss.detach())
        if self.clip is not None:
            parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()
        return loss

    def _check(self, newest: deque[Tensor], done: int) -> None:
        for step, loss in enumerate(newest, done - len(newest)):
            if not bool(loss.isfinite()):
                raise UserError(
                    f"{self.name}: training diverged, the loss is {float(loss)} at step {step} of {self.steps}; give "
                    "smaller learning rates"
                )

    def _resume(self) -> int:
        """Takes the kept state; the step to begin with. The main process's file counts."""
        state = self.keeper.load() if self.keeper is not None and comm.is_main() else None
        if state is not None and not self._fits(state):
            print(f"  {self.name}: what was kept does not fit, it begins anew", flush=True)
            state = None
        if not comm.broadcast_object(state is not None):
            return 0
        state = comm.broadcast_object(state)
        assert state is not None
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
        if comm.is_main():
            print(f"  {self.name}: goes on at step {step}/{self.steps}", flush=True)
        return step

    def _fits(self, state: dict[str, Any]) -> bool:
        """Whether a kept state is one of this model and length."""
        try:
            own, kept = self.model.state_dict(), state["model"]
            alike = own.keys() == kept.keys() and all(own[name].shape == kept[name].shape for name in own)
            groups = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
            same = groups == [len(group["params"]) for group in self.optimizer.param_groups]
            return alike and same and 0 < int(state["step"]) <= self.steps
        except (LookupError, TypeError, AttributeError, ValueError):
            return False

    def _keep(self, step: int) -> None:
        if self.keeper is None or not comm.is_main():
            return
        try:
            self.keeper.save({"step": step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})
        except OSError as error:
            print(f"  {self.name}: its state is not kept in {self.keeper.path}: {error}", flush=True)


@torch.no_grad()
def average_gradients(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Replaces every gradient by its mean over the processes, in one collective.

    A parameter that no process used keeps None, so that optimizers leave it alone.

    Args:
        optimizer: of the parameters.
        loss: scalar of this process.

    Returns:
        its mean over the processes.
    """
    if not comm.active():
        return loss
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    used = loss.new_tensor([float(value.grad is not None) for value in parameters])
    flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    joined = comm.all_reduce(torch.cat([*(part.float() for part in flat), used, loss.float().reshape(1)]))
    joined /= comm.world_size()
    *gradients, flags, mean = joined.split([*(part.numel() for part in flat), len(parameters), 1])
    for parameter, gradient, flag in zip(parameters, gradients, flags.tolist(), strict=True):
        # In the parameter's own order of memory (channels last, perhaps), which torch's fused optimizers rely on.
        parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter)) if flag else None
    return mean[0]


def _mean(losses: list[Tensor]) -> float | None:
    return float(torch.stack(losses).double().mean()) if losses else None
