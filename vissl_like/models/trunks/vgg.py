"""VGG-16 with BatchNorm (Simonyan & Zisserman 2015, arXiv:1409.1556, D) behind Sobel filters, as in DeepCluster.

Keys are the official ones (``features.N``, ``classifier.{0,3}``, ``sobel.{0,1}``); the official ``top_layer`` is the
head's part. Without Sobel filters the keys are torchvision's ``vgg16_bn`` less its last linear layer.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from vissl_like.models.plain_convnet import PlainConvNet, check_last_relu
from vissl_like.models.sobel import Sobel
from vissl_like.registry import TRUNKS
from vissl_like.utils.kinds import Count, Fraction

STAGES: tuple[tuple[int, int], ...] = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Width and number of 3x3 convolutions of each stage; a 2x2 max-pool ends it."""
SIDE = 7
SMALLEST = 32


@TRUNKS.register("vgg")
class VGG(PlainConvNet):
    """VGG-16 with BatchNorm and DeepCluster's Sobel front: thirteen convolutions, two fully connected layers.

    Made for 224 px (a last map of 512 x 7 x 7 = 25088 values); from other sizes, 32 px and up, the last map is
    average-pooled to 7 x 7. Convolutions have a bias.

    Options:
        sobel: put fixed edge filters before the first convolution; without them clusters follow colour
        dropout: share of values zeroed between the fully connected layers
        fc_layers: widths of the fully connected layers (4096, 4096); [] gives the 25088 values of the last map
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
        for outputs, count in STAGES:
            for _ in range(count):
                features += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
                features.append(nn.ReLU(inplace=True))
                inputs = outputs
            features.append(nn.MaxPool2d(2, 2))
        widths = [inputs * SIDE**2, *widths]
        classifier: list[nn.Module] = []
        for before, after in pairwise(widths):
            if classifier:
                classifier.append(nn.Dropout(dropout))
            classifier += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        super().__init__(
            nn.Sequential(*features),
            nn.Sequential(*(classifier if last_relu else classifier[:-1])),
            channels,
            sobel=sobel,
            side=SIDE,
            feature_dim=widths[-1],
            smallest=SMALLEST,
        )
