"""Adds defaults to what was given."""

from __future__ import annotations

import copy
from typing import Any

from vissl_like.config.compose import IMPLIED_DATASET
from vissl_like.config.schema import Settings, defaults, fields_of


def complete(given: dict[str, Any]) -> dict[str, Any]:
    """The given settings with every default filled in; wrong entries are left for the check to find.

    Args:
        given: composed settings without references.
    """
    return _section(Settings, given, defaults())


def _section(cls: type, given: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    full = dict(copy.deepcopy(given))
    for name, entry in fields_of(cls).items():
        metadata = entry.metadata
        if name not in full:
            full[name] = copy.deepcopy(default[name])
        value = full[name]
        if "section" in metadata and isinstance(value, dict):
            full[name] = _section(metadata["section"], value, default[name])
        elif "component" in metadata and isinstance(value, dict):
            full[name] = _component(value, default[name], metadata)
    order = [*fields_of(cls), *(name for name in full if name not in fields_of(cls))]
    return {name: full[name] for name in order}


def _component(given: dict[str, Any], default: dict[str, Any] | None, metadata: Any) -> dict[str, Any]:
    full = dict(given)
    if "name" not in full:
        implied = IMPLIED_DATASET if metadata["short"] == "path" and "path" in full else (default or {}).get("name")
        full = full if implied is None else {"name": implied, **full}
    if metadata["extra"] is not None:
        for name, entry in fields_of(metadata["extra"]).items():
            full.setdefault(name, entry.default)
    return full
