"""Projection by a small MLP, as in SimCLR, MoCo v2 and BYOL, and the layers that other heads are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import normalize

from vissl_like.models.heads.base import Head
from vissl_like.records import HeadOutput
from vissl_like.registry import HEADS
from vissl_like.utils.kinds import Count

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


def hidden_layers(
    widths: Sequence[int],
    *,
    batch_norm: bool,
    activation: str = "relu",
    bias: bool = True,
    keep_places: bool = True,
) -> list[nn.Module]:
    """Linear layer, BatchNorm, activation for every step from one width to the next.

    Args:
        widths: of the input and of each hidden layer, ``[inputs, hidden, ...]``; one width alone gives no layers.
        batch_norm: between linear layer and activation.
        activation: a name of ``ACTIVATIONS``; "gelu" is the exact one.
        bias: of the linear layers.
        keep_places: without BatchNorm an identity stands in its place, so that keys stay those with BatchNorm.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers.append(nn.Linear(inputs, outputs, bias=bias))
        if batch_norm:
            layers.append(nn.BatchNorm1d(outputs))
        elif keep_places:
            layers.append(nn.Identity())
        layers.append(ACTIVATIONS[activation]())
    return layers


def perceptron(
    widths: Sequence[int],
    *,
    batch_norm: bool,
    activation: str = "relu",
    bias: bool = True,
    last_bias: bool = True,
    keep_places: bool = True,
) -> nn.Module:
    """Hidden layers and a last linear layer, which nothing follows; ``[n, inputs] -> [n, outputs]``.

    Args:
        widths: ``[inputs, hidden, ..., outputs]``; two of them make a bare linear layer with keys ``weight``, ``bias``.
        batch_norm: see ``hidden_layers``.
        activation: see ``hidden_layers``.
        bias: of the hidden layers.
        last_bias: of the last layer.
        keep_places: see ``hidden_layers``.
    """
    hidden = hidden_layers(
        widths[:-1], batch_norm=batch_norm, activation=activation, bias=bias, keep_places=keep_places
    )
    last = nn.Linear(widths[-2], widths[-1], bias=last_bias)
    return nn.Sequential(*hidden, last) if hidden else last


@HEADS.register("mlp")
class MLPHead(Head):
    """Projection by an MLP, without prototypes (SimCLR, MoCo v2, DeepCluster-v2's projection).

    Keys are those of SwAV's projection: ``projection_head.{0,1,3}`` for two layers, with BatchNorm or without;
    ``projection_head`` itself is the layer where there is only one.

    Options:
        layers: linear layers, the last one included
        hidden_dim: width of the hidden layers (none where there is one layer)
        output_dim: D, width of the embedding
        batch_norm: BatchNorm after each hidden layer, before its activation
        last_batch_norm: BatchNorm after the last layer too (SimCLR)
        activation: of the hidden layers
        normalize: put the embedding on the unit sphere
        bias: of the hidden linear layers (off in SimCLR and SimSiam)
        last_bias: of the last linear layer (off in SimCLR and BYOL); null: like bias
    """

    sharded_parts = ("projection_head",)

    def __init__(
        self,
        feature_dim: int,
        *,
        layers: Count = 2,
        hidden_dim: Count = 2048,
        output_dim: Count = 128,
        batch_norm: bool = True,
        last_batch_norm: bool = False,
        activation: Literal["relu", "gelu"] = "relu",
        normalize: bool = True,
        bias: bool = True,
        last_bias: bool | None = None,
    ):
        super().__init__()
        self.embedding_dim, self.on_sphere = output_dim, normalize
        widths = [feature_dim, *[hidden_dim] * (layers - 1), output_dim]
        last_bias = bias if last_bias is None else last_bias
        projection = perceptron(widths, batch_norm=batch_norm, activation=activation, bias=bias, last_bias=last_bias)
        if last_batch_norm:
            parts = projection if isinstance(projection, nn.Sequential) else [projection]
            projection = nn.Sequential(*parts, nn.BatchNorm1d(output_dim))
        self.projection_head = projection

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F]`` -> embedding ``[n, D]``."""
        embedding = self.projection_head(features)
        return HeadOutput(embedding=normalize(embedding, dim=1) if self.on_sphere else embedding)
