"""What AlexNet and VGG share: an optional Sobel front, convolutions in a row, fully connected layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from vissl_like.models.sobel import Sobel
from vissl_like.utils.errors import UserError


class PlainConvNet(nn.Module):
    """``sobel`` (or nothing), ``features``, ``classifier`` in that order, under DeepCluster's key names.

    The last map is average-pooled to ``side`` x ``side`` before the fully connected layers. At 224 px it has that size
    already and pooling changes nothing; other sizes of image are possible because of it.

    Args:
        features: convolutions, ``[n, 2 or C, H, W] -> [n, F, h, w]``.
        classifier: fully connected layers, ``[n, F * side * side] -> [n, feature_dim]``.
        channels: C, of the images.
        sobel: put the Sobel filters in front.
        side: height and width of the last map at 224 px.
        feature_dim: width of the features.
        smallest: shortest side of an image, in pixels, that leaves a last map.
    """

    def __init__(
        self,
        features: nn.Sequential,
        classifier: nn.Sequential,
        channels: int,
        *,
        sobel: bool,
        side: int,
        feature_dim: int,
        smallest: int,
    ):
        super().__init__()
        self.sobel = Sobel(channels) if sobel else None
        self.features, self.classifier = features, classifier
        self.side, self.feature_dim, self.smallest = side, feature_dim, smallest
        self._initialise()

    def _initialise(self) -> None:
        """Convolutions N(0, sqrt(2 / (k k outputs))), linear layers N(0, .01), biases 0, norms 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one place to the next in the map after each convolution and its ReLU (``stage_map``)."""
        found, stride = [], 1
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                found.append(stride)
            elif isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
                step = layer.stride
                stride *= step if isinstance(step, int) else step[0]
        return tuple(found)

    def stage_maps(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Maps after some convolutions, each with its ReLU: ``[n, C, H, W] -> [n, D, H / stride, W / stride]`` each.

        Args:
            images: ``[n, C, H, W]``.
            stages: increasing, from 1.

        Raises:
            UserError: the images are too small to leave a map.
        """
        ends = [place for place, layer in enumerate(self.features) if isinstance(layer, nn.ReLU)]
        x, begin, maps = self._front(images), 0, []
        for stage in stages:
            x = self.features[begin : ends[stage - 1] + 1](x)
            begin = ends[stage - 1] + 1
            maps.append(x)
        return maps

    def stage_map(self, images: Tensor, stages: int) -> Tensor:
        """The map after the first convolutions; see ``stage_maps``."""
        return self.stage_maps(images, [stages])[0]

    def forward_map(self, images: Tensor) -> Tensor:
        """The last feature map before pooling to ``side``: ``[n, C, H, W] -> [n, F, h, w]``.

        Raises:
            UserError: the images are too small to leave a map.
        """
        return self.features(self._front(images))

    def _front(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.smallest:
            raise UserError(
                f"{type(self).__name__} needs images of at least {self.smallest} px, got {images.shape[-2]} x "
                f"{images.shape[-1]}. Use larger views, or another trunk."
            )
        return images if self.sobel is None else self.sobel(images)

    def forward(self, images: Tensor) -> Tensor:
        """Output of the last fully connected layer: ``[n, C, H, W] -> [n, feature_dim]``."""
        return self.classifier(torch.flatten(adaptive_avg_pool2d(self.forward_map(images), self.side), 1))


def check_last_relu(last_relu: bool, widths: list[int]) -> None:
    """Refuses to switch off a ReLU that is not there.

    Raises:
        UserError: no fully connected layer is left, so that the features come from the convolutions.
    """
    if not last_relu and not widths:
        raise UserError(
            "MODEL.TRUNK.last_relu=false needs a fully connected layer, got fc_layers=[]. "
            "Give fc_layers a width, or leave last_relu at true."
        )
