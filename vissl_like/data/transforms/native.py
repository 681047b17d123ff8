"""The native kernel for views: one call per image, without the GIL, equal to ``pixels.render`` to the bit.

It is a C extension that installing builds where there is a compiler. Without it, the same functions work with Pillow,
from the same parameters to the same pixels, but slower and with the GIL held. ``VISSL_LIKE_NATIVE`` in the environment,
read when the kernel is first asked for, can be ``0`` (never use it), ``1`` (an error if it cannot be used), ``plain``
(use it, but not the instructions of this processor) or ``auto`` (use it where it is there; also if not set).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
from PIL import Image

from vissl_like.data.transforms.parameters import ViewParameters
from vissl_like.data.transforms.pixels import RESAMPLING, render, to_array
from vissl_like.utils.errors import UserError

ENVIRONMENT_VARIABLE = "VISSL_LIKE_NATIVE"
_CHOICES = ("auto", "0", "1", "plain")
# Shapes (width, height, side of the result) on both sides of the rule by which Pillow 13 chooses the order of passes.
_PROBES = ((8, 64, 6), (20, 37, 6), (20, 34, 6), (64, 8, 6), (4, 12, 8), (9, 9, 6))


@dataclass(frozen=True)
class _Choice:
    """What renders: the C module or None, its two switches, and why."""

    module: ModuleType | None
    by_cost: bool
    plain: bool
    why: str


def available() -> bool:
    """Whether the kernel is in use.

    Raises:
        UserError: the environment demands a kernel that is not there, or asks for something unknown.
    """
    return _choice().module is not None


def why() -> str:
    """One line that says what makes the views, and why.

    Raises:
        UserError: as ``available``.
    """
    return _choice().why


def render_into(pixels: np.ndarray, views: Sequence[ViewParameters], rows: Sequence[np.ndarray]) -> None:
    """Makes the views of one image straight into the memory they are wanted in.

    Args:
        pixels: uint8 ``[H, W]`` (grey) or ``[H, W, 3]`` (RGB), C-contiguous; left unchanged.
        views: V parameters, each with its crop inside the image.
        rows: V C-contiguous uint8 arrays ``[C, size, size]``, C = 1 or 3, filled here. Any array that supports the
            buffer protocol will do; they must not overlap with ``pixels``.

    Raises:
        ValueError: an array or a parameter is not as it must be.
    """
    choice = _choice()
    if choice.module is None:
        _by_pillow(pixels, views, rows)
    else:
        choice.module.render_into(pixels, list(views), list(rows), choice.by_cost, choice.plain)


def window_into(
    pixels: np.ndarray,
    box: tuple[int, int, int, int],
    whole: tuple[int, int],
    place: tuple[int, int],
    size: int,
    interpolation: str,
    row: np.ndarray,
) -> None:
    """The square that is cut out of a part of the image after resizing it.

    Args:
        pixels: as in ``render_into``.
        box: the part (top, left, height, width) of the image, inside it.
        whole: (height, width) that it is resized to.
        place: (top, left) of the square in the result.
        size: its side; it lies inside the result.
        interpolation: ``bilinear`` or ``bicubic``.
        row: as in ``render_into``.

    Raises:
        ValueError: an array or a number is not as it must be.
    """
    choice = _choice()
    if interpolation not in RESAMPLING:
        raise ValueError(f"interpolation is {interpolation!r}; it can be {' or '.join(RESAMPLING)}")
    if choice.module is not None:
        bicubic = interpolation == "bicubic"
        choice.module.window_into(pixels, box, whole, place, size, bicubic, row, choice.by_cost, choice.plain)
        return
    top, left, height, width = box
    image = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    if whole != (height, width):
        image = image.resize(whole[::-1], RESAMPLING[interpolation])
    top, left = place
    row[...] = to_array(image.crop((left, top, left + size, top + size)))


def _by_pillow(pixels: np.ndarray, views: Sequence[ViewParameters], rows: Sequence[np.ndarray]) -> None:
    image = Image.fromarray(pixels)
    for view, row in zip(views, rows, strict=True):
        row[...] = render(image, view)


@lru_cache(maxsize=1)
def _choice() -> _Choice:
    """Reads the environment, once."""
    asked = os.environ.get(ENVIRONMENT_VARIABLE, "auto").strip().lower() or "auto"
    if asked not in _CHOICES:
        raise UserError(f"{ENVIRONMENT_VARIABLE} is {asked!r}; it can be {', '.join(_CHOICES[:-1])} or {_CHOICES[-1]}")
    if asked == "0":
        return _Choice(None, False, False, f"views are made by Pillow: {ENVIRONMENT_VARIABLE}=0")
    try:
        module = importlib.import_module("vissl_like.data.transforms._views")
    except ImportError as error:
        if asked in ("1", "plain"):
            raise UserError(
                f"{ENVIRONMENT_VARIABLE} is {asked}, and the native kernel for views is not there ({error}). "
                "Install the package again where a C compiler and Python's header files are, or take the variable away."
            ) from error
        return _Choice(None, False, False, "views are made by Pillow: the native kernel was not built (no C compiler?)")
    by_cost, order = _order_of_passes()
    loops = "plain C" if asked == "plain" else module.loops
    return _Choice(module, by_cost, asked == "plain", f"views are made by the native kernel ({loops}; {order})")


def _order_of_passes() -> tuple[bool, str]:
    """Whether the Pillow that is installed resizes heights first where that is cheaper, found out by resizing.

    A resize is two passes with rounding between them, so their order shows in the result. Up to version 12 Pillow
    always works on widths first; the kernel must do what the installed one does.
    """
    values = np.random.default_rng(0)
    seen = []
    for width, height, side in _PROBES:
        image = Image.fromarray(values.integers(0, 256, (height, width), dtype=np.uint8))
        made, filtering = image.resize((side, side), Image.Resampling.BICUBIC), Image.Resampling.BICUBIC
        widths_first = image.resize((side, height), filtering).resize((side, side), filtering)
        heights_first = image.resize((width, side), filtering).resize((side, side), filtering)
        by_rule = height - side > 0 and height - side > 2 * (width - side)
        expected = heights_first if by_rule else widths_first
        seen.append((made.tobytes() == widths_first.tobytes(), made.tobytes() == expected.tobytes()))
    if all(fixed for fixed, _ in seen):
        return False, "resizes widths first, as this Pillow does"
    if all(ruled for _, ruled in seen):
        return True, "resizes in the order of this Pillow"
    return False, "resizes widths first; this Pillow has another order, so values may differ by a level or a few"
