"""Feature maps of a trunk, stage by stage, in one pass; and stages that stay as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vissl_like.utils.errors import UserError

LEVELS = (4, 8, 16, 32)
"""Strides of the maps that a pyramid is built on."""


class StageMaps(nn.Module):
    """The maps after some stages of a trunk: ``[n, C, H, W] -> [[n, D, H / stride, W / stride], ...]``.

    Args:
        trunk: with ``stage_maps(images, stages)`` and the ``strides`` of its stages.
        stages: increasing, counted from 1.
        channels: of the images.

    Attributes:
        widths: channels of each map.

    Raises:
        UserError: the trunk gives no maps.
    """

    def __init__(self, trunk: nn.Module, stages: Sequence[int], channels: int):
        super().__init__()
        self.trunk, self.stages = trunk, tuple(stages)
        strides_of(trunk)
        # A look at each map by the trunk's own function, which explains what it does not take.
        self.widths = [int(one_map(trunk, stage, channels).shape[1]) for stage in self.stages]

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, from fine to coarse."""
        found: list[Tensor] = self.trunk.stage_maps(images, self.stages)  # type: ignore[operator]
        return found


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017, arXiv:1612.03144) on the maps of strides 4 to 32 that a trunk has.

    Args:
        trunk: see ``StageMaps``.
        channels: of the images.
        width: channels of every map.
        norm: makes the norm after each convolution, None for none.

    Attributes:
        out_channels: ``width``.
        names: of the maps, from fine to coarse; the last, ``pool``, is for proposals only.

    Raises:
        UserError: the trunk has not two such maps.
    """

    def __init__(self, trunk: nn.Module, channels: int, width: int, norm: type[nn.Module] | None):
        super().__init__()
        strides = strides_of(trunk)
        deepest = {stride: stage for stage, stride in enumerate(strides, 1) if stride in LEVELS}
        if len(deepest) < 2:
            raise UserError(
                f"a feature pyramid needs maps of at least two of the strides {', '.join(map(str, LEVELS))}; this "
                f"network has {', '.join(map(str, strides))}. Take a convolutional network (resnet, timm)."
            )
        self.maps = StageMaps(trunk, sorted(deepest.values()), channels)
        self.pyramid = FeaturePyramidNetwork(self.maps.widths, width, LastLevelMaxPool(), norm)
        self.out_channels = width
        self.names = [str(number) for number in range(len(deepest))]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``[n, C, H, W] -> {"0": [n, width, H / 4, W / 4], ..., "pool": ...}``."""
        maps = OrderedDict(zip(self.names, self.maps(images), strict=True))
        found: dict[str, Tensor] = self.pyramid(maps)
        return found


def strides_of(trunk: nn.Module) -> tuple[int, ...]:
    """Strides of a trunk's stages.

    Raises:
        UserError: it has none.
    """
    strides = tuple(getattr(trunk, "strides", ()))
    if not strides or not callable(getattr(trunk, "stage_maps", None)):
        raise UserError(
            f"the network {type(trunk).__name__} gives no maps stage by stage, which a detector is built on: take a "
            "resnet, regnet_y, xcit, alexnet or vgg trunk, or a model of timm that gives maps"
        )
    return strides


def one_map(trunk: Any, stage: int, channels: int) -> Tensor:
    """The map after a stage of a small grey image, in eval mode, with gradient."""
    side = max(64, 2 * max(strides_of(trunk)), getattr(trunk, "smallest", 0))
    modes = [(module, module.training) for module in trunk.modules()]
    trunk.eval()
    try:
        image = torch.zeros(1, channels, side, side, device=next(trunk.parameters()).device)
        found: Tensor = trunk.stage_maps(image, [stage])[0]
    finally:
        for module, mode in modes:
            module.training = mode
    return found


def freeze(trunk: nn.Module, freeze_at: int, channels: int) -> set[nn.Module]:
    """Takes the gradient from the first stages of a trunk, norms included (detectron2's ``FREEZE_AT``).

    Args:
        trunk: see ``StageMaps``.
        freeze_at: 0 leaves all free, 1 freezes the stem of a ResNet or RegNet, k + 1 the first k stages.
        channels: of the images.

    Returns:
        the norms among them, whose statistics must stay too.

    Raises:
        UserError: the trunk has not so many stages.
    """
    if not freeze_at:
        return set()
    most = len(strides_of(trunk)) + 1
    least = 1 if getattr(trunk, "stem_is_a_stage", False) else 2
    if not least <= freeze_at <= most:
        raise UserError(
            f"EVALUATION.freeze_at={freeze_at}: this network allows 0 (nothing), and {least} to {most}: one more than "
            "the stages that are frozen" + (", or 1 for the stem alone" if least == 1 else "")
        )
    named = {name: value for name, value in trunk.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(
        one_map(trunk, freeze_at - 1, channels).sum(), list(named.values()), allow_unused=True
    )
    frozen = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
    for name in frozen:
        named[name].requires_grad_(False)
    return {
        module
        for name, module in trunk.named_modules()
        if isinstance(module, _BatchNorm) and f"{name}.weight" in frozen
    }
