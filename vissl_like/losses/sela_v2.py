"""SeLa-v2: classify every view by balanced labels of the last epoch (Caron et al. 2020, arXiv:2006.09882)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vissl_like.clustering.sinkhorn import sinkhorn
from vissl_like.losses.bank import BankLoss
from vissl_like.losses.base import LossContext
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.registry import LOSSES
from vissl_like.utils.kinds import Count, Index, Positive


@LOSSES.register("sela_v2")
class SeLaV2Loss(BankLoss):
    """Offline balanced labels: Sinkhorn over the whole dataset between epochs, prototypes learnt by gradient.

    SeLa (Asano et al. 2020, arXiv:1911.05371) in the setting of the SwAV paper: DeepCluster-v2's network, banks and
    loss, but labels are an equal partition among the head's own prototypes. No code of it was published; this follows
    the paper's outline, and epsilon, iterations and rounding to hard labels are our choice. Heads and K are those of
    MODEL.HEAD.

    Labels come from the prototypes as they were in the forward of the newest finished step, scaled to length 1, so that
    they are as old as the newest rows of the bank. Holds (images of an epoch / processes) x K scores in memory while it
    makes labels, about three times.

    Options:
        temperature: softmax temperature of the prediction (0.1 in the paper)
        epsilon: Sinkhorn's entropy weight; smaller makes hard labels more equal in number but needs more iterations,
            and below 0.025 the slower form on logarithms
        sinkhorn_iterations: rounds of balancing, once an epoch
        assign_views: views whose embeddings are labelled, head after head in turn (the two big crops)
    """

    needs_logits = True

    def __init__(
        self,
        context: LossContext,
        *,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.025,
        sinkhorn_iterations: Count = 20,
        assign_views: list[Index] | None = None,
    ):
        super().__init__(context, context.num_prototypes, temperature, assign_views)
        self.epsilon, self.iterations = epsilon, sinkhorn_iterations
        for head, count in enumerate(context.num_prototypes):
            self.register_buffer(f"prototypes_{head}", torch.zeros(count, context.embedding_dim))
        self._pending_prototypes: list[Tensor] = []

    def label(self, head: int, rows: Tensor, progress: Progress) -> Tensor:
        """The prototype of largest mass in the balanced assignment of all processes' rows."""
        scores = rows @ self.get_buffer(f"prototypes_{head}").t()
        return sinkhorn(scores, self.epsilon, self.iterations).argmax(1)

    def scores(self, output: ModelOutput) -> Sequence[Tensor]:
        """The head's own logits."""
        return output.head.logits

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """As ``BankLoss``; also keeps a copy of the prototypes, which the update will change in place."""
        self._pending_prototypes = [weight.detach().float().clone() for weight in output.head.prototypes]
        return super().forward(output, batch, progress)

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        """Also writes down the prototypes that the finished step used."""
        super().after_update(progress)
        self._keep_prototypes(self._pending_prototypes)
        self._pending_prototypes = []

    def forget_pending(self) -> None:
        """Prototypes of a skipped update are dropped with its embeddings."""
        super().forget_pending()
        self._pending_prototypes = []

    def look_at_first_pass(self, output: ModelOutput) -> None:
        """The first labels come from the prototypes at their random start."""
        self._keep_prototypes(output.head.prototypes)

    def _keep_prototypes(self, prototypes: Sequence[Tensor]) -> None:
        for head, weight in enumerate(prototypes):
            self.get_buffer(f"prototypes_{head}").copy_(normalize(weight.detach().float(), dim=1))
