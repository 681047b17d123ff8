"""DINO's head: MLP, l2-normalised bottleneck, weight-normalised last layer (Caron et al. 2021, arXiv:2104.14294)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from vissl_like.models.heads.base import Head
from vissl_like.models.heads.mlp import hidden_layers, perceptron
from vissl_like.records import HeadOutput, Progress
from vissl_like.registry import HEADS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Duration, Index


class WeightNormed(nn.Module):
    """Rows of a given length: ``weight_g`` ``[outputs, 1]`` times the directions of ``weight_v`` ``[outputs, inputs]``.

    Salimans & Kingma 2016, arXiv:1602.07868. Lengths start at 1, ``weight_v`` as the weight of a linear layer does.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1))
        self.weight_v = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach())

    @property
    def weight(self) -> Tensor:
        """``[outputs, inputs]``, calculated at every access in one kernel."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)


@HEADS.register("dino")
class DINOHead(Head):
    """MLP to a normalised bottleneck, then scores over K outputs that play the part of prototypes (DINO).

    Keys are the official ones: ``mlp.{0,2,4}`` (``mlp.{0,1,3,4,6}`` with BatchNorm, ``mlp`` itself for one layer) and
    ``last_layer.weight_g``, ``last_layer.weight_v``.

    Without the bottleneck the head is a plain MLP of ``layers`` linear layers. The last of them gives the K scores and
    is ``last_layer.weight``; the others are ``mlp``. It has no bias, so that here too logits are embeddings times
    prototypes. The embedding is then its input: hidden activations, or the features where there is one layer.

    The thesis' ablation counts all linear layers, also the last one after the bottleneck: its 2, 3, 4 are ``layers``
    1, 2, 3 with the bottleneck and 2, 3, 4 without.

    Options:
        layers: linear layers of the MLP before the last layer; without l2_bottleneck all linear layers
        hidden_dim: width of the MLP's hidden layers
        bottleneck_dim: D, width of the bottleneck (not used without l2_bottleneck)
        num_prototypes: K, outputs of the head
        batch_norm: BatchNorm after each hidden layer, before its activation (off for vision transformers)
        activation: of the hidden layers
        l2_bottleneck: normalise the bottleneck and the last layer's weights; false: no bottleneck at all
        norm_last_layer: keep the last layer's weights at length 1; false trains their lengths (better for small
            vision transformers, unstable for large ones and ResNets). Nothing to keep without l2_bottleneck
        freeze_last_layer: how long the last layer stays at its random start
        predictor_dim: hidden width of an MLP that only the student has, before the normalisation; 0 = none
    """

    gives_logits = True
    sharded_parts = ("mlp", "predictor")

    def __init__(
        self,
        feature_dim: int,
        *,
        layers: Literal[1, 2, 3, 4] = 3,
        hidden_dim: Count = 2048,
        bottleneck_dim: Count = 256,
        num_prototypes: Count = 65536,
        batch_norm: bool = False,
        activation: Literal["gelu", "relu"] = "gelu",
        l2_bottleneck: bool = True,
        norm_last_layer: bool = True,
        freeze_last_layer: Duration = "1 epochs",
        predictor_dim: Index = 0,
    ):
        super().__init__()
        if predictor_dim and not l2_bottleneck:
            raise UserError(
                f"MODEL.HEAD.predictor_dim is {predictor_dim} and l2_bottleneck is false: the predictor works on the "
                "bottleneck. Set predictor_dim to 0 or l2_bottleneck to true."
            )
        self.num_prototypes, self.l2_bottleneck = (num_prototypes,), l2_bottleneck
        self.freeze_last_layer = freeze_last_layer
        widths = [feature_dim, *[hidden_dim] * (layers - 1)]
        self.embedding_dim = bottleneck_dim if l2_bottleneck else widths[-1]
        mlp = partial(perceptron, batch_norm=batch_norm, activation=activation, keep_places=False)
        self.mlp: nn.Module
        if l2_bottleneck:
            self.mlp = mlp([*widths, bottleneck_dim])
        else:
            hidden = hidden_layers(widths, batch_norm=batch_norm, activation=activation, keep_places=False)
            self.mlp = nn.Sequential(*hidden)
        self.predictor: nn.Module = nn.Identity()
        if predictor_dim:
            self.predictor = mlp([bottleneck_dim, predictor_dim, bottleneck_dim])
        self.apply(_initialise)
        # Made after the pass above: it keeps the usual start of a linear layer, as in the official code.
        self.last_layer: WeightNormed | nn.Linear
        if l2_bottleneck:
            self.last_layer = WeightNormed(bottleneck_dim, num_prototypes)
            self.last_layer.weight_g.requires_grad_(not norm_last_layer)
        else:
            self.last_layer = nn.Linear(widths[-1], num_prototypes, bias=False)
            _initialise(self.last_layer)

    def become_teacher(self) -> None:
        """A teacher has no predictor."""
        self.predictor = nn.Identity()

    def before_update(self, progress: Progress) -> None:
        """While frozen the gradient is None, not zero: no weight decay, momentum or step count for the last layer."""
        if not progress.reached(self.freeze_last_layer):
            for parameter in self.last_layer.parameters():
                parameter.grad = None

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F]`` -> embedding ``[n, D]`` (unit rows; without bottleneck any), logits ``[n, K]``.

        ``prototypes`` is the weight ``[K, D]`` that the logits were made with.
        """
        embedding = self.mlp(features)
        if self.l2_bottleneck:
            embedding = normalize(self.predictor(embedding), dim=1)
        weight = self.last_layer.weight
        return HeadOutput(embedding=embedding, logits=(linear(embedding, weight),), prototypes=(weight,))


def _initialise(module: nn.Module) -> None:
    """The MLP's start: weights with standard deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
