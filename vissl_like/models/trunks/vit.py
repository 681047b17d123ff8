"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929; sizes and use of DeiT, arXiv:2012.12877, and DINO,
arXiv:2104.14294), under the key names that DINO's official models and timm share.

A state dict of theirs without a classifier loads as it is. Images of any size and proportions are taken: the table of
positions is interpolated the way DINO's official models do it, which is not the way timm does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from vissl_like.models.drop_path import DropPath
from vissl_like.registry import TRUNKS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction

LAYOUTS: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Width, blocks and heads by size."""

GRID_OFFSET = 0.1
"""Added to the rows and columns of patches before they are divided by those of the table: an official guard against
rounding down that, in today's torch, also shifts where the table is sampled. Weights were trained with it."""


LONGEST_EXPLICIT = 512
"""Tokens of an image up to which attention is computed step by step where that is faster."""

Layout = Sequence[tuple[int, int]]
"""Stretches of tokens that were packed into one: images, and tokens of each."""


class Attention(nn.Module):
    """Multi-head self-attention; ``[n, N, d] -> [n, N, d]``, or packed ``[T, d] -> [T, d]``.

    Args:
        width: d.
        heads: number of heads, a divisor of d.
        explicit: softmax(q k^T / sqrt(d / heads)) v step by step instead of torch's fused function; None: what is
            faster.
    """

    def __init__(self, width: int, heads: int, explicit: bool | None):
        super().__init__()
        self.heads, self.explicit = heads, explicit
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[n, heads, N, d / heads]`` each."""
        return self._divided(self.qkv(tokens))

    def _divided(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = packed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def _step_by_step(self, queries: Tensor) -> bool:
        if self.explicit is not None:
            return self.explicit
        slow = queries.device.type == "cpu" and queries.dtype == torch.bfloat16
        return slow and queries.shape[2] <= LONGEST_EXPLICIT

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """How much each token looks at each other one: ``[n, heads, N, N]``, rows sum to 1."""
        return ((queries * self.scale) @ keys.transpose(-2, -1)).softmax(dim=-1)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """Every token's mixture of the values of its own image's, projected.

        Args:
            tokens: ``[n, N, d]``, or ``[T, d]``: images of several sizes, packed.
            layout: of packed tokens.
        """
        if layout is None:
            return self.proj(self._mixed(self.qkv(tokens)))
        stretches = self.qkv(tokens).split([images * count for images, count in layout])
        mixed = [
            self._mixed(stretch.unflatten(0, shape)).flatten(0, 1)
            for stretch, shape in zip(stretches, layout, strict=True)
        ]
        return self.proj(torch.cat(mixed))

    def _mixed(self, packed: Tensor) -> Tensor:
        """``[n, N, 3 d] -> [n, N, d]``."""
        queries, keys, values = self._divided(packed)
        if self._step_by_step(queries):
            mixed = self.weights(queries, keys) @ values
        else:
            mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return mixed.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linear layers with GELU between; ``[..., d] -> [..., d]``, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Every token by itself."""
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """Attention, then MLP, each on a LayerNorm and with a shortcut; ``[n, N, d] -> [n, N, d]``, also packed."""

    def __init__(self, width: int, heads: int, drop_prob: float, explicit: bool | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, explicit)
        self.drop_path = DropPath(drop_prob)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """The two residual sums; either branch of an image is dropped by itself."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), layout), layout)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)), layout)

    def attention(self, tokens: Tensor) -> Tensor:
        """The attention weights ``[n, heads, N, N]`` that ``forward`` uses for these tokens."""
        queries, keys, _ = self.attn.queries_keys_values(self.norm1(tokens))
        return self.attn.weights(queries, keys)


class PatchEmbed(nn.Module):
    """Patches to tokens; ``[n, C, H, W] -> [n, (H // p) (W // p), d]``, row by row; what is over at the right and
    bottom is not looked at."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """A linear layer on every patch."""
        return self.proj(images).flatten(2).transpose(1, 2)


@TRUNKS.register("vit")
class VisionTransformer(nn.Module):
    """ViT-Ti/S/B/L with patches of any size; the features are the class token after the last LayerNorm.

    Linear layers, class token and positions are initialised truncated normal with standard deviation 0.02, biases 0,
    the convolution that cuts patches as torch does it.

    Options:
        size: "tiny" (width 192, 3 heads), "small" (384, 6), "base" (768, 12), each of 12 blocks, or "large" (1024, 16,
            24 blocks)
        patch_size: side of a patch in pixels (16, 8 and 5 are usual); cost grows with the number of patches and faster
        image_size: side in pixels of the square images that the table of positions is made for; others are
            interpolated, so weights trained elsewhere need the size that they were made for
        drop_path: probability that a residual branch of an image is dropped while training, rising linearly from 0 in
            the first block to this in the last
        attention: "sdpa" is torch's fused attention; "explicit" computes it step by step; "auto" does so where it is
            faster: on a CPU in bf16, up to 512 tokens an image (its memory grows with their square)
        depth: blocks instead of the usual number
    """

    packs_sizes = True

    def __init__(
        self,
        channels: int,
        *,
        size: Literal["tiny", "small", "base", "large"] = "small",
        patch_size: Count = 16,
        image_size: Count = 224,
        drop_path: Fraction = 0.0,
        attention: Literal["auto", "sdpa", "explicit"] = "auto",
        depth: Count | None = None,
    ):
        super().__init__()
        width, usual, heads = LAYOUTS[size]
        if image_size < patch_size:
            raise UserError(
                f"MODEL.TRUNK.image_size is {image_size}, below the side {patch_size} of one patch (patch_size). Make "
                "it at least that, or the patches smaller."
            )
        self.patch_size, self.feature_dim = patch_size, width
        self.table_side = image_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.table_side**2 + 1, width))
        self.patch_embed = PatchEmbed(channels, width, patch_size)
        count = usual if depth is None else depth
        rates = [drop_path * block / max(1, count - 1) for block in range(count)]
        explicit = None if attention == "auto" else attention == "explicit"
        self.blocks = nn.ModuleList(Block(width, heads, rate, explicit) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of whole patches in an image of so many pixels.

        Raises:
            UserError: not even one patch fits.
        """
        rows, columns = height // self.patch_size, width // self.patch_size
        if rows == 0 or columns == 0:
            raise UserError(
                f"an image of {height} x {width} pixels (height x width) has no room for a patch of {self.patch_size}; "
                "give larger images (views) or a smaller MODEL.TRUNK.patch_size"
            )
        return rows, columns

    def positions(self, height: int, width: int) -> Tensor:
        """Positions of the class token and of the patches of an image of so many pixels: ``[1, N + 1, d]``.

        The table as it is if the image is square and has as many patches; else interpolated (also for as many patches
        in another shape).
        """
        rows, columns = self.grid(height, width)
        side = self.table_side
        if rows * columns == side**2 and height == width:
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        factors = ((rows + GRID_OFFSET) / side, (columns + GRID_OFFSET) / side)
        # The factors, not the size they lead to, must set where the table is sampled.
        table = nn.functional.interpolate(
            table, scale_factor=factors, mode="bicubic", align_corners=False, recompute_scale_factor=False
        )
        assert table.shape[2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], table.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    def _tokens(self, images: Tensor) -> Tensor:
        """What the first block sees: ``[n, C, H, W] -> [n, N + 1, d]``, the class token first."""
        positions = self.positions(images.shape[2], images.shape[3])
        patches = self.patch_embed(images)
        return torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + positions

    def forward(self, images: Tensor | list[Tensor]) -> Tensor:
        """The class token: ``[n, C, H, W] -> [n, d]``.

        Images of several sizes, one tensor each, go through together: layers that work token by token see all tokens
        at once, attention stays inside of each image. Features are in the order of the list.

        Raises:
            UserError: the images are smaller than a patch.
        """
        if not isinstance(images, Tensor):
            return self._packed(images)
        tokens = self._tokens(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def _packed(self, sizes: list[Tensor]) -> Tensor:
        stretches = [self._tokens(images) for images in sizes]
        layout = [(len(stretch), stretch.shape[1]) for stretch in stretches]
        tokens = torch.cat([stretch.flatten(0, 1) for stretch in stretches])
        for block in self.blocks:
            tokens = block(tokens, layout)
        starts = accumulate((images * count for images, count in layout[:-1]), initial=0)
        first = [
            torch.arange(images, device=tokens.device) * count + start
            for start, (images, count) in zip(starts, layout, strict=True)
        ]
        return self.norm(tokens[torch.cat(first)])

    def intermediate_layers(self, images: Tensor, count: int) -> list[Tensor]:
        """All tokens after each of the last ``count`` blocks, through the last LayerNorm: ``[n, N + 1, d]`` each.

        Raises:
            UserError: there are fewer blocks.
        """
        if not 1 <= count <= len(self.blocks):
            raise UserError(f"{count} last blocks were asked for; this network has 1 to {len(self.blocks)}")
        tokens, found = self._tokens(images), []
        for position, block in enumerate(self.blocks):
            tokens = block(tokens)
            if position >= len(self.blocks) - count:
                found.append(self.norm(tokens))
        return found

    def last_attention(self, images: Tensor) -> Tensor:
        """Attention weights of the last block: ``[n, heads, N + 1, N + 1]``, rows sum to 1; row 0 is the class token's.

        The patches follow row by row, see ``grid``. The same whatever ``attention`` is set to.
        """
        tokens = self._tokens(images)
        for block in list(self.blocks)[:-1]:
            tokens = block(tokens)
        return self.blocks[-1].attention(tokens)  # type: ignore[operator]
