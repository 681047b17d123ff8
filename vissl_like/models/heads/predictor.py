"""BYOL's head: a projector, and a predictor that only the student has (Grill et al. 2020, arXiv:2006.07733)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from vissl_like.models.heads.base import Head
from vissl_like.models.heads.mlp import perceptron
from vissl_like.records import HeadOutput
from vissl_like.registry import HEADS
from vissl_like.utils.kinds import Count


@HEADS.register("predictor")
class PredictorHead(Head):
    """Projection, and for the student its prediction of what a teacher projects (BYOL).

    Projector and predictor are MLPs with one hidden layer each, the last layer without bias, as in the official code;
    the defaults are BYOL's. The embedding is not normalised: the loss does that. It is the prediction in a student
    and the projection in a teacher. Keys are ``projection_head.{0,1,3}`` and ``predictor.{0,1,3}``.

    Options:
        hidden_dim: width of the projector's hidden layer
        output_dim: D, width of the projection and of the prediction
        predictor_hidden_dim: width of the predictor's hidden layer
        batch_norm: BatchNorm after both hidden layers (off in the runs of the thesis that compare with DINO's head)
        activation: after both hidden layers
        last_bias: whether the last layers of projector and predictor have a bias (they have none in BYOL)
    """

    sharded_parts = ("projection_head", "predictor")

    def __init__(
        self,
        feature_dim: int,
        *,
        hidden_dim: Count = 4096,
        output_dim: Count = 256,
        predictor_hidden_dim: Count = 4096,
        batch_norm: bool = True,
        activation: Literal["relu", "gelu"] = "relu",
        last_bias: bool = False,
    ):
        super().__init__()
        self.embedding_dim = output_dim
        self.projection_head = perceptron(
            [feature_dim, hidden_dim, output_dim], batch_norm=batch_norm, activation=activation, last_bias=last_bias
        )
        self.predictor: nn.Module = perceptron(
            [output_dim, predictor_hidden_dim, output_dim],
            batch_norm=batch_norm,
            activation=activation,
            last_bias=last_bias,
        )

    def become_teacher(self) -> None:
        """A teacher projects and does not predict: the two networks must differ, or they collapse."""
        self.predictor = nn.Identity()

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F]`` -> embedding ``[n, D]``: the prediction, or in a teacher the projection."""
        return HeadOutput(embedding=self.predictor(self.projection_head(features)))
