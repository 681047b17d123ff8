"""XCiT: attention between channels (El-Nouby et al. 2021, arXiv:2106.09681), under the official key names.

A state dict of the official code, or of DINO's released XCiTs, loads as it is (without ``head``). timm's models have
the same values under other names in two places: ``pos_embed`` for ``pos_embeder``, and the class attention's ``q``,
``k``, ``v`` for ``qkv``. No table of positions is stored, so any image size runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vissl_like.models.drop_path import DropPath
from vissl_like.registry import TRUNKS
from vissl_like.utils.kinds import Fraction

MLP_RATIO = 4
CLASS_BLOCKS = 2
NORM_EPS = 1e-6
FOURIER_FEATURES = 32
FOURIER_BASE = 10000


class Size(NamedTuple):
    """One row of the paper's table 1; ``layer_scale`` is eta, the start value of every gamma.

    ``norm_all_tokens``: the class-attention blocks' second norm covers the patch tokens too, not only the class token.
    """

    dim: int
    depth: int
    heads: int
    layer_scale: float
    norm_all_tokens: bool = True


SIZES: dict[str, Size] = {
    "nano12": Size(128, 12, 4, 1.0, norm_all_tokens=False),
    "tiny12": Size(192, 12, 4, 1.0),
    "small12": Size(384, 12, 8, 1.0),
    "small24": Size(384, 24, 8, 1e-5),
    "medium24": Size(512, 24, 8, 1e-5),
}


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=NORM_EPS)


def _gamma(dim: int, start: float) -> nn.Parameter:
    return nn.Parameter(torch.full((dim,), start))


class PatchStem(nn.Module):
    """Patches by 3x3 convolutions of stride 2, each with BatchNorm, GELU between them.

    ``[n, C, H, W] -> [n, dim, H / patch, W / patch]``, rounded up.
    """

    def __init__(self, channels: int, dim: int, patch_size: int):
        super().__init__()
        halvings = int(math.log2(patch_size))
        widths = [channels, *(dim // 2**left for left in reversed(range(halvings)))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(outputs)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """Map of patch embeddings."""
        return self.proj(images)


class FourierPositions(nn.Module):
    """Sines and cosines of row and column, projected to the width of the tokens; relative to the map's size."""

    def __init__(self, dim: int):
        super().__init__()
        self.token_projection = nn.Conv2d(2 * FOURIER_FEATURES, dim, 1)

    def forward(self, height: int, width: int) -> Tensor:
        """``[1, dim, height, width]``."""
        device = self.token_projection.weight.device
        rows, columns = _waves(height, device), _waves(width, device)
        grid = torch.cat(
            [rows[:, None].expand(height, width, -1), columns[None].expand(height, width, -1)], dim=2
        )  # [height, width, 2 FOURIER_FEATURES], rows first
        return self.token_projection(grid.permute(2, 0, 1)[None].to(self.token_projection.weight.dtype))


def _waves(count: int, device: torch.device) -> Tensor:
    """Features ``[count, FOURIER_FEATURES]`` of positions 1..count scaled to one turn: sin, cos, sin, cos, ..."""
    positions = torch.arange(1, count + 1, device=device, dtype=torch.float32)
    angles = positions / (count + 1e-6) * (2 * math.pi)
    exponents = torch.arange(0, FOURIER_FEATURES, 2, device=device, dtype=torch.float32) / FOURIER_FEATURES
    angles = angles[:, None] / FOURIER_BASE**exponents
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class CrossCovarianceAttention(nn.Module):
    """Attention of d x d channels in each head; queries and keys have unit length over the tokens (section 3.2)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, tokens, dim] -> [n, tokens, dim]``; linear in the number of tokens."""
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 4, 1)
        q, k = normalize(q, dim=-1), normalize(k, dim=-1)  # [n, heads, d, tokens]
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)  # [n, heads, d, d]
        return self.proj((weights @ v).permute(0, 3, 1, 2).reshape(n, tokens, dim))


class LocalPatchInteraction(nn.Module):
    """Two depthwise 3x3 convolutions: what channel attention cannot do, neighbours talk to each other."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """``[n, height * width, dim]`` in and out."""
        grid = x.transpose(1, 2).reshape(len(x), -1, height, width)
        return self.conv2(self.bn(self.act(self.conv1(grid)))).flatten(2).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with GELU between, four times as wide inside; ``[..., dim] -> [..., dim]``."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.fc2(self.act(self.fc1(x)))


class PatchBlock(nn.Module):
    """Channel attention, local interaction, MLP: each on its own norm, scaled by a gamma, added to the tokens.

    The numbers in the names follow the official code, where the third norm and gamma act second.
    """

    def __init__(self, size: Size, drop_path: float):
        super().__init__()
        dim = size.dim
        self.norm1, self.attn = _norm(dim), CrossCovarianceAttention(dim, size.heads)
        self.norm3, self.local_mp = _norm(dim), LocalPatchInteraction(dim)
        self.norm2, self.mlp = _norm(dim), MLP(dim)
        self.gamma1 = _gamma(dim, size.layer_scale)
        self.gamma2 = _gamma(dim, size.layer_scale)
        self.gamma3 = _gamma(dim, size.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """``[n, height * width, dim]`` in and out."""
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), height, width))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


class ClassAttention(nn.Module):
    """The class token looks at all tokens (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 1 + tokens, dim] -> [n, 1, dim]``."""
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        gathered = nn.functional.scaled_dot_product_attention(q[:, :, :1], k, v)  # [n, heads, 1, d]
        return self.proj(gathered.transpose(1, 2).reshape(n, 1, dim))


class ClassBlock(nn.Module):
    """Class attention and an MLP on the class token; the patch tokens are only normalised and added (as published)."""

    def __init__(self, size: Size):
        super().__init__()
        dim, self.norm_all_tokens = size.dim, size.norm_all_tokens
        self.norm1, self.attn = _norm(dim), ClassAttention(dim, size.heads)
        self.norm2, self.mlp = _norm(dim), MLP(dim)
        self.gamma1 = _gamma(dim, size.layer_scale)
        self.gamma2 = _gamma(dim, size.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 1 + tokens, dim]`` in and out, class token first."""
        normed = self.norm1(x)
        x = x + self.gamma1 * torch.cat([self.attn(normed), normed[:, 1:]], dim=1)
        x = self.norm2(x) if self.norm_all_tokens else torch.cat([self.norm2(x[:, :1]), x[:, 1:]], dim=1)
        # The residual is the normed value, and patch tokens are added to themselves: trained weights expect both.
        return x + torch.cat([self.gamma2 * self.mlp(x[:, :1]), x[:, 1:]], dim=1)


@TRUNKS.register("xcit")
class XCiT(nn.Module):
    """Cross-covariance image transformer; cost grows with the number of patches, not with its square.

    Linear layers and the class token are initialised truncated-normal with std 0.02, biases to 0, convolutions as
    torch does. Parameters without classifier: small12 25.9M, medium24 83.9M. ``strides`` are the pixels from one token
    to the next in the map after each block (``stage_map``).

    Options:
        size: "nano12", "tiny12", "small12", "small24" or "medium24" (width and number of blocks)
        patch_size: 16, or 8 = four times the patches, slower and better
        drop_path: share of residual branches dropped per image, equal in all blocks (DINO: small12 0.05, medium24 0.15)
    """

    def __init__(
        self,
        channels: int,
        *,
        size: Literal["nano12", "tiny12", "small12", "small24", "medium24"] = "small12",
        patch_size: Literal[8, 16] = 16,
        drop_path: Fraction = 0.0,
    ):
        super().__init__()
        made = SIZES[size]
        self.feature_dim = made.dim
        self.patch_embed = PatchStem(channels, made.dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, made.dim))
        self.pos_embeder = FourierPositions(made.dim)
        self.blocks = nn.ModuleList(PatchBlock(made, drop_path) for _ in range(made.depth))
        self.cls_attn_blocks = nn.ModuleList(ClassBlock(made) for _ in range(CLASS_BLOCKS))
        self.norm = _norm(made.dim)
        self.strides = (patch_size,) * made.depth
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _patches(self, images: Tensor, blocks: int) -> tuple[Tensor, int, int]:
        """Patch tokens ``[n, rows * columns, F]`` after the first blocks, with rows and columns."""
        grid = self.patch_embed(images)
        height, width = grid.shape[-2:]
        x = (grid + self.pos_embeder(height, width)).flatten(2).transpose(1, 2)
        for block in list(self.blocks)[:blocks]:
            x = block(x, height, width)
        return x, height, width

    def stage_maps(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """``stage_map`` for some numbers of blocks, increasing."""
        return [self.stage_map(images, stage) for stage in stages]

    def stage_map(self, images: Tensor, stages: int) -> Tensor:
        """The map of patch tokens after the first blocks, through the last norm: ``[n, C, H, W] -> [n, F, H/p, W/p]``.

        Args:
            images: ``[n, C, H, W]``; sides are rounded up to whole patches.
            stages: 1 to the number of blocks. The class-attention blocks are not among them.
        """
        x, height, width = self._patches(images, stages)
        return self.norm(x).transpose(1, 2).unflatten(2, (height, width))

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Normed tokens ``[n, 1 + H/patch * W/patch, F]``, the class token first."""
        x, _, _ = self._patches(images, len(self.blocks))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.cls_attn_blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        """The class token: ``[n, C, H, W] -> [n, F]``."""
        return self.forward_tokens(images)[:, 0]
