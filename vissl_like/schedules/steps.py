"""Drops at given places."""

from __future__ import annotations

from vissl_like.records import Progress
from vissl_like.registry import SCHEDULES
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Duration, Fraction


@SCHEDULES.register("steps")
class Steps:
    """The base value, multiplied by a factor at each of some places (RotNet, instance discrimination).

    Options:
        at: where, in epochs or steps from the beginning, increasing
        factor: what the value is multiplied by at each
    """

    def __init__(self, base: float, *, at: list[Duration], factor: Fraction = 0.1):
        self.base, self.at, self.factor = base, at, factor

    def __call__(self, progress: Progress) -> float:
        """Value for the update that starts at ``progress.step``."""
        places = [progress.steps_of(place) for place in self.at]
        if places != sorted(set(places)):
            raise UserError(f"the places of a steps schedule must increase, got {', '.join(self.at)}")
        return self.base * self.factor ** sum(progress.step >= place for place in places)
