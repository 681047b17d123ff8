"""SwAV's head: projection MLP, l2-normalisation, prototypes (Caron et al. 2020, arXiv:2006.09882)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from vissl_like.models.heads.base import Head
from vissl_like.records import HeadOutput, Progress
from vissl_like.registry import HEADS
from vissl_like.utils.kinds import Count, Duration, Index


@HEADS.register("swav")
class SwAVHead(Head):
    """Projection to the unit sphere and cosine scores against prototypes (SwAV, DeepCluster-v2).

    Keys are the official ones: ``projection_head.{0,1,3}`` and ``prototypes.weight``.

    Options:
        hidden_dim: width of the hidden layer; 0 = one linear layer
        output_dim: D, width of the embedding
        num_prototypes: K; about 10 times the number of kinds of image expected, fewer than batch + queue
        batch_norm: BatchNorm after the hidden layer (off for SEER and RN50-w5)
        freeze_prototypes: how long prototypes stay at their random start, at least "1 epochs" in all official recipes
    """

    gives_logits = True

    def __init__(
        self,
        feature_dim: int,
        *,
        hidden_dim: Index = 2048,
        output_dim: Count = 128,
        num_prototypes: Count = 3000,
        batch_norm: bool = True,
        freeze_prototypes: Duration = "1 epochs",
    ):
        super().__init__()
        self.embedding_dim, self.num_prototypes = output_dim, (num_prototypes,)
        self.freeze_prototypes = freeze_prototypes
        if hidden_dim:
            norm = nn.BatchNorm1d(hidden_dim) if batch_norm else nn.Identity()
            self.projection_head: nn.Module = nn.Sequential(
                nn.Linear(feature_dim, hidden_dim), norm, nn.ReLU(inplace=True), nn.Linear(hidden_dim, output_dim)
            )
        else:
            self.projection_head = nn.Linear(feature_dim, output_dim)
        self.prototypes = nn.Linear(output_dim, num_prototypes, bias=False)

    @torch.no_grad()
    def before_forward(self, progress: Progress) -> None:
        """Puts every prototype back on the unit sphere; without this the scores drift and the loss turns NaN."""
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))

    def before_update(self, progress: Progress) -> None:
        """While frozen the gradient is None, not zero: no weight decay, momentum or step count for the prototypes."""
        if not progress.reached(self.freeze_prototypes):
            self.prototypes.weight.grad = None

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F]`` -> embedding ``[n, D]`` of unit rows, logits ``[n, K]`` = their cosine with each prototype."""
        embedding = normalize(self.projection_head(features), dim=1)
        scores = linear(embedding, self.prototypes.weight)
        return HeadOutput(embedding=embedding, logits=(scores,), prototypes=(self.prototypes.weight,))
