"""BYOL: predicting a teacher's vector of another view (Grill et al. 2020, arXiv:2006.07733), and its ablations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vissl_like.distributed import comm
from vissl_like.losses.base import Loss, LossContext
from vissl_like.losses.functional.pairs import pair_cosines
from vissl_like.losses.functional.views import check_views
from vissl_like.records import Batch, HeadOutput, ModelOutput, Progress
from vissl_like.registry import LOSSES
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Fraction, Index


@LOSSES.register("byol")
class BYOLLoss(Loss):
    """Mean squared error between unit vectors: the student's of one view, the teacher's of another, big view.

    ``mean over pairs (t, v != t) of |s_v/|s_v| - (z_t - c)/|z_t - c||^2 = 2 - 2 cos`` (equation 2; c = 0 in BYOL). The
    official loss is the sum over its two pairs, so it and its gradient are twice these: learning rates that are not
    adapted to the gradient's length (biases and BatchNorm under LARS) carry over doubled.

    Nothing here keeps outputs from becoming constant: BYOL relies on a predictor and BatchNorm (the head "predictor"),
    variants in DINO's ablations (arXiv:2104.14294, appendix B) on a centre. Constant outputs give the lowest value, 0,
    so a collapse does not show in the loss: there is no trivial value; watch the spread of the embeddings.

    Options:
        compare: "embedding" (the student's prediction, the teacher's projection), or "scores" of a head with
            prototypes (the MSE rows with DINO's head)
        center_momentum: share of the old centre that is kept, 0.9 in DINO; null = no centre (BYOL)
        teacher_views: views that the teacher sees (the two big crops)
    """

    needs_views = 2
    needs_teacher = True
    accumulation_note = "BatchNorm sees micro-batches; otherwise it is the same"

    def __init__(
        self,
        context: LossContext,
        *,
        compare: Literal["embedding", "scores"] = "embedding",
        center_momentum: Fraction | None = None,
        teacher_views: list[Index] | None = None,
    ):
        super().__init__()
        sets = len(context.num_prototypes)
        if compare == "scores" and sets != 1:
            raise UserError(
                f"LOSS.compare is scores, and the head gives {sets} sets of them; it must give one: use a head with "
                'prototypes such as dino (MODEL.HEAD.name), or LOSS.compare: "embedding"'
            )
        if compare == "embedding" and sets:
            raise UserError(
                "LOSS.compare is embedding, and the head has prototypes that nothing would train: use a head without "
                'such as predictor or mlp (MODEL.HEAD.name), or LOSS.compare: "scores"'
            )
        self.context, self.compare, self.center_momentum = context, compare, center_momentum
        self.teacher_views = check_views("teacher_views", teacher_views, context.num_views)
        width = context.num_prototypes[0] if compare == "scores" else context.embedding_dim
        self.center: Tensor | None
        self.register_buffer("center", None if center_momentum is None else torch.zeros(1, width))
        self._pending: list[Tensor] = []

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The objective, in [0, 4]."""
        assert output.teacher is not None
        student, teacher = self._vectors(output.head), self._vectors(output.teacher.head).detach()
        if self.center is not None:
            self._pending.append(teacher.mean(0, keepdim=True))
            teacher = teacher - self.center
        student = student.unflatten(0, (output.num_views, -1))
        teacher = teacher.unflatten(0, (len(self.teacher_views), -1))
        return {"loss": 2 - 2 * pair_cosines(student, teacher, self.teacher_views).mean()}

    def _vectors(self, head: HeadOutput) -> Tensor:
        """What is compared, ``[n, D]`` or ``[n, K]`` float32."""
        return (head.logits[0] if self.compare == "scores" else head.embedding).float()

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        """Moves the centre as DINO does: ``c <- m c + (1 - m) mean`` of the teacher's vectors before centring.

        The mean is over all teacher views, micro-batches and processes of the step.
        """
        if self.center is None or self.center_momentum is None or not self._pending:
            return
        mean = comm.all_reduce(torch.stack(self._pending).mean(0)) / self.context.world_size
        self.center.lerp_(mean, 1 - self.center_momentum)
        self._pending.clear()

    def forget_pending(self) -> None:
        """Vectors of a skipped update do not move the centre."""
        self._pending.clear()
