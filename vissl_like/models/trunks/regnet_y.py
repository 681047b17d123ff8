"""RegNetY (Radosavovic et al. 2020, arXiv:2003.13678) up to SEER's 256GF and 10B, under torchvision's key names.

A state dict of torchvision's ``regnet_y_{400mf,1_6gf,3_2gf,16gf,32gf,128gf}`` without ``fc`` loads as it is. Two sizes
are other networks there, because torchvision rounds to whole groups in another way: 8GF (first stage 224 wide, here 168
as the paper's code gives) and 800MF (144 and 784 in the second and last stage, here 128 and 768 as in the paper).
256GF and 10B have SEER's parameters (Goyal et al. 2021, arXiv:2103.01988; 2022, arXiv:2202.08360); what ClassyVision
registers as ``regnet_y_256gf`` is yet another network, of 821 million parameters.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from vissl_like.registry import TRUNKS

STEM_WIDTH = 32
SQUEEZE_RATIO = 0.25
QUANTUM = 8


class Rule(NamedTuple):
    """Generating parameters of one network: blocks, w_0, w_a, w_m of the paper, and the width of a group."""

    depth: int
    first: int
    slope: float
    factor: float
    group_width: int


class Stage(NamedTuple):
    """Blocks of one resolution: their number, their width, and the width of their groups."""

    depth: int
    width: int
    group_width: int


RULES: dict[str, Rule] = {
    "400MF": Rule(16, 48, 27.89, 2.09, 8),
    "800MF": Rule(14, 56, 38.84, 2.4, 16),
    "1.6GF": Rule(27, 48, 20.71, 2.65, 24),
    "3.2GF": Rule(21, 80, 42.63, 2.66, 24),
    "8GF": Rule(17, 192, 76.82, 2.19, 56),
    "16GF": Rule(18, 200, 106.23, 2.48, 112),
    "32GF": Rule(20, 232, 115.89, 2.53, 232),
    "64GF": Rule(20, 352, 147.48, 2.4, 328),
    "128GF": Rule(27, 456, 160.83, 2.52, 264),
    "256GF": Rule(27, 640, 230.83, 2.53, 373),
    "10B": Rule(27, 1744, 620.83, 2.52, 1010),
}


def stages(rule: Rule) -> list[Stage]:
    """The quantised linear rule (section 3.3 of the paper).

    Block j would be ``u_j = w_0 + w_a j`` wide. It gets ``w_0 w_m^s`` with s the nearest whole exponent, rounded to a
    multiple of 8; blocks of one width are a stage. The width then goes to the nearest multiple of the group width.
    """
    widths = []
    for block in range(rule.depth):
        exponent = round(math.log(1 + rule.slope * block / rule.first) / math.log(rule.factor))
        widths.append(QUANTUM * round(rule.first * rule.factor**exponent / QUANTUM))
    found = []
    for width, depth in Counter(widths).items():  # widths never fall, so equal ones are neighbours
        group = min(rule.group_width, width)
        found.append(Stage(depth, group * round(width / group), group))
    return found


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a number in (0, 1) read off all channels' means; ``[n, width, H, W]`` keeps its shape."""

    def __init__(self, width: int, squeezed: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` times its channels' gates."""
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(adaptive_avg_pool2d(x, 1)))))


class YBlock(nn.Module):
    """1x1, grouped 3x3, squeeze-excitation, 1x1, no bottleneck: ``[n, inputs, H, W] -> [n, width, H / stride, ...]``.

    The squeezed width is a quarter of ``inputs``, the width at the block's entrance.
    """

    def __init__(self, inputs: int, width: int, stride: int, group_width: int):
        super().__init__()
        unchanged = stride == 1 and inputs == width
        self.proj = None if unchanged else _conv(inputs, width, 1, stride, relu=False)
        self.f = nn.Sequential(
            OrderedDict(
                a=_conv(inputs, width, 1),
                b=_conv(width, width, 3, stride, groups=width // group_width),
                se=SqueezeExcitation(width, round(SQUEEZE_RATIO * inputs)),
                c=_conv(width, width, 1, relu=False),
            )
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum, then ReLU."""
        shortcut = x if self.proj is None else self.proj(x)
        return self.relu(shortcut + self.f(x))


@TRUNKS.register("regnet_y")
class RegNetY(nn.Module):
    """RegNetY of 4 million to 9.3 billion parameters (SEER's networks are 32GF to 256GF and 10B).

    Convolutions are initialised kaiming-normal over fan-out, norms to 1 and 0 (as torchvision does). 800MF
    and 8GF have the paper's widths, which are not torchvision's. ``strides`` are the pixels from one place to the next
    in the map after each stage (``stage_map``).

    Options:
        size: multiply-adds of one 224 px image, 400MF (3.9M parameters) to 256GF (1.27 billion), or 10B
    """

    def __init__(
        self,
        channels: int,
        *,
        size: Literal[
            "400MF", "800MF", "1.6GF", "3.2GF", "8GF", "16GF", "32GF", "64GF", "128GF", "256GF", "10B"
        ] = "16GF",
    ):
        super().__init__()
        self.stem = _conv(channels, STEM_WIDTH, 3, 2)
        self.trunk_output = nn.Sequential()
        inputs = STEM_WIDTH
        for number, stage in enumerate(stages(RULES[size]), 1):
            blocks = nn.Sequential()
            for position in range(stage.depth):
                stride = 2 if position == 0 else 1
                blocks.add_module(f"block{number}-{position}", YBlock(inputs, stage.width, stride, stage.group_width))
                inputs = stage.width
            self.trunk_output.add_module(f"block{number}", blocks)
        self.feature_dim = inputs
        self.stem_is_a_stage = True  # number 0
        self.strides = (4, 8, 16, 32)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stage_maps(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Maps after some stages in one pass: ``[n, C, H, W] -> [n, D, H / stride, W / stride]`` each.

        Args:
            images: ``[n, C, H, W]``.
            stages: increasing, 1 to 4; 0 is the stem.
        """
        x = self.stem(images)
        maps = {0: x}
        for number, stage in enumerate(list(self.trunk_output.children())[: stages[-1]], 1):
            for block in stage.children():
                x = block(x)
            maps[number] = x
        return [maps[number] for number in stages]

    def stage_map(self, images: Tensor, stages: int) -> Tensor:
        """The map after the first 0 to 4 stages: ``[n, C, H, W] -> [n, D, H / stride, W / stride]``."""
        return self.stage_maps(images, [stages])[0]

    def forward_map(self, images: Tensor) -> Tensor:
        """The last feature map: ``[n, C, H, W] -> [n, F, H / 32, W / 32]``."""
        return self.stage_map(images, len(self.strides))

    def forward(self, images: Tensor) -> Tensor:
        """Average-pooled features: ``[n, C, H, W] -> [n, F]``."""
        return torch.flatten(adaptive_avg_pool2d(self.forward_map(images), 1), 1)
