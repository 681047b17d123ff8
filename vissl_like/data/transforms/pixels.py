"""Does to the pixels what the parameters say, with PIL: bit for bit what torchvision does to PIL images.

Where a value's fate depends on nothing but itself (solarizing; brightness and contrast of grey images), a table of 256
entries is applied to the image's bytes. Such tables are PIL's own operation applied to the ramp 0, 1, ..., 255.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from vissl_like.data.transforms.parameters import ViewParameters

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))
_SOLARIZED = bytes(255 - level if level >= 128 else level for level in range(256))


def render(image: Image.Image, view: ViewParameters) -> np.ndarray:
    """One view of an image of mode L or RGB: contiguous uint8 ``[C, size, size]``, C = 1 or 3."""
    image = crop_and_resize(image, view)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.vertical_flip:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return _finish_grey(image, view) if image.mode == "L" else _finish_colour(image, view)


def crop_and_resize(image: Image.Image, view: ViewParameters) -> Image.Image:
    """The crop at the size of the view. Cropped first: ``resize(box=...)`` would look at pixels beyond the crop."""
    right, bottom = view.left + view.width, view.top + view.height
    if (view.left, view.top, right, bottom) != (0, 0, *image.size):
        image = image.crop((view.left, view.top, right, bottom))
    if image.size == (view.size, view.size):
        return image
    return image.resize((view.size, view.size), RESAMPLING[view.interpolation])


def to_array(image: Image.Image) -> np.ndarray:
    """Contiguous uint8 ``[C, H, W]`` of an image of mode L (C = 1) or RGB (C = 3)."""
    pixels = np.frombuffer(image.tobytes(), dtype=np.uint8)
    if image.mode == "L":
        return pixels.reshape(1, image.height, image.width).copy()
    return np.ascontiguousarray(pixels.reshape(image.height, image.width, 3).transpose(2, 0, 1))


def _finish_colour(image: Image.Image, view: ViewParameters) -> np.ndarray:
    for name, amount in view.jitter:
        image = _COLOUR_STEPS[name](image, amount)
    if view.grayscale:
        image = image.convert("L")  # from here on three equal channels, of which one is worked on
    if view.blur is not None:
        image = image.filter(ImageFilter.GaussianBlur(view.blur))
    if view.solarize:
        image = image.point(_SOLARIZED * len(image.getbands()))
    pixels = to_array(image)
    return np.repeat(pixels, 3, axis=0) if view.grayscale else pixels


def _finish_grey(image: Image.Image, view: ViewParameters) -> np.ndarray:
    """Works on the image's bytes, and makes an image of them again only to blur it."""
    data = image.tobytes()
    for name, amount in view.jitter:
        if name == "brightness":
            data = data.translate(_blend_table(0, amount))
        elif name == "contrast":
            mean = int(int(np.frombuffer(data, dtype=np.uint8).sum()) / len(data) + 0.5)
            data = data.translate(_blend_table(mean, amount))
        # hue and saturation leave grey as it is
    if view.blur is not None:
        image = Image.frombytes("L", image.size, data) if view.jitter else image
        data = image.filter(ImageFilter.GaussianBlur(view.blur)).tobytes()
    if view.solarize:
        data = data.translate(_SOLARIZED)
    return np.frombuffer(data, dtype=np.uint8).reshape(1, view.size, view.size).copy()


def _blend_table(level: int, factor: float) -> bytes:
    """What level + factor * (value - level) makes of 0, 1, ..., 255, as PIL rounds and clips it."""
    return Image.blend(_flat("L", _RAMP.size, level), _RAMP, factor).tobytes()


@lru_cache(maxsize=1024)
def _flat(mode: str, size: tuple[int, int], level: int) -> Image.Image:
    return Image.new(mode, size, level if mode == "L" else (level, level, level))


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return Image.blend(_flat("RGB", image.size, 0), image, factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    counts = image.convert("L").histogram()
    mean = int(sum(level * count for level, count in enumerate(counts)) / (image.width * image.height) + 0.5)
    return Image.blend(Image.new("RGB", image.size, (mean, mean, mean)), image, factor)


def _saturation(image: Image.Image, factor: float) -> Image.Image:
    return Image.blend(image.convert("L").convert("RGB"), image, factor)


def _hue(image: Image.Image, turns: float) -> Image.Image:
    # torchvision adds trunc(255 * turns) to a hue of 8 bits, which wraps round at 256.
    return image.convert("HSV").point(_hue_table(int(turns * 255) % 256)).convert("RGB")


@lru_cache(maxsize=256)
def _hue_table(shift: int) -> list[int]:
    return [(level + shift) % 256 for level in range(256)] + 2 * list(range(256))


_COLOUR_STEPS = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
