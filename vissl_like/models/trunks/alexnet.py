"""AlexNet with BatchNorm behind Sobel filters, as in DeepCluster (Caron et al. 2018, arXiv:1807.05520).

Keys are the official ones (``features.N``, ``classifier.{1,4}``, ``sobel.{0,1}``); the official ``top_layer`` is the
head's part. It is the network of 2012 without its two halves: no groups, no local response normalisation.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from vissl_like.models.plain_convnet import PlainConvNet, check_last_relu
from vissl_like.models.sobel import Sobel
from vissl_like.registry import TRUNKS
from vissl_like.utils.kinds import Count, Fraction

LAYERS: tuple[tuple[int, int, int, int, bool], ...] = (
    (96, 11, 4, 2, True),
    (256, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)
"""Outputs, kernel size, stride, padding of each convolution, and whether a 3x3 max-pool of stride 2 follows."""
SIDE = 6
SMALLEST = 63


@TRUNKS.register("alexnet")
class AlexNet(PlainConvNet):
    """AlexNet with BatchNorm and DeepCluster's Sobel front: five convolutions, two fully connected layers.

    Made for 224 px (a last map of 256 x 6 x 6 = 9216 values); from other sizes, 63 px and up, the last map is
    average-pooled to 6 x 6. Convolutions have a bias.

    Options:
        sobel: put fixed edge filters before the first convolution; without them clusters follow colour
        dropout: share of values zeroed before each fully connected layer
        fc_layers: widths of the fully connected layers (4096, 4096); [] gives the 9216 values of the last map
        last_relu: ReLU on the features; clustering needs them without, and the head then applies its own
    """

    def __init__(
        self,
        channels: int,
        *,
        sobel: bool = True,
        dropout: Fraction = 0.5,
        fc_layers: list[Count] | None = None,
        last_relu: bool = True,
    ):
        widths = [4096, 4096] if fc_layers is None else list(fc_layers)
        check_last_relu(last_relu, widths)
        features: list[nn.Module] = []
        inputs = Sobel.out_channels if sobel else channels
        for outputs, size, stride, padding, pool in LAYERS:
            features += [nn.Conv2d(inputs, outputs, size, stride, padding), nn.BatchNorm2d(outputs)]
            features.append(nn.ReLU(inplace=True))
            if pool:
                features.append(nn.MaxPool2d(3, 2))
            inputs = outputs
        widths = [inputs * SIDE**2, *widths]
        classifier: list[nn.Module] = []
        for before, after in pairwise(widths):
            classifier += [nn.Dropout(dropout), nn.Linear(before, after), nn.ReLU(inplace=True)]
        super().__init__(
            nn.Sequential(*features),
            nn.Sequential(*(classifier if last_relu else classifier[:-1])),
            channels,
            sobel=sobel,
            side=SIDE,
            feature_dim=widths[-1],
            smallest=SMALLEST,
        )
