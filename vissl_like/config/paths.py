"""Ways into nested settings by dotted keys."""

from __future__ import annotations

import re
from typing import Any


def groups_of(key: str) -> list[str]:
    """The groups a key stands in, outermost first."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def value_at(values: Any, key: str) -> Any:
    """The value of a dotted key in nested dictionaries, None if it is not there."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def unset_places(value: Any, where: str = "") -> list[str]:
    """Places of ``???`` in a value."""
    if isinstance(value, dict):
        return [place for key, item in value.items() for place in unset_places(item, f"{where}.{key}")]
    if isinstance(value, list):
        return [place for number, item in enumerate(value) for place in unset_places(item, f"{where}[{number}]")]
    return [where] if isinstance(value, str) and value == "???" else []


def part_at(value: Any, where: str) -> Any:
    """The part of a value that a problem is about; ``...`` if it is not there."""
    for part in re.findall(r"\[(\d+)\]|\.([^.\[]+)", where):
        try:
            value = value[int(part[0])] if part[0] else value[part[1]]
        except (KeyError, IndexError, TypeError):
            return ...
    return value
