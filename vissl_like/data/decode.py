"""From a file or bytes to an 8-bit grey (``L``) or colour (``RGB``) PIL image, or ``UnreadableImage`` with the reason.

What is done with unusual pictures: EXIF rotation is applied; transparency is laid on white; 16-bit grey is scaled from
0..65535 to 0..255 (PIL's own conversion would clip it); of an animation the first frame is taken; anything larger than
``max_pixels`` is refused from its header, before memory is spent on its pixels; truncated files are refused, never
filled up with grey.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import lru_cache
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from vissl_like.data import jpeg
from vissl_like.data.datasets.base import MAX_PIXELS, UnreadableImage

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
"""File name endings (lower case) that are taken for images when a folder is scanned."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO")
_MODES = {1: "L", 3: "RGB"}
_HEADERS = 2**22
"""Bytes that a JPEG file may have beyond one for each value of its pixels: profiles, comments, a small preview."""
_ORIENTATION_CARRIERS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")

# Another package may have asked PIL to fill truncated images up with grey: such pictures would be learnt as they are.
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Our own limit is checked for every image; PIL's advance warning at half of it would come once per worker and picture.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_file(path: str, channels: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes the image in a file.

    Args:
        path: where it is; also what messages call it.
        channels: 3 for RGB, 1 for L.
        max_pixels: largest width times height accepted.

    Raises:
        UnreadableImage: the file is missing, empty, not an image, truncated, too large or of an unknown kind.
    """
    try:
        with open(path, "rb") as file:
            return _decode(file, path, channels, max_pixels)
    except OSError as error:
        raise UnreadableImage(path, error.strerror or str(error)) from error


def decode_bytes(data: bytes, name: str, channels: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes the image in ``data``; ``name`` is what messages call it. Otherwise as ``decode_file``."""
    return _decode(io.BytesIO(data), name, channels, max_pixels)


def file_pixels(path: str, channels: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """What ``decode_file`` gives as uint8 ``[H, W, 3]`` or ``[H, W]``; a plain JPEG file without PIL (see ``jpeg``)."""
    try:
        with open(path, "rb") as file:
            return _pixels(file, path, channels, max_pixels)
    except OSError as error:
        raise UnreadableImage(path, error.strerror or str(error)) from error


def bytes_pixels(data: bytes, name: str, channels: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """What ``decode_bytes`` gives, as ``file_pixels``."""
    return _pixels(io.BytesIO(data), name, channels, max_pixels)


def read_header(path: str, max_pixels: int = MAX_PIXELS) -> tuple[str, tuple[int, int]]:
    """Format name and stored (width, height) of an image file, without decoding its pixels.

    Raises:
        UnreadableImage: the file is missing, empty, not an image or too large.
    """
    try:
        with open(path, "rb") as file:
            image = _open(file, path, max_pixels)
            return image.format or "image", image.size
    except OSError as error:
        raise UnreadableImage(path, error.strerror or str(error)) from error


def read_header_bytes(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[str, tuple[int, int]]:
    """Format name and (width, height) of the image in ``data``; otherwise as ``read_header``."""
    image = _open(io.BytesIO(data), name, max_pixels)
    return image.format or "image", image.size


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """A decoded image of any mode as ``L`` (1 channel) or ``RGB`` (3 channels); the same object if it is one already.

    Raises:
        ValueError: there is no defined way from its mode or its values to 8 bits.
    """
    wanted = _MODES[channels]
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(to_eight_bits(np.asarray(image)))
    elif "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = _on_white(image)
    return image if image.mode == wanted else image.convert(wanted)


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Integers in 0..65535, or floats in 0..1, 0..255 or 0..65535 (the smallest that holds them all), as 0..255.

    Raises:
        ValueError: values outside 0..65535, or not numbers.
    """
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):
        raise ValueError(f"values from {low:g} to {high:g}; only 0..65535 (or 0..1, 0..255 for floats) can be scaled")
    if values.dtype.kind in "iu":
        return to_eight_bits(values.astype(np.uint16))
    scale = 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


def _decode(file: IO[bytes], name: str, channels: int, max_pixels: int) -> Image.Image:
    return _load(_open(file, name, max_pixels), name, channels)


def _pixels(file: IO[bytes], name: str, channels: int, max_pixels: int) -> np.ndarray:
    image = _open(file, name, max_pixels)
    if image.format == "JPEG" and image.mode == _MODES[channels] and _is_upright(image):
        # More bytes than pixels are no image, and not worth the memory.
        size = file.seek(0, io.SEEK_END)
        if size <= _HEADERS + image.width * image.height * channels:
            file.seek(0)
            found = jpeg.decode(file.read(size), image.mode)
            if found is not None and found.shape[1::-1] == image.size:
                return found
        file.seek(0)
        image = _open(file, name, max_pixels)
    return np.asarray(_load(image, name, channels))


def _load(image: Image.Image, name: str, channels: int) -> Image.Image:
    try:
        image.load()
        _turn_upright(image)
        image = to_channels(image, channels)
        image.info = {}  # comments and profiles would be copied with every crop
        return image
    except MemoryError as error:
        raise UnreadableImage(name, f"not enough memory for {image.width} x {image.height} pixels") from error
    except Exception as error:
        # Decoders meet broken files with OSError, SyntaxError, ValueError, struct.error, zlib.error, IndexError, ...
        raise UnreadableImage(name, _short(error)) from error


def _open(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """Reads the header only."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        # PIL refuses at twice this number whatever we do; the user has asked for more.
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        raise UnreadableImage(name, "empty file" if _is_empty(file) else "not an image, or a broken header") from error
    except Exception as error:
        raise UnreadableImage(name, _short(error)) from error
    if image.width * image.height > max_pixels:
        raise UnreadableImage(
            name, f"{image.width} x {image.height} pixels are more than the limit max_pixels = {max_pixels}"
        )
    return image


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Formats that this build of PIL can read. Others are left out on purpose: reading EPS, for one, runs a program."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _turn_upright(image: Image.Image) -> None:
    # PIL turns TIFF files itself while loading them, and removes the tag.
    if any(key in image.info for key in _ORIENTATION_CARRIERS):
        # Broken EXIF data say nothing about the orientation; the pixels are good.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)


def _is_upright(image: Image.Image) -> bool:
    """Whether no record beside the pixels, as far as it can be read, says that they are to be turned."""
    return not any(key in image.info for key in _ORIENTATION_CARRIERS) or _orientation(image) not in range(2, 9)


def _orientation(image: Image.Image) -> object:
    with contextlib.suppress(Exception):
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return None


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    ground = Image.new("RGB", image.size, (255, 255, 255))
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def _is_empty(file: IO[bytes]) -> bool:
    return file.seek(0, io.SEEK_END) == 0


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
