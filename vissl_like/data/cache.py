"""Decoded images kept in the memory of a process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of decoded pixels that one process keeps, over all its datasets."""

_claiming = threading.RLock()  # a store may be thrown away, and give its memory back, at any moment
_used = 0
_announced = False


class DecodedImages:
    """Read-through store of decoded images by position, for one or several threads.

    Every process has its own: a worker starts with an empty one (also when it is copied by pickling), and they all stop
    taking in images once the process holds ``MEMORY_LIMIT`` bytes, which is logged once.
    """

    def __init__(self) -> None:
        self._images: dict[int, np.ndarray] = {}

    def get(self, position: int, load: Callable[[int], np.ndarray]) -> np.ndarray:
        """The image at a position, from memory if it is there, else from ``load``. Not to be changed in place."""
        image = self._images.get(position)
        if image is None:
            image = load(position)
            if _claim(image.nbytes) and self._images.setdefault(position, image) is not image:
                _release(image.nbytes)  # another thread was first
        return image

    def __len__(self) -> int:
        return len(self._images)

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]

    def __del__(self) -> None:
        _release(sum(image.nbytes for image in self._images.values()))


def _claim(size: int) -> bool:
    global _used, _announced
    with _claiming:
        fits = _used + size <= MEMORY_LIMIT
        if fits:
            _used += size
    if not fits and not _announced:
        _announced = True
        logger.warning(
            "cache 'ram': %.1f GiB of decoded images are in memory, the limit of a process; "
            "the others will be decoded each time",
            _used / 1024**3,
        )
    return fits


def _release(size: int) -> None:
    global _used
    with _claiming:
        _used -= size
