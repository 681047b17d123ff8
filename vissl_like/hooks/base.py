"""What a hook is, what it is told, and what it may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vissl_like.compat.classy import ClassyHook
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.utils.event_file import RESERVED_KEYS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vissl_like.config import Plan
    from vissl_like.data.datasets.base import ImageDataset
    from vissl_like.losses.base import Loss
    from vissl_like.models.ssl_model import SSLModel


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        kind: what; a word such as ``message``, ``step``, ``knn``, ``checkpoint``.
        step: optimizer steps finished when it happened.
        epoch: passes over the data by then, fractional.
        time: seconds since 1970.
        fields: the facts, JSON-like. Floats are measurements (they become curves and metrics); settings and counts are
            ints or text. A field ``text`` is a sentence for the user and gets printed, with ``level`` info, warning or
            error.

    Raises:
        ValueError: a field has the name of one of the other attributes.
    """

    kind: str
    step: int
    epoch: float
    time: float
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = RESERVED_KEYS & self.fields.keys()
        if taken:
            raise ValueError(f"event {self.kind!r} has fields with reserved names: {sorted(taken)}")

    def record(self) -> dict[str, Any]:
        """One flat mapping: ``kind``, ``step``, ``epoch``, ``time``, then the fields."""
        head = {"kind": self.kind, "step": self.step, "epoch": round(self.epoch, 6), "time": round(self.time, 3)}
        return {**head, **self.fields}


class StepFacts(Protocol):
    """What is known of the newest optimizer step; numbers are means over all processes."""

    loss: float
    parts: dict[str, float]
    lr: float
    grad_norm: float
    images: int
    data_wait: float
    step_time: float
    skipped_update: bool
    output: ModelOutput | None


class RunView(Protocol):
    """What a hook may use of the run; it reads the attributes and calls the methods, and changes nothing.

    Attributes:
        progress: where the run stands; in ``on_step`` the finished step is counted already.
        last_batch: the newest micro-batch of this process.
        stop_reason: why the run ends before its length, None while it goes on.
        dataset: the training images.
        plugins: what worker processes must load.
    """

    settings: Any
    plan: Plan
    progress: Progress
    last_batch: Batch | None
    stop_reason: str | None
    model: SSLModel
    loss: Loss
    optimizer: torch.optim.Optimizer
    dataset: ImageDataset
    device: torch.device
    output_dir: Path
    plugins: list[str]
    build_dataset: Callable[[Any], ImageDataset]

    @property
    def last(self) -> StepFacts | None:
        """The newest step, None before the first of this process."""

    @property
    def trunk(self) -> nn.Module:
        """The trunk that is worth measuring: the teacher's where there is one."""

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""

    def banner(self) -> list[tuple[str, str]]:
        """Rows ``(label, text)`` worth knowing before the first step."""

    def emit(self, kind: str, **fields: Any) -> None:
        """Sends an ``Event`` to every hook of this process."""

    def say(self, text: str, level: str = "info") -> None:
        """Tells the user something; ``level`` is info, warning or error."""

    def request_stop(self, reason: str) -> None:
        """Ends the run after this step, with a checkpoint."""

    def save_checkpoint(self, reason: str) -> Path | None:
        """Writes a checkpoint; all processes must call it together."""


class Hook(ClassyHook):
    """Watches a run. A hook looks; it does not reach in.

    Order of calls::

        load_state_dict            only when the run is resumed
        on_start                   once, nothing has been trained by this process yet
          on_phase_start           an epoch begins, or goes on after a resume
            on_step                after every optimizer step, a skipped update included
          on_phase_end             the epoch is over, or the run stops inside it
        on_end                     the length is reached or a stop was asked for; the newest step has a checkpoint

        on_event                   whenever anyone emits, inside any of the above and between them
        on_error                   the run dies of an exception; on_end does not follow

    Rules of conduct:

    - What changes the training (clipping, a teacher's update, freezing) is not a hook. A run must compute the same
      numbers with and without any hook: leave weights, buffers, train/eval mode and random states as they were.
    - Hooks are called on every process of the run. Print and write files where ``run.is_main`` only. Whatever makes
      the processes talk to each other (``run.save_checkpoint``, collectives) must be reached by all at the same step.
    - Hooks do not know each other. They tell things by ``run.emit``, and the user by ``run.say``.
    - A full disk or another nuisance is said once; it does not end a training of days.
    - What must survive a restart is returned by ``state_dict``: numbers, text, tensors, and lists and dicts of them.

    Options of a hook are the keyword-only parameters of its constructor.

    Class-level facts:
        runs_last: called after all hooks that do not say so, for hooks that record what the others have done.
    """

    runs_last = False

    def on_start(self, run: RunView) -> None:
        """The run is built, weights are loaded, a resume has happened."""

    def on_phase_start(self, run: RunView) -> None:
        """An epoch begins, or goes on after a resume."""

    def on_step(self, run: RunView) -> None:
        """An optimizer step is finished: ``run.last`` is its report, ``run.progress.step`` its number (from 1)."""

    def on_phase_end(self, run: RunView) -> None:
        """The epoch is over, or the run stops inside it."""

    def on_end(self, run: RunView) -> None:
        """The run ends in good order."""

    def on_event(self, run: RunView, event: Event) -> None:
        """Someone emitted ``event``."""

    def on_error(self, run: RunView, error: BaseException) -> None:
        """The run dies of ``error``; release what is held, do not raise."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart; read whenever a checkpoint is written."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; empty if the checkpoint was written without this hook."""

    def get_classy_state(self) -> dict[str, Any]:
        """classy-vision's name for ``state_dict``."""
        return self.state_dict()

    def set_classy_state(self, state_dict: dict[str, Any]) -> None:
        """classy-vision's name for ``load_state_dict``."""
        self.load_state_dict(state_dict)
