"""Resuming with another number of processes: what belonged to processes is put together and divided anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vissl_like.config import Plan
from vissl_like.config.resolve import split_batch
from vissl_like.distributed import comm
from vissl_like.losses.base import Loss
from vissl_like.losses.per_rank import Division
from vissl_like.trainer.checkpoint import Checkpoint
from vissl_like.trainer.rng import new_rng_state
from vissl_like.utils.errors import SettingsError, UserError


@dataclass
class Resharding:
    """Divides the per-process part of a checkpoint among the processes of this run.

    With the same global batch the images of every step are the same however many processes share them, and a loss says
    by ``per_rank_layout`` where the rows of these images lie. So queues and banks come out as if this run had had its
    processes from the start. Random states cannot: they begin anew, from seed, step and rank.

    Args:
        loss: of this run, on its device.
        plan: of this run.
        seed: of this run.
    """

    loss: Loss
    plan: Plan
    seed: int

    def __call__(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """This process's ``loss`` buffers and random state ``rng``; nothing of another process is kept in memory.

        Raises:
            UserError: the loss does not say how a buffer is divided, or it is of another run (batch, length).
        """
        rng = new_rng_state(self.seed, checkpoint.step, comm.rank())
        if not self.loss.per_rank_buffers:
            return {"loss": {}, "rng": rng}
        self._refuse_undeclared(checkpoint)
        before, now = self._divisions(checkpoint)
        files = [checkpoint.folder / f"rank_{rank:05d}.pt" for rank in range(before.world_size)]
        states = [_buffers_of(file) for file in files]
        own, found = self.loss.state_dict(), {}
        for name in self.loss.per_rank_buffers:
            parts = [state[name] for state in states if name in state]
            if len(parts) == len(states) and all(part.shape == parts[0].shape for part in parts):
                layout = self.loss.per_rank_layout[name]
                found[name] = layout.split(layout.join(parts, before), now, comm.rank())
            if name not in found or found[name].shape != own[name].shape:
                raise UserError(
                    f"the buffer {name} of {type(self.loss).__name__} in {checkpoint.folder} does not fit this run: "
                    "the data, the loss or its options are others. Give those that the run was begun with, or begin a "
                    "new run in another OUTPUT_DIR."
                )
        return {"loss": found, "rng": rng}

    def describe(self, checkpoint: Checkpoint) -> tuple[str, str]:
        """What to tell the user, and its level: how many processes there were, and what is not as before."""
        saved = int(checkpoint.manifest["world_size"])
        text = (
            f"resumed from step {checkpoint.step}, made by {_processes(saved)}; this run has "
            f"{_processes(self.plan.world_size)}. "
        )
        if self.loss.per_rank_buffers:
            text += f"Divided anew: {', '.join(self.loss.per_rank_buffers)}. "
        text += "Random states (of drop path and the like, not of images and views) begin anew"
        before = _saved_division(checkpoint)
        if before is None or before.accumulation == self.plan.accumulation:
            return text, "info"
        note = self.loss.accumulation_note or "the network sees micro-batches of another size"
        return f"{text}. Forwards per step: {before.accumulation} -> {self.plan.accumulation}: {note}", "warning"

    def _refuse_undeclared(self, checkpoint: Checkpoint) -> None:
        silent = [name for name in self.loss.per_rank_buffers if name not in self.loss.per_rank_layout]
        if silent:
            saved = int(checkpoint.manifest["world_size"])
            raise UserError(
                f"{checkpoint.folder} was written by {_processes(saved)}, this run has "
                f"{self.plan.world_size}, and {type(self.loss).__name__} does not say how its {', '.join(silent)} is "
                f"divided among processes (per_rank_layout). Start with DISTRIBUTED.processes={saved}, or a new "
                f"OUTPUT_DIR with MODEL.WEIGHTS.path={checkpoint.backbone}."
            )

    def _divisions(self, checkpoint: Checkpoint) -> tuple[Division, Division]:
        """How a step was divided, and how it is now."""
        now = Division(self.plan.global_batch, self.plan.world_size, self.plan.accumulation)
        before, saved = _saved_division(checkpoint), int(checkpoint.manifest["world_size"])
        if before is None or before.global_batch != now.global_batch:
            was = "an unknown number of" if before is None else before.global_batch
            raise UserError(
                f"{checkpoint.folder} was written by {_processes(saved)} with {was} images per step (TRAIN."
                f"global_batch), this run has {now.world_size} with {now.global_batch}: only with the same images in "
                f"every step can {', '.join(self.loss.per_rank_buffers)} be divided anew. Give that global batch, or "
                f"start with DISTRIBUTED.processes={saved}, or a new OUTPUT_DIR with MODEL.WEIGHTS.path="
                f"{checkpoint.backbone}."
            )
        return before, now


def _saved_division(checkpoint: Checkpoint) -> Division | None:
    """How the run that wrote a checkpoint divided a step; None where its manifest does not tell."""
    saved = int(checkpoint.manifest["world_size"])
    try:
        train = checkpoint.manifest["settings"]["TRAIN"]
        batch = int(train["global_batch"])
        _, accumulation = split_batch(batch, saved, train["accumulation"], train["max_per_rank_batch"])
    except (KeyError, TypeError, ValueError, SettingsError):
        return None
    return Division(batch, saved, accumulation)


def _buffers_of(file: Path) -> dict[str, Tensor]:
    """A process's buffers, which stay on disk until they are looked at."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)["loss"]


def _processes(count: int) -> str:
    return f"{count} process{'es' * (count > 1)}"
