"""RotNet: which way up an image is (Gidaris et al. 2018, arXiv:1803.07728)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vissl_like.losses.base import Loss, LossContext
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.registry import LOSSES
from vissl_like.utils.errors import UserError

ORIENTATIONS = 4


@LOSSES.register("rotation")
class RotationLoss(Loss):
    """Cross-entropy of the four orientations that each image is shown in (equations 2 and 3).

    View r of an image is turned by r right angles (the transform "rotations"), and r is its label; all four are in the
    same batch, as in the official code. The head gives one set of four scores (the head "classifier").
    """

    needs_views = ORIENTATIONS
    needs_logits = True
    needs_orientations = True
    accumulation_note = "BatchNorm sees micro-batches; otherwise it is the same"

    def __init__(self, context: LossContext):
        super().__init__()
        if context.num_views != ORIENTATIONS or context.num_prototypes != (ORIENTATIONS,):
            raise UserError(
                f"rotation tells {ORIENTATIONS} orientations apart, and gets {context.num_views} views and "
                f"{list(context.num_prototypes)} classes. Use DATA.TRANSFORM.name=rotations and "
                f"MODEL.HEAD={{name: classifier, classes: {ORIENTATIONS}}}"
            )

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The objective; ``accuracy``, share of views whose orientation was found (0.25 by chance)."""
        scores = output.head.logits[0].float()
        labels = torch.arange(ORIENTATIONS, device=scores.device).repeat_interleave(len(scores) // ORIENTATIONS)
        accuracy = (scores.detach().argmax(1) == labels).float().mean()
        return {"loss": cross_entropy(scores, labels), "accuracy": accuracy}

    def trivial_value(self) -> float:
        """ln 4: all orientations alike."""
        return math.log(ORIENTATIONS)
