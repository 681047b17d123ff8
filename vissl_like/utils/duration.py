"""Durations with units: ``10 epochs``, ``500 steps``, ``5%`` of the run."""

import re
from dataclasses import dataclass
from functools import lru_cache

_PATTERN = re.compile(r"^\s*(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>epochs?|steps?|%)\s*$")
HOW_TO = "write a number with a unit, such as '10 epochs', '500 steps' or '5%'"


@dataclass(frozen=True)
class ParsedDuration:
    """A number of ``epoch``, ``step`` or ``%``."""

    value: float
    unit: str

    def steps(self, steps_per_epoch: int, total_steps: int | None = None) -> int:
        """Optimizer steps that this duration lasts, rounded to the nearest step.

        Raises:
            ValueError: a percentage where the total is what is being asked for.
        """
        if self.unit == "step":
            return round(self.value)
        if self.unit == "epoch":
            return round(self.value * steps_per_epoch)
        if total_steps is None:
            raise ValueError("a percentage needs a run length to refer to; use epochs or steps here")
        return round(self.value / 100 * total_steps)


@lru_cache(maxsize=256)
def parse_duration(text: str) -> ParsedDuration:
    """Reads a duration.

    Raises:
        ValueError: the text is not a number with a known unit; the message says how to write one.
    """
    match = _PATTERN.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration: {HOW_TO}")
    value, unit = float(match["value"]), match["unit"].rstrip("s")
    if unit == "step" and value != int(value):
        raise ValueError(f"{text!r} is not a whole number of steps")
    if unit == "%" and value > 100:
        raise ValueError(f"{text!r} is more than the whole run")
    return ParsedDuration(value, unit)
