"""No schedule."""

from __future__ import annotations

from vissl_like.records import Progress
from vissl_like.registry import SCHEDULES


@SCHEDULES.register("constant")
class Constant:
    """The base value throughout."""

    def __init__(self, base: float):
        self.base = base

    def __call__(self, progress: Progress) -> float:
        """The base value."""
        return self.base
