"""How the C library treats memory that large tensors leave behind."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next tensor, for the rest of the process.

    By default it hands every large block back to the system at once, and the system maps and zeroes the pages of the
    next one again. A training step on a CPU frees and asks for the same blocks over and over. The peak of memory stays
    about the same; it is given back when the process ends.

    Returns:
        whether it was done: not where the environment already says how memory is to be treated, nor without glibc.
    """
    if any(os.environ.get(name) for name in _OWN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
