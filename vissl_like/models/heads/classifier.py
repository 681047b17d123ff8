"""A linear classifier on the trunk's features, for methods that predict labels of their own making."""

from __future__ import annotations

from torch import Tensor, nn

from vissl_like.models.heads.base import Head
from vissl_like.records import HeadOutput
from vissl_like.registry import HEADS
from vissl_like.utils.kinds import Count


@HEADS.register("classifier")
class ClassifierHead(Head):
    """One linear layer from features to classes, trained with the network (rotation prediction).

    Its embedding are the features themselves. Keys are ``classifier.weight`` and ``classifier.bias``.

    Options:
        classes: K, labels that are told apart
    """

    gives_logits = True
    sharded_parts = ("classifier",)

    def __init__(self, feature_dim: int, *, classes: Count = 4):
        super().__init__()
        self.embedding_dim, self.num_prototypes = feature_dim, (classes,)
        self.classifier = nn.Linear(feature_dim, classes)

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F]`` -> embedding ``[n, F]`` and logits ``[n, K]``."""
        return HeadOutput(embedding=features, logits=(self.classifier(features),))
