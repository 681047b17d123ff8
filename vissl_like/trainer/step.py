"""One optimizer step: forward and loss per micro-batch, guard, clip, update."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.data.normalise import Normalise
from vissl_like.distributed import comm
from vissl_like.losses.base import Loss
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.trainer.clipping import Clipping, total_norm
from vissl_like.trainer.precision import Precision


@dataclass
class StepReport:
    """What happened in one optimizer step; numbers are means over all processes.

    Attributes:
        loss: value of the objective.
        parts: every named part of it, ``loss`` included.
        lr: learning rate of the update.
        grad_norm: l2 norm of the gradient before clipping.
        images: images over all processes.
        data_wait: seconds spent waiting for the loader.
        step_time: seconds of the whole step, waiting included.
        skipped_update: whether the weights were left alone.
        non_finite: names of what was not finite.
        first_bad: the first micro-batch whose loss was not finite; the last one where only a gradient was not.
        output: the last micro-batch's output, detached.
    """

    loss: float
    parts: dict[str, float]
    lr: float
    grad_norm: float
    images: int
    data_wait: float = 0.0
    step_time: float = 0.0
    skipped_update: bool = False
    non_finite: list[str] = field(default_factory=list)
    first_bad: int = -1
    output: ModelOutput | None = None


class TrainStep:
    """Turns micro-batches into one update.

    Order: schedules, heads' before-forward, then per micro-batch the teacher's forward, the student's, loss and
    backward; then unscale, guard (loss and gradient finite on every process?), clip, head's before-update, optimizer,
    loss's after-update, teacher.

    Args:
        model: trunk and head.
        wrapped: ``model``, or its data-parallel or sharding wrapper.
        loss: the objective.
        optimizer: this class sets its ``lr`` and, if scheduled, the ``weight_decay`` of groups marked ``decayed``.
        schedules: ``lr`` and, if wanted, ``weight_decay`` -> function of progress.
        precision: number format of the forward pass.
        normalise: uint8 views -> float32 on the device.
        clip: how gradients are limited, or None.
        teacher: gives targets for the views that the loss names, or None.
    """

    def __init__(
        self,
        model: SSLModel,
        wrapped: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        schedules: dict[str, Any],
        precision: Precision,
        normalise: Normalise,
        clip: Clipping | None = None,
        teacher: Teacher | None = None,
    ):
        self.model, self.wrapped, self.loss, self.optimizer = model, wrapped, loss, optimizer
        self.schedules, self.precision, self.normalise, self.clip = schedules, precision, normalise, clip
        self.teacher = teacher
        # Divided over processes, the optimizer has this process's rows under the same names.
        own = getattr(wrapped, "own_parameters", None)
        self._named = list(model.named_parameters()) if own is None else own()
        self._finish_backward = getattr(wrapped, "finish_backward", None)
        # BatchNorm's running statistics change in the forward; a skipped step must not leave an infinity in them.
        self._buffers = [*model.buffers(), *(teacher.buffers() if teacher is not None else ())]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def __call__(self, micro_batches: list[Batch], progress: Progress) -> StepReport:
        """One update from equally large micro-batches; leaves the weights alone if anything is not finite."""
        _copy(self._kept, self._buffers)
        lr = self._schedule(progress)
        self.model.head.before_forward(progress)
        if self.teacher is not None:
            self.teacher.before_forward(self.model, progress)
        sums: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        output: ModelOutput | None = None
        for number, batch in enumerate(micro_batches):
            with self._sync(last=number == len(micro_batches) - 1):
                output, parts = self._forward(batch, progress)
                self.precision.scaler.scale(parts["loss"] / len(micro_batches)).backward()
            losses.append(parts["loss"].detach())
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / len(micro_batches)
        if self._finish_backward is not None:
            self._finish_backward()
        self.precision.scaler.unscale_(self.optimizer)
        report = self._update(sums, progress, lr)
        report.images = sum(len(batch) for batch in micro_batches) * comm.world_size()
        report.output = _detached(output)
        if report.skipped_update:
            report.first_bad = next((n for n, loss in enumerate(losses) if not torch.isfinite(loss)), -1)
        return report

    def _schedule(self, progress: Progress) -> float:
        lr = self.schedules["lr"](progress)
        decay = self.schedules["weight_decay"](progress) if "weight_decay" in self.schedules else None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if decay is not None and group.get("decayed"):
                group["weight_decay"] = decay
        return lr

    def _sync(self, last: bool) -> AbstractContextManager[object]:
        """Gradients are averaged over processes once, in the last micro-batch's backward."""
        no_sync = getattr(self.wrapped, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()

    def _forward(self, batch: Batch, progress: Progress) -> tuple[ModelOutput, dict[str, Tensor]]:
        views = [self.normalise(view) for view in batch.views]
        with self.precision.autocast():
            taught = None if self.teacher is None else self.teacher([views[v] for v in self.loss.teacher_views])
            output = self.wrapped(views)
        output.teacher = taught
        return output, self.loss(output, batch, progress)

    def _update(self, sums: dict[str, Tensor], progress: Progress, lr: float) -> StepReport:
        parameters = [parameter for _, parameter in self._named]
        norm = total_norm(parameters)
        values = torch.stack([*sums.values(), norm])
        finite = bool(comm.all_reduce(torch.isfinite(values).float(), "min").min())
        values = comm.all_reduce(values) / comm.world_size()
        if finite:
            if self.clip is not None:
                self.clip(parameters, norm)
            self.model.head.before_update(progress)
            self.precision.scaler.step(self.optimizer)
            self.loss.after_update(progress)
            if self.teacher is not None:
                self.teacher.after_update(self.model, progress)
        else:
            self.loss.forget_pending()
            _copy(self._buffers, self._kept)
        non_finite = [] if finite else self._non_finite_names(sums)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        parts = dict(zip(sums, values[:-1].tolist(), strict=True))
        return StepReport(
            loss=parts["loss"],
            parts=parts,
            lr=lr,
            grad_norm=float(values[-1]),
            images=0,
            skipped_update=not finite,
            non_finite=non_finite,
        )

    def _non_finite_names(self, sums: dict[str, Tensor]) -> list[str]:
        """Loss parts, weights, then gradients (first ten of each) that are not finite on this process."""
        parts = [f"loss part {name}" for name, value in sums.items() if not torch.isfinite(value)]
        weights = [f"weight {n}" for n, p in self._named if not torch.isfinite(p).all()]
        gradients = [
            f"gradient of {n}" for n, p in self._named if p.grad is not None and not torch.isfinite(p.grad).all()
        ]
        return parts + weights[:10] + gradients[:10]


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """One launch for all tensors of a kind."""
    if targets:
        torch._foreach_copy_(targets, sources)


def _detached(output: ModelOutput | None) -> ModelOutput | None:
    if output is None:
        return None
    head = type(output.head)(
        embedding=output.head.embedding.detach(),
        logits=tuple(tensor.detach() for tensor in output.head.logits),
        prototypes=tuple(tensor.detach() for tensor in output.head.prototypes),
    )
    return ModelOutput(output.num_views, output.features.detach(), head, output.teacher)
