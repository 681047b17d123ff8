"""SwAV's head: projection MLP, l2-normalisation, prototypes (Caron et al. 2020, arXiv:2006.09882)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from vissl_like.models.heads.base import Head
from vissl_like.models.heads.mlp import perceptron
from vissl_like.records import HeadOutput, Progress
from vissl_like.registry import HEADS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Duration, Index


@HEADS.register("swav")
class SwAVHead(Head):
    """Projection to the unit sphere and cosine scores against prototypes (SwAV, SeLa-v2, SEER).

    Keys are the official ones: ``projection_head.{0,1,3}`` and ``prototypes.weight``; with a list of prototype counts
    ``prototypes.prototypes0.weight``, ``prototypes.prototypes1.weight``, ... Every hidden layer takes three places
    (``projection_head.{0,3,6}`` are the linear layers of two hidden ones), with BatchNorm or without.

    Options:
        hidden_dim: width of the hidden layer; 0 = one linear layer; a list = several hidden layers (SEER: [8192, 8192])
        output_dim: D, width of the embedding
        num_prototypes: K; about 10 times the number of kinds of image expected, fewer than batch + queue. A list =
            several sets of prototypes side by side (SeLa-v2: [3000, 3000, 3000])
        batch_norm: BatchNorm after each hidden layer (off for SEER and RN50-w5)
        freeze_prototypes: how long prototypes stay at their random start, at least "1 epochs" in all official recipes
    """

    gives_logits = True
    sharded_parts = ("projection_head",)

    def __init__(
        self,
        feature_dim: int,
        *,
        hidden_dim: Index | list[Count] = 2048,
        output_dim: Count = 128,
        num_prototypes: Count | list[Count] = 3000,
        batch_norm: bool = True,
        freeze_prototypes: Duration = "1 epochs",
    ):
        super().__init__()
        counts = (num_prototypes,) if isinstance(num_prototypes, int) else tuple(num_prototypes)
        if not counts:
            raise UserError("MODEL.HEAD.num_prototypes is an empty list: give a number, or a list of at least one")
        hidden = ([hidden_dim] if hidden_dim else []) if isinstance(hidden_dim, int) else hidden_dim
        self.embedding_dim, self.num_prototypes = output_dim, counts
        self.freeze_prototypes = freeze_prototypes
        self.projection_head = perceptron([feature_dim, *hidden, output_dim], batch_norm=batch_norm)
        layers = [nn.Linear(output_dim, count, bias=False) for count in counts]
        self.prototypes: nn.Module = layers[0]
        if not isinstance(num_prototypes, int):
            self.prototypes = nn.ModuleDict({f"prototypes{number}": layer for number, layer in enumerate(layers)})

    def _weights(self) -> list[Tensor]:
        """One ``[K_h, D]`` tensor per set of prototypes."""
        return list(self.prototypes.parameters())

    @torch.no_grad()
    def before_forward(self, progress: Progress) -> None:
        """Puts every prototype back on the unit sphere; without this the scores drift and the loss turns NaN."""
        for weight in self._weights():
            weight.copy_(normalize(weight, dim=1))

    def before_update(self, progress: Progress) -> None:
        """While frozen the gradient is None, not zero: no weight decay, momentum or step count for the prototypes."""
        if not progress.reached(self.freeze_prototypes):
            for weight in self._weights():
                weight.grad = None

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F]`` -> embedding ``[n, D]`` of unit rows, logits ``[n, K_h]`` = their cosine with each prototype."""
        embedding = normalize(self.projection_head(features), dim=1)
        prototypes = tuple(self._weights())
        scores = tuple(linear(embedding, weight) for weight in prototypes)
        return HeadOutput(embedding=embedding, logits=scores, prototypes=prototypes)
