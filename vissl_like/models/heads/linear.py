"""One linear layer, as in MoCo v1 and instance discrimination."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from vissl_like.models.heads.base import Head
from vissl_like.records import HeadOutput
from vissl_like.registry import HEADS
from vissl_like.utils.kinds import Count


@HEADS.register("linear")
class LinearHead(Head):
    """Projection by one linear layer (MoCo v1, He et al. 2019, arXiv:1911.05722).

    Keys are ``projection_head.weight`` and ``projection_head.bias``, those of SwAV's head without a hidden layer.

    Options:
        output_dim: D, width of the embedding
        normalize: put the embedding on the unit sphere
    """

    sharded_parts = ("projection_head",)

    def __init__(self, feature_dim: int, *, output_dim: Count = 128, normalize: bool = True):
        super().__init__()
        self.embedding_dim, self.on_sphere = output_dim, normalize
        self.projection_head = nn.Linear(feature_dim, output_dim)

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F]`` -> embedding ``[n, D]``."""
        embedding = self.projection_head(features)
        return HeadOutput(embedding=normalize(embedding, dim=1) if self.on_sphere else embedding)
