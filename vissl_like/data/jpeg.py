"""JPEG decoded by simplejpeg, where it is installed: Pillow's pixels, faster, and without the GIL.

Both use libjpeg-turbo, but nothing promises that their copies of it are alike. So they are compared once, on an image
made for it; where a pixel differs Pillow decodes everything.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

_COLOURS = {"RGB": "RGB", "L": "GRAY"}


def why() -> str:
    """One line on what decodes JPEG files, and why."""
    return _decoder()[1]


def decode(data: bytes, mode: str) -> np.ndarray | None:
    """Pixels of a JPEG file, uint8 ``[H, W, 3]`` for mode RGB and ``[H, W]`` for L.

    Args:
        data: the file.
        mode: of the file itself, as Pillow names it; nothing is converted.

    Returns:
        the pixels, or None where Pillow should try: simplejpeg is missing, or finds anything wrong with the file.
    """
    decoder = _decoder()[0]
    return None if decoder is None else _attempt(decoder, data, mode)


def _attempt(decoder: Callable[..., Any], data: bytes, mode: str) -> np.ndarray | None:
    try:
        pixels = decoder(data, _COLOURS[mode], strict=True)
    except (ValueError, MemoryError, OverflowError):
        return None
    return pixels[..., 0] if mode == "L" else pixels


@lru_cache(maxsize=1)
def _decoder() -> tuple[Callable[..., Any] | None, str]:
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None, "JPEG files are decoded by Pillow; simplejpeg is faster: pip install 'vissl-like[fast]'"
    if not all(_alike(decode_jpeg, mode) for mode in _COLOURS):
        return None, "JPEG files are decoded by Pillow: simplejpeg gives other pixels here"
    return decode_jpeg, "JPEG files are decoded by simplejpeg, which gives Pillow's pixels"


def _alike(decoder: Callable[..., Any], mode: str) -> bool:
    """Whether both decode an image with smooth and with rough parts, of odd size, to the same pixels."""
    values = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    values[:, :25] = np.arange(25, dtype=np.uint8)[None, :, None] * 9
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, "JPEG", quality=83)
    expected = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    found = _attempt(decoder, file.getvalue(), mode)
    return found is not None and np.array_equal(found, expected)
