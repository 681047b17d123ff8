"""Sheets of small images: the parts that crops and neighbours share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vissl_like.visualize.picture import INK, PAPER

if TYPE_CHECKING:
    from PIL import Image, ImageDraw


def as_image(pixels: np.ndarray | Image.Image) -> Image.Image:
    """An RGB PIL image of uint8 ``[C, H, W]`` (1 or 3 channels), or of a PIL image of any mode."""
    from PIL import Image

    if isinstance(pixels, Image.Image):
        return pixels.convert("RGB")
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3):
        raise ValueError(f"expected uint8 [1 or 3, H, W], got {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))).convert(
        "RGB"
    )


def fitted(image: Image.Image, box: int) -> tuple[Image.Image, float]:
    """The image scaled to fit a square of ``box`` pixels, and the factor; small ones grow by whole pixels."""
    from PIL import Image

    factor = box / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    # Blocks show the true pixels of a small crop; a photo made smaller needs a filter.
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS), factor


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """White paper and a pen."""
    from PIL import Image, ImageDraw

    paper = Image.new("RGB", (width, height), PAPER)
    return paper, ImageDraw.Draw(paper)


def write(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int = 13, color: str = INK) -> None:
    """A line of text, its middle top at (x, y)."""
    from PIL import ImageFont

    pen.text((x, y), text, fill=color, font=ImageFont.load_default(size), anchor="ma")


def shortened(text: str, most: int) -> str:
    """The end of a long text, which tells paths apart."""
    return text if len(text) <= most else "..." + text[3 - most :]
