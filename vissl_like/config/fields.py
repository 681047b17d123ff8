"""Ways to declare a field of the schema."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, kind: str, help: str, *, unit: str = "") -> Any:
    """A plain setting.

    Args:
        default: value when nothing is given; a list is copied. None where ``kind`` does not allow it means "not set".
        kind: annotation text.
        help: what it does, in one line.
        unit: unit of the number, if it has one.
    """
    metadata = {"kind": kind, "help": help, "unit": unit}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def component(
    registry: str, help: str, default: str | None = None, *, short: str = "name", extra: type | None = None
) -> Any:
    """A registered component with its options.

    Args:
        registry: plural name of the registry.
        help: what it is for, in one line.
        default: name when nothing is given.
        short: what a bare text in its place means: the ``name``, or the ``path`` of a dataset.
        extra: dataclass of settings that the program, not the component, reads from the same section.
    """
    metadata = {"component": registry, "help": help, "short": short, "extra": extra}
    if default is None:
        return field(default=None, metadata=metadata)
    return field(default_factory=lambda: {"name": default}, metadata=metadata)


def components(registry: str, help: str) -> Any:
    """Several components of one registry, each under its own name."""
    return field(default_factory=dict, metadata={"components": registry, "help": help})


def section(cls: type) -> Any:
    """A group of settings."""
    return field(default_factory=cls, metadata={"section": cls, "help": summary(cls)})


def summary(cls: type) -> str:
    """First line of a section's docstring."""
    return (cls.__doc__ or "").strip().split("\n", 1)[0]
