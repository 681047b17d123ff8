"""ResNets (He et al. 2016, arXiv:1512.03385; stride in the 3x3 convolution, "v1.5") under torchvision's key names.

A state dict of ``torchvision.models.resnet50`` without ``fc`` loads as it is. ``width`` multiplies every width, stem
included, as SwAV's RN50-w2/w4/w5 do; torchvision's ``wide_resnet`` is another network. ``groups`` and
``width_per_group`` make a ResNeXt (Xie et al. 2017, arXiv:1611.05431): 32 and 8 at depth 101 are ResNeXt101-32x8d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vissl_like.registry import TRUNKS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Positive

LAYOUTS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    10: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; ``[n, inputs, H, W] -> [n, width, H / stride, W / stride]``."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum, then ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)).add_(shortcut))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the residual sum, zeroed by ``zero_init_residual``."""
        return self.bn2


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut; ``[n, inputs, H, W] -> [n, 4 width, H / stride, W / stride]``.

    The 3x3 convolution has ``groups`` groups of ``width_per_group / 64 * width`` channels (ResNeXt); with one group of
    64 it is ``width`` wide. The output width does not depend on either.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, width_per_group: int = 64):
        super().__init__()
        outputs = width * self.expansion
        inner = max(1, width * width_per_group // 64) * groups
        self.conv1, self.bn1 = _conv(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv(inner, inner, 3, stride, groups), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = _conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum, then ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)).add_(shortcut))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the residual sum, zeroed by ``zero_init_residual``."""
        return self.bn3


@TRUNKS.register("resnet")
class ResNet(nn.Module):
    """ResNet-10/18/34/50/101/152 of any width, with a stem for large or for small images.

    Convolutions are initialised kaiming-normal over fan-out, norms to 1 and 0 (as SwAV and torchvision do). ``strides``
    are the pixels from one place to the next in the map after each stage (``stage_map``).

    Options:
        depth: 10 (one block per stage), 18, 34, 50, 101 or 152
        width: factor on every width, stem included (2, 4, 5 are SwAV's wide networks; 0.5 suits small machines)
        stem: "large" = 7x7 stride 2 and max-pool (from about 64 px on); "small" = 3x3 stride 1, no pool (CIFAR-like)
        zero_init_residual: start every block as the identity (last norm's scale 0)
        blocks: blocks per stage instead of the usual ones for this depth
        groups: groups of the 3x3 convolutions (ResNeXt: 32), from depth 50 on
        width_per_group: channels of a group in the first stage, doubled from stage to stage (ResNeXt101-32x8d: 8)
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: Literal[10, 18, 34, 50, 101, 152] = 50,
        width: Positive = 1.0,
        stem: Literal["large", "small"] = "large",
        zero_init_residual: bool = False,
        blocks: list[Count] | None = None,
        groups: Count = 1,
        width_per_group: Count = 64,
    ):
        super().__init__()
        kind, usual = LAYOUTS[depth]
        counts = tuple(blocks) if blocks is not None else usual
        if len(counts) != 4:
            raise UserError(f"MODEL.TRUNK.blocks has {len(counts)} numbers; a ResNet has 4 stages")
        if kind == "basic" and (groups, width_per_group) != (1, 64):
            raise UserError(
                f"MODEL.TRUNK.groups={groups}, width_per_group={width_per_group}: a ResNet-{depth} has no bottleneck "
                "blocks to group. Use depth 50, 101 or 152, or leave both options out."
            )
        grouping = {} if kind == "basic" else {"groups": groups, "width_per_group": width_per_group}
        block = BasicBlock if kind == "basic" else Bottleneck
        base = max(1, round(64 * width))
        self.conv1 = nn.Conv2d(channels, base, 7, 2, 3, bias=False) if stem == "large" else _conv(channels, base, 3)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "large" else nn.Identity()
        inputs = base
        for stage, count in enumerate(counts):
            stage_width = base * 2**stage
            layers = []
            for position in range(count):
                stride = 2 if stage > 0 and position == 0 else 1
                layers.append(block(inputs, stage_width, stride, **grouping))
                inputs = stage_width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.feature_dim = inputs
        self.stem_is_a_stage = True  # number 0
        self.strides = (4, 8, 16, 32) if stem == "large" else (1, 2, 4, 8)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_norm.weight)

    def stage_maps(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Maps after some stages in one pass: ``[n, C, H, W] -> [n, D, H / stride, W / stride]`` each.

        Args:
            images: ``[n, C, H, W]``.
            stages: increasing, 1 to 4; 0 is the stem.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = {0: x}
        for stage in range(1, stages[-1] + 1):
            maps[stage] = x = self.get_submodule(f"layer{stage}")(x)
        return [maps[stage] for stage in stages]

    def stage_map(self, images: Tensor, stages: int) -> Tensor:
        """The map after the first 0 to 4 stages: ``[n, C, H, W] -> [n, D, H / stride, W / stride]``."""
        return self.stage_maps(images, [stages])[0]

    def forward_map(self, images: Tensor) -> Tensor:
        """The last feature map: ``[n, C, H, W] -> [n, F, H / 32, W / 32]`` (stem "small": / 8)."""
        return self.stage_map(images, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Average-pooled features: ``[n, C, H, W] -> [n, F]``."""
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.forward_map(images), 1), 1)
