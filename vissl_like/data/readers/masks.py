"""Indexed masks: PNG files whose pixels are object or class numbers, as DAVIS and VOC have them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from vissl_like.data.datasets.base import MAX_PIXELS
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import write_atomic

VOID = 255
"""Pixels that are not counted: VOC's object borders."""


def palette() -> list[int]:
    """The 256 colours of VOC and DAVIS, ``[768]`` values 0..255: bits 0, 3, 6 of an index make red, and so on."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for index in range(256):
        for bit in range(8):
            colours[index, bit % 3] |= ((index >> bit) & 1) << (7 - bit // 3)
    return [int(value) for value in colours.reshape(-1)]


def read_mask(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The numbers in an indexed mask, ``[H, W]`` uint8.

    Raises:
        UserError: it is not there, cannot be read, is too large, or holds colours instead of numbers.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > max_pixels:
                raise UserError(f"the mask {str(path)!r} has {image.width} x {image.height} pixels, which is too many")
            if image.mode not in ("P", "L", "1"):
                raise UserError(
                    f"the mask {str(path)!r} has the mode {image.mode!r}; a mask is an indexed PNG (P) or a grey one "
                    "of 8 bits (L) whose values are numbers of objects or classes, not colours"
                )
            return np.array(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the mask {str(path)!r} cannot be read: {error}") from error


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Writes ``[H, W]`` numbers 0..255 as an indexed PNG with the usual palette.

    Raises:
        OSError: it cannot be written.
    """
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(palette())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    write_atomic(path, stream.getvalue())
