"""Decoded images kept in the memory of a process."""

from __future__ import annotations

import logging
from collections.abc import Callable

from PIL import Image

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of decoded pixels that one process keeps, over all its datasets."""

_used = 0
_announced = False


class DecodedImages:
    """Read-through store of decoded images by position.

    Every process has its own: a worker starts with an empty one (also when it is copied by pickling), and they all stop
    taking in images once the process holds ``MEMORY_LIMIT`` bytes, which is logged once.
    """

    def __init__(self) -> None:
        self._images: dict[int, Image.Image] = {}
        self._held = 0

    def get(self, position: int, load: Callable[[int], Image.Image]) -> Image.Image:
        """The image at a position, from memory if it is there, else from ``load``. Not to be changed in place."""
        image = self._images.get(position)
        if image is None:
            image = load(position)
            size = _bytes(image)
            if _claim(size):
                self._images[position] = image
                self._held += size
        return image

    def __len__(self) -> int:
        return len(self._images)

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]

    def __del__(self) -> None:
        _release(self._held)


def _bytes(image: Image.Image) -> int:
    # PIL stores RGB in four bytes a pixel.
    return image.width * image.height * (1 if image.mode == "L" else 4)


def _claim(size: int) -> bool:
    global _used, _announced
    if _used + size > MEMORY_LIMIT:
        if not _announced:
            _announced = True
            logger.warning(
                "cache 'ram': %.1f GiB of decoded images are in memory, the limit of a process; "
                "the others will be decoded each time",
                _used / 1024**3,
            )
        return False
    _used += size
    return True


def _release(size: int) -> None:
    global _used
    _used -= size
