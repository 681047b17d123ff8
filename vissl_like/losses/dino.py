"""DINO: self-distillation without labels (Caron et al. 2021, arXiv:2104.14294), and its ablations."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vissl_like.clustering.sinkhorn import sinkhorn
from vissl_like.distributed import comm
from vissl_like.losses.base import Loss, LossContext
from vissl_like.losses.functional.swapped import swapped_cross_entropy
from vissl_like.losses.functional.targets import mean_entropy, sharpen
from vissl_like.losses.functional.views import check_views
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.registry import LOSSES
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Duration, Fraction, Index, NonNegative, Positive

CENTER_MOMENTUM, START_TEMPERATURE = 0.9, 0.04
"""Defaults of ``center_momentum`` and of ``teacher_temperature_start``."""


@LOSSES.register("dino")
class DINOLoss(Loss):
    """Self-distillation: the student predicts, from every view, what the teacher makes of another, big view.

    ``mean over pairs (t, v != t) of -sum softmax((teacher_t - c) / T_t) log softmax(student_v / T_s)``, with c the
    running mean of the teacher's scores (equation 4). Centring keeps one output from dominating, sharpening (a low
    teacher temperature T_t) keeps outputs from being uniform. The other ``targets`` are the ablations of the paper's
    table 10: Sinkhorn balances over the batch of all processes; batch_softmax is one iteration of it.

    Options:
        student_temperature: T_s (0.1 in the paper)
        teacher_temperature: T_t after its warm-up; lower it when the loss stays at ln K; 0 takes the highest score
        teacher_temperature_start: T_t at the start of the warm-up; null: 0.04
        teacher_temperature_warmup: length of the straight rise from the one to the other
        temperature_changes: T_t changes with each "epoch" (official code) or each "step"
        targets: "centering", "sinkhorn", "batch_softmax" (both at temperature T_t), or "none" (sharpening only)
        center_momentum: share of the old centre that is kept (0.9; 0.999 collapses)
        sinkhorn_iterations: of the target "sinkhorn"
        teacher_views: views that the teacher sees (the two big crops)
    """

    needs_views = 2
    needs_logits = True
    needs_teacher = True
    accumulation_note = "BatchNorm, and targets balanced over a batch, see micro-batches; otherwise it is the same"

    def __init__(
        self,
        context: LossContext,
        *,
        student_temperature: Positive = 0.1,
        teacher_temperature: NonNegative = 0.04,
        teacher_temperature_start: NonNegative | None = None,
        teacher_temperature_warmup: Duration = "0 epochs",
        temperature_changes: Literal["epoch", "step"] = "epoch",
        targets: Literal["centering", "sinkhorn", "batch_softmax", "none"] = "centering",
        center_momentum: Fraction = 0.9,
        sinkhorn_iterations: Count = 3,
        teacher_views: list[Index] | None = None,
    ):
        super().__init__()
        start = START_TEMPERATURE if teacher_temperature_start is None else teacher_temperature_start
        if targets in ("sinkhorn", "batch_softmax") and 0 in (teacher_temperature, start):
            raise UserError(f"LOSS.targets = {targets} divides by the teacher's temperature, which is 0: use e.g. 0.04")
        self.context = context
        self.student_temperature = student_temperature
        self.teacher_temperature, self.start_temperature = teacher_temperature, start
        self._start_given = teacher_temperature_start not in (None, teacher_temperature)
        self.warmup, self.temperature_changes = teacher_temperature_warmup, temperature_changes
        self.targets, self.center_momentum = targets, center_momentum
        self.iterations = 1 if targets == "batch_softmax" else sinkhorn_iterations
        self.teacher_views = check_views("teacher_views", teacher_views, context.num_views)
        self.center: Tensor
        for head, count in enumerate(context.num_prototypes):
            self.register_buffer(_center_name(head), torch.zeros(1, count))
        self._pending: list[list[Tensor]] = []

    def trivial_value(self) -> float:
        """ln K, averaged over heads: what uniform outputs cost."""
        counts = self.context.num_prototypes
        return sum(math.log(count) for count in counts) / len(counts)

    def temperature(self, progress: Progress) -> float:
        """T_t for the step at ``progress.step``: ``linspace(start, end, n)`` over the warm-up's n epochs (or steps)."""
        length, here = progress.steps_of(self.warmup), progress.step
        if self.temperature_changes == "epoch":
            length, here = self._epochs(progress), here // progress.steps_per_epoch
        if here >= length:
            return self.teacher_temperature
        share = here / (length - 1) if length > 1 else 0.0
        return self.start_temperature + share * (self.teacher_temperature - self.start_temperature)

    def _epochs(self, progress: Progress) -> int:
        """Epochs of the temperature's warm-up, rounded."""
        return round(progress.steps_of(self.warmup) / progress.steps_per_epoch)

    def advice(self) -> list[str]:
        """Temperatures and balancing that are known to go wrong."""
        remarks, batch = [], self.context.per_rank_batch * self.context.world_size
        if self.targets in ("centering", "none") and self.teacher_temperature >= self.student_temperature:
            remarks.append(
                f"the teacher's temperature ({self.teacher_temperature:g}) is not below the student's "
                f"({self.student_temperature:g}): nothing sharpens the targets, and outputs become uniform. Use 0.04."
            )
        if self.targets == "sinkhorn" and batch < min(self.context.num_prototypes):
            remarks.append(
                f"{min(self.context.num_prototypes)} outputs are balanced over only {batch} samples: use fewer "
                "(MODEL.HEAD.num_prototypes) or a larger batch."
            )
        progress = Progress(0, self.context.total_steps, self.context.steps_per_epoch)
        if progress.steps_of(self.warmup) and self.temperature_changes == "epoch" and not self._epochs(progress):
            remarks.append(
                f"the warm-up of the teacher's temperature, {self.warmup}, is less than half an epoch and never felt: "
                "lengthen LOSS.teacher_temperature_warmup, or set LOSS.temperature_changes to step."
            )
        if self._start_given and not progress.steps_of(self.warmup):
            remarks.append(
                f"LOSS.teacher_temperature_start ({self.start_temperature:g}) has no effect without a warm-up: set "
                "LOSS.teacher_temperature_warmup"
            )
        if self.targets != "centering" and self.center_momentum != CENTER_MOMENTUM:
            remarks.append(f"LOSS.center_momentum has no effect with the targets {self.targets!r}")
        if self.targets == "none":
            remarks.append("targets are neither centred nor balanced: one output will take all images (an ablation)")
        return remarks

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The objective; ``target_entropy`` H(q) and ``divergence`` KL(q || p), which tell the two ways of collapse."""
        assert output.teacher is not None
        temperature = self.temperature(progress)
        losses, entropies, scores = [], [], [logits.detach().float() for logits in output.teacher.head.logits]
        for head, (student, teacher) in enumerate(zip(output.head.logits, scores, strict=True)):
            targets = [self._targets(output.teacher.view(teacher, slot), head, temperature) for slot in self._slots]
            losses.append(
                swapped_cross_entropy(student, targets, self.teacher_views, output.num_views, self.student_temperature)
            )
            entropies += [mean_entropy(q) for q in targets]
        if self.targets == "centering":
            self._pending.append([teacher.mean(0, keepdim=True) for teacher in scores])
        loss, entropy = torch.stack(losses).mean(), torch.stack(entropies).mean()
        return {"loss": loss, "target_entropy": entropy, "divergence": loss.detach() - entropy}

    @property
    def _slots(self) -> range:
        return range(len(self.teacher_views))

    def _targets(self, scores: Tensor, head: int, temperature: float) -> Tensor:
        """``[b, K]`` target probabilities of one teacher view."""
        if self.targets == "centering":
            return sharpen(scores - self.get_buffer(_center_name(head)), temperature)
        if self.targets == "none":
            return sharpen(scores, temperature)
        return sinkhorn(scores, temperature, self.iterations)

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        """Moves the centre: ``c <- m c + (1 - m) mean`` of the teacher's scores over all its views and processes.

        The mean of a step is that of its micro-batches, so accumulating equals one big batch.
        """
        for head, means in enumerate(zip(*self._pending, strict=True)):
            mean = comm.all_reduce(torch.stack(means).mean(0)) / self.context.world_size
            self.get_buffer(_center_name(head)).lerp_(mean, 1 - self.center_momentum)
        self._pending.clear()

    def forget_pending(self) -> None:
        """Scores of a skipped update do not move the centre."""
        self._pending.clear()


def _center_name(head: int) -> str:
    """Buffer of a head's centre; the first has the official name."""
    return f"center{head}" if head else "center"
