"""The contract of an objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from torch import Tensor, nn

from vissl_like.losses.per_rank import Layout
from vissl_like.records import Batch, ModelOutput, Progress


@dataclass(frozen=True)
class LossContext:
    """Facts of the run that a loss is built with.

    Attributes:
        num_views: V, views per image.
        embedding_dim: D of the head's embedding.
        num_prototypes: K of each of the head's logits.
        per_rank_batch: images per process in one forward (micro-batch).
        global_batch: images per optimizer step over all processes.
        world_size: W, number of processes.
        dataset_size: images in the training set.
        steps_per_epoch: optimizer steps in one pass over it.
        total_steps: length of the run.
        seed: of the run, the same on all processes.
    """

    num_views: int
    embedding_dim: int
    num_prototypes: tuple[int, ...]
    per_rank_batch: int
    global_batch: int
    world_size: int
    dataset_size: int
    steps_per_epoch: int = 1
    total_steps: int = 1
    seed: int = 0

    @property
    def rows_per_rank(self) -> int:
        """Images that each process sees in one epoch."""
        return self.steps_per_epoch * self.global_batch // self.world_size


class FeatureSource(Protocol):
    """What a loss may ask for between epochs."""

    def one_pass(self, views: Sequence[int]) -> Iterator[tuple[Batch, list[ModelOutput]]]:
        """This process's images of the epoch that begins, without gradient, in the order in which they will be trained.

        The network is in training mode (BatchNorm takes batch statistics) and sees each asked view by itself. Every
        process must go through the whole pass.

        Args:
            views: positions of the views wanted.

        Yields:
            A micro-batch, and for each view asked for an output of ``num_views`` 1.
        """
        ...


class Loss(nn.Module):
    """A method's objective: everything comes in by argument, state lives in buffers.

    Class-level facts, checked against the settings before the run starts:
        needs_views: least number of views.
        needs_logits: whether the head must give logits.
        needs_teacher: whether the run must have a teacher (``output.teacher``).
        takes_teacher: whether it makes use of a teacher where there is one; a teacher that nobody uses is refused.
        accumulation_note: empty if accumulating gradients over micro-batches equals one big batch, else why not.
        per_rank_buffers: names of buffers that differ between processes (queues, banks); saved once per process.
        per_rank_layout: for each of these, how its rows follow from the images that a process has (``per_rank``); with
            it a run can be resumed with another number of processes, without it that is refused.

    Attributes:
        teacher_views: positions of the views that the teacher is to see.

    ``forward`` must not change state that a skipped update should leave alone: keep what it learnt and write it in
    ``after_update``.
    """

    needs_views = 1
    needs_logits = False
    needs_teacher = False
    takes_teacher = False
    accumulation_note = ""
    per_rank_buffers: tuple[str, ...] = ()
    per_rank_layout: Mapping[str, Layout] = MappingProxyType({})
    teacher_views: tuple[int, ...] = (0, 1)

    def before_epoch(self, source: FeatureSource, progress: Progress) -> None:
        """Called by all processes before the first step of every epoch (not on a resume inside of one).

        What it leaves in buffers must be a function of them, the weights, ``context.seed`` and ``progress``.
        """

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Parts of the objective by name; ``loss`` is what is minimised, the mean over this process's images."""
        raise NotImplementedError

    def trivial_value(self) -> float | None:
        """Value of ``loss`` when the network has collapsed to constant, uniform outputs; None if there is none."""
        return None

    def after_update(self, progress: Progress) -> None:
        """Called once per optimizer step after the update, not if the update was skipped."""

    def forget_pending(self) -> None:
        """Called instead of ``after_update`` when an update was skipped: drop what ``forward`` kept for it."""

    def advice(self) -> list[str]:
        """Remarks on the settings worth saying before the run (ratios that are known to go wrong)."""
        return []
