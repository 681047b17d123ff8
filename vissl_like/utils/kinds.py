"""Named kinds of option values: what a number means and which values it may take.

A component annotates its keyword-only options with these names (``temperature: Positive = 0.1``). Settings are checked
against them from the source text alone, so a bad value is reported before torch is imported.
"""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Closed interval of numbers; ``open_low`` excludes the lower end."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval (NaN never does)."""
        if value != value:
            return False
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        return above and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{'>' if self.open_low else '>='} {self.low:g} and <= {self.high:g}"
        if self.low is not None:
            return f"{'>' if self.open_low else '>='} {self.low:g}"
        return f"<= {self.high:g}" if self.high is not None else "any number"


Positive = Annotated[float, Range(low=0, open_low=True)]
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
Count = Annotated[int, Range(low=1)]
Index = Annotated[int, Range(low=0)]
Duration = Annotated[str, "duration"]
"""Text with a unit: ``10 epochs``, ``500 steps``, ``5%`` (of the whole run)."""

KINDS: dict[str, tuple[type, Range | None]] = {
    "Positive": (float, Range(low=0, open_low=True)),
    "NonNegative": (float, Range(low=0)),
    "Fraction": (float, Range(low=0, high=1)),
    "Count": (int, Range(low=1)),
    "Index": (int, Range(low=0)),
    "Duration": (str, None),
}
