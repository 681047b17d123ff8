"""Where a vision transformer looks: attention of the class token to the patches, for each head of the last block.

After DINO (Caron et al. 2021, arXiv:2104.14294, figures 1 and 4): a map for each head, and the patches that together
hold a given share of the head's attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vissl_like.visualize.picture import GREY, INK, ORANGE, STYLE, Picture, chart_png
from vissl_like.visualize.sheets import as_image, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADS_PER_ROW = 6
PANEL, COLUMN, GAP, LETTERS, TITLE = 1.6, 1.35, 0.1, 0.24, 0.3
"""Longest side of a panel, least width of a column, space between, height of the line above a panel and of the title,
in inches."""
FADED = 0.8
"""How far pixels outside of the mask go towards grey."""


def class_attention(trunk: nn.Module, image: Tensor) -> np.ndarray:
    """Attention of the class token to the patches.

    Args:
        trunk: has ``last_attention`` and ``grid`` (see the trunk ``vit``); in eval mode.
        image: normalised, ``[C, H, W]``, on the trunk's device.

    Returns:
        ``[heads, rows, columns]`` float64, one place for each patch; the class token's attention to itself is left
        out, so that a head's sum is below 1.
    """
    rows, columns = trunk.grid(*image.shape[1:])  # type: ignore[operator]
    with torch.inference_mode():
        weights = trunk.last_attention(image.unsqueeze(0))  # type: ignore[operator]
    return weights[0, :, 0, 1:].unflatten(1, (rows, columns)).double().cpu().numpy()


def mass_mask(attention: np.ndarray, share: float) -> np.ndarray:
    """The fewest patches of each head that hold a share of its attention.

    Sorted from small to large, those are kept at which the cumulative share exceeds 1 - ``share`` (DINO's official
    rule).

    Args:
        attention: ``[heads, rows, columns]``, not negative, each head's sum above 0.
        share: in [0, 1].

    Returns:
        bool, of the same shape.
    """
    flat = attention.reshape(len(attention), -1)
    order = flat.argsort(axis=1, kind="stable")
    ascending = np.take_along_axis(flat, order, axis=1)
    kept = np.cumsum(ascending / ascending.sum(axis=1, keepdims=True), axis=1) > 1 - share
    mask = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(mask, order, kept, axis=1)
    return mask.reshape(attention.shape)


def upscaled(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """``[..., rows, columns]`` -> ``[..., height, width]``, each pixel with the value of the patch it lies in."""
    rows, columns = values.shape[-2:]
    return values[..., np.arange(height) * rows // height, :][..., np.arange(width) * columns // width]


def attention_sheet(image: np.ndarray | Image.Image, attention: np.ndarray, share: float, name: str = "") -> Picture:
    """The image, and for each head its attention map and, below, the image with only the mask's patches in colour.

    Every map has its own scale from 0 to its largest value; above it stands how many times an even share that is.

    Args:
        image: what the network saw, uint8 ``[1 or 3, H, W]`` or a PIL image; H and W whole numbers of patches.
        attention: ``[heads, rows, columns]``.
        share: of the attention that the mask keeps, in [0, 1].
        name: of the image, for the title.
    """
    import matplotlib
    from matplotlib.figure import Figure

    photo = np.asarray(as_image(image))
    height, width = photo.shape[:2]
    heads, rows, columns = attention.shape
    mask = mass_mask(attention, share)
    peaks = attention.reshape(heads, -1).max(axis=1) / attention.reshape(heads, -1).mean(axis=1)
    sheet = _Sheet(height, width, min(heads, HEADS_PER_ROW) + 1, 2 * -(-heads // HEADS_PER_ROW))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=sheet.size)
        what = f"{width} x {height} pixels, {columns} x {rows} patches"
        figure.suptitle(f"{shortened(name, 60)}: {what}" if name else what, fontsize=9, color=INK, y=sheet.title)
        _pixels(sheet.panel(figure, 0, 0), photo, "image")
        note = f"top: attention\nof each head\n\nbelow: patches\nwith {100 * share:.0f} % of it"
        sheet.panel(figure, 1, 0).text(0.5, 0.5, note, ha="center", va="center", fontsize=7)
        for head in range(heads):
            band, place = divmod(head, HEADS_PER_ROW)
            above, below = (sheet.panel(figure, 2 * band + part, place + 1) for part in (0, 1))
            _pixels(above, upscaled(attention[head], height, width), f"head {head + 1}, peak {peaks[head]:.1f}x even")
            _pixels(below, _faded(photo, mask[head]), f"{100 * mask[head].mean():.0f} % of the patches")
            _outline(below, mask[head], height, width)
    kept = 100 * mask.mean(axis=(1, 2))
    alt = (
        f"Attention of the class token in the last block, {heads} heads, over {columns} x {rows} patches (across x "
        f"down). {100 * share:.0f} % of it lies on {kept.min():.0f} to {kept.max():.0f} % of the patches; the largest "
        f"values are {peaks.min():.1f} to {peaks.max():.1f} times an even share."
    )
    caption = (
        "Where the network looks: brighter patches get more attention of the class token. Below, the fewest patches "
        f"that hold {100 * share:.0f} % of it."
    )
    return Picture(chart_png(figure), alt, caption)


class _Sheet:
    """Where panels of an image's proportions lie on the paper; all in inches.

    Args:
        height, width: of the image.
        columns, rows: of panels.
    """

    def __init__(self, height: int, width: int, columns: int, rows: int):
        self.wide, self.high = PANEL * width / max(height, width), PANEL * height / max(height, width)
        self.column, self.row = max(self.wide, COLUMN) + GAP, self.high + LETTERS
        self.size = (GAP + columns * self.column, TITLE + rows * self.row + GAP)

    @property
    def title(self) -> float:
        """Height of the title's top, as a share of the paper's."""
        return 1 - 0.06 / self.size[1]

    def panel(self, figure: Figure, row: int, column: int) -> Axes:
        """Axes without lines, in the middle of their column, below their line of text."""
        left = GAP + column * self.column + (self.column - GAP - self.wide) / 2
        bottom = self.size[1] - TITLE - (row + 1) * self.row
        width, height = self.size
        axes = figure.add_axes((left / width, bottom / height, self.wide / width, self.high / height))
        axes.set_axis_off()
        return axes


def _pixels(axes: Axes, values: np.ndarray, title: str) -> None:
    """An image ``[H, W, 3]`` or a map ``[H, W]`` whose smallest colour is 0."""
    scale: Any = {} if values.ndim == 3 else {"cmap": "inferno", "vmin": 0.0, "vmax": max(float(values.max()), 1e-12)}
    axes.imshow(values, interpolation="nearest", aspect="equal", **scale)
    axes.set_title(title, fontsize=7, pad=3)


def _faded(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image, grey where the mask is not."""
    grey = np.array([int(GREY[place : place + 2], 16) for place in (1, 3, 5)])
    faded = (1 - FADED) * photo + FADED * grey
    inside = upscaled(mask, *photo.shape[:2])[..., None]
    return np.where(inside, photo, faded.round()).astype(np.uint8)


def _outline(axes: Axes, mask: np.ndarray, height: int, width: int) -> None:
    """Lines where kept patches meet others."""
    from matplotlib.collections import LineCollection

    rows, columns = mask.shape
    down, right = height / rows, width / columns
    lines = [
        [((column + 1) * right - 0.5, row * down - 0.5), ((column + 1) * right - 0.5, (row + 1) * down - 0.5)]
        for row, column in np.argwhere(mask[:, 1:] != mask[:, :-1])
    ] + [
        [(column * right - 0.5, (row + 1) * down - 0.5), ((column + 1) * right - 0.5, (row + 1) * down - 0.5)]
        for row, column in np.argwhere(mask[1:] != mask[:-1])
    ]
    axes.add_collection(LineCollection(lines, colors=ORANGE, linewidths=0.8), autolim=False)
