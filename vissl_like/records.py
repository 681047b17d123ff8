"""The records that travel through a run: ``Batch`` -> ``ModelOutput`` -> loss parts, with ``Progress`` beside them.

Any room may import them. Shapes use b (images of this process in one forward), V (views per image), C, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vissl_like.utils.duration import parse_duration

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read: where it is and why."""

    path: str
    reason: str


@dataclass
class Batch:
    """Views of b images.

    Attributes:
        views: V tensors ``[b, C, H_v, W_v]``, big crops first; uint8 from the loader, normalised float32 on the device.
        index: ``[b]`` int64 positions in the dataset.
        label: ``[b]`` int64 class numbers, or None where the dataset has none (training never needs them).
        skipped: images met while making this batch that could not be read and were replaced.
    """

    views: list[Tensor]
    index: Tensor
    label: Tensor | None = None
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.index.shape[0])


@dataclass
class HeadOutput:
    """What a head makes of features ``[n, F]``.

    Attributes:
        embedding: ``[n, D]`` projected features (l2-normalised where the method asks for it).
        logits: one ``[n, K_h]`` tensor per prototype or classifier head; empty when the head has none.
        prototypes: one ``[K_h, D]`` weight per entry of ``logits`` (read only: a loss must not write to it).
    """

    embedding: Tensor
    logits: tuple[Tensor, ...] = ()
    prototypes: tuple[Tensor, ...] = ()


@dataclass
class ModelOutput:
    """Outputs for V views of b images; row ``v * b + i`` belongs to view v of image i (view-major).

    Attributes:
        num_views: V.
        features: ``[V * b, F]`` trunk features before the head.
        head: the head's output on all rows.
        teacher: outputs of the teacher, where the run has one, without gradient; its view t is the view
            ``teacher_views[t]`` of the loss.
    """

    num_views: int
    features: Tensor
    head: HeadOutput
    teacher: ModelOutput | None = None

    def view(self, tensor: Tensor, index: int) -> Tensor:
        """Rows of one view: ``[V * b, ...] -> [b, ...]``."""
        rows = tensor.shape[0] // self.num_views
        return tensor[index * rows : (index + 1) * rows]


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Schedules and components are pure functions of it, so resuming needs no schedule state.

    Attributes:
        step: optimizer steps finished, 0 before the first update.
        total_steps: length of the run in steps.
        steps_per_epoch: steps in one pass over the data.
    """

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Passes over the data so far, fractional."""
        return self.step / self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Finished share of the run in [0, 1]."""
        return self.step / self.total_steps

    def steps_of(self, duration: str) -> int:
        """Length of a duration (``1 epochs``, ``500 steps``, ``5%``) in steps of this run."""
        return parse_duration(duration).steps(self.steps_per_epoch, self.total_steps)

    def reached(self, duration: str) -> bool:
        """Whether at least ``duration`` has passed; ``0 steps`` is reached from the start."""
        return self.step >= self.steps_of(duration)
