"""SwAV: swapping assignments between views (Caron et al. 2020, arXiv:2006.09882)."""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from torch import Tensor

from vissl_like.clustering.sinkhorn import sinkhorn
from vissl_like.losses.base import Loss, LossContext
from vissl_like.losses.functional.swapped import swapped_cross_entropy
from vissl_like.losses.functional.views import check_views
from vissl_like.losses.per_rank import RowCount, StepRows
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.registry import LOSSES
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Duration, Index, Positive


@LOSSES.register("swav")
class SwAVLoss(Loss):
    """Online clustering: predict one view's balanced cluster assignment from another view.

    Assignments of the ``assign_views`` come from Sinkhorn over the batch of all processes, lengthened by a queue of
    earlier embeddings; every other view predicts them. Collapse is prevented by the equal prototype masses that
    Sinkhorn imposes. With a teacher, assignments (and the queue) come from its embeddings and its prototypes, and the
    student predicts them (SwAV with a momentum encoder).

    Options:
        temperature: softmax temperature of the prediction (0.1 in the paper)
        epsilon: Sinkhorn's entropy weight (0.05; try 0.03 when the loss stays at ln K)
        sinkhorn_iterations: 3 in the paper, 10 for SEER
        assign_views: views that give assignments (the two big crops)
        queue_length: embeddings kept over all processes for balancing, per assign view; 0 = none (big batches).
            Rounded down to a multiple of the global batch
        queue_start: when the queue begins to fill ("15 epochs" in the 256-image recipe); it is used once full
    """

    needs_views = 2
    needs_logits = True
    takes_teacher = True
    accumulation_note = (
        "assignments are balanced within each micro-batch (plus the queue), not within the whole batch, and BatchNorm "
        "sees micro-batches; a queue makes up for most of it"
    )
    per_rank_buffers = ("queue", "queue_rows")
    per_rank_layout = MappingProxyType({"queue": StepRows(dim=1, newest_first=True), "queue_rows": RowCount()})

    def __init__(
        self,
        context: LossContext,
        *,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        sinkhorn_iterations: Count = 3,
        assign_views: list[Index] | None = None,
        queue_length: Index = 0,
        queue_start: Duration = "15 epochs",
    ):
        super().__init__()
        self.context = context
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, sinkhorn_iterations
        self.assign_views = self.teacher_views = check_views("assign_views", assign_views, context.num_views)
        length = queue_length - queue_length % context.global_batch
        if queue_length and not length:
            raise UserError(
                f"LOSS.queue_length is {queue_length}, less than the global batch of {context.global_batch}: use 0 (no "
                "queue) or a multiple of the batch (15 times the batch in the official 256-image recipe)"
            )
        self.asked_length, self.queue_length, self.queue_start = queue_length, length, queue_start
        rows = length // context.world_size
        self.queue: Tensor
        self.queue_rows: Tensor
        self.register_buffer("queue", torch.zeros(len(self.assign_views), rows, context.embedding_dim))
        self.register_buffer("queue_rows", torch.zeros((), dtype=torch.int64))
        self._pending: list[list[Tensor]] = []

    def trivial_value(self) -> float:
        """ln K, averaged over prototype heads."""
        counts = self.context.num_prototypes
        return sum(math.log(count) for count in counts) / len(counts)

    def advice(self) -> list[str]:
        """Too many prototypes for batch + queue, a queue longer than the data, a queue of random features."""
        remarks, context = [], self.context
        starts = Progress(0, context.total_steps, context.steps_per_epoch).steps_of(self.queue_start)
        used = self.queue_length > 0 and starts < context.total_steps
        if self.queue_length != self.asked_length:
            remarks.append(f"the queue of {self.asked_length} is rounded down to {self.queue_length}, whole batches")
        if self.queue_length and not used:
            remarks.append(
                f"the queue is never used: it starts after {self.queue_start} = {starts} steps, and the run has "
                f"{context.total_steps}. Shorten LOSS.queue_start."
            )
        balanced_over = context.per_rank_batch * context.world_size + used * self.queue_length
        for count in context.num_prototypes:
            if count > balanced_over:
                remarks.append(
                    f"{count} prototypes are balanced over only {balanced_over} samples (batch + queue): equal masses "
                    "mean less than one sample each. Use fewer prototypes or a queue (LOSS.queue_length)."
                )
        if self.queue_length > context.dataset_size // 2:
            remarks.append(
                f"the queue of {self.queue_length} holds more than half of the {context.dataset_size} images: old "
                "features of the same images dominate the assignments. Shorten LOSS.queue_length."
            )
        return remarks

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Swapped-prediction loss over prototype heads (mean), and the mean entropy of the assignments in nats."""
        giver = output if output.teacher is None else output.teacher
        rows = self.assign_views if output.teacher is None else range(len(self.assign_views))
        embeddings = [giver.view(giver.head.embedding.detach(), row).float() for row in rows]
        losses, entropies = [], []
        for head, logits in enumerate(output.head.logits):
            scores, prototypes = giver.head.logits[head].detach(), giver.head.prototypes[head].detach()
            targets = [self._assign(giver.view(scores, row), prototypes, slot) for slot, row in enumerate(rows)]
            entropies += [-(q * q.clamp_min(1e-12).log()).sum(1).mean() for q in targets]
            losses.append(swapped_cross_entropy(logits, targets, self.assign_views, output.num_views, self.temperature))
        if self.queue_length and progress.reached(self.queue_start):
            self._pending.append(embeddings)
        return {"loss": torch.stack(losses).mean(), "assignment_entropy": torch.stack(entropies).mean()}

    def _assign(self, scores: Tensor, prototypes: Tensor, slot: int) -> Tensor:
        """Assignments ``[b, K]`` of the current rows; a full queue takes part in the balancing but is not returned.

        The queue's scores use the current prototypes, and the current batch is not in the queue yet (it would count
        twice).
        """
        scores, rows = scores.float(), scores.shape[0]
        if self.queue_length and int(self.queue_rows) >= self.queue.shape[1]:
            scores = torch.cat([self.queue[slot] @ prototypes.float().t(), scores])
            return sinkhorn(scores, self.epsilon, self.iterations, last=rows, overwrite=True)
        return sinkhorn(scores, self.epsilon, self.iterations)

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        """Writes this step's embeddings to the front of the queue, the newest first; the oldest fall out."""
        for embeddings in self._pending:
            new = torch.stack(embeddings)
            self.queue.copy_(torch.cat([new, self.queue], dim=1)[:, : self.queue.shape[1]])
            self.queue_rows.add_(new.shape[1]).clamp_(max=self.queue.shape[1])
        self._pending.clear()

    def forget_pending(self) -> None:
        """Embeddings of a skipped update are not worth keeping."""
        self._pending.clear()
