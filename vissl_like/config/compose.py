"""Lays layers of settings over each other.

Groups are merged key by key, lists and plain values replaced (``PLUGINS`` is collected). A layer that names another
component starts that section afresh: options of the one below are not options of this one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vissl_like.config.layers import Layer
from vissl_like.config.schema import Settings, fields_of
from vissl_like.registry import REGISTRIES
from vissl_like.utils.errors import UserError

IMPLIED_DATASET = "auto"
"""Name of the dataset component that finds out what a path holds."""


@dataclass(frozen=True)
class Change:
    """A value that a higher layer replaced."""

    old: Any
    old_origin: str
    new: Any
    new_origin: str


@dataclass
class Composed:
    """All layers in one.

    Attributes:
        values: what was written, merged; no defaults.
        origins: dotted key -> ``file:line`` or ``command line``.
        changes: replaced values by dotted key, lowest value to highest.
        problems: messages for the user.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def written(self, key: str) -> str | None:
        """Where a value was written; None for a default."""
        return self.origins.get(key) or self.origins.get(key.partition("[")[0])

    def origin(self, key: str) -> str | None:
        """Where a key, or else the group it stands in, was written; None for a default."""
        while key not in self.origins:
            cut = max(key.rfind("."), key.rfind("["))
            if cut < 0:
                return None
            key = key[:cut]
        return self.origins[key]


def compose(layers: Iterable[Layer]) -> Composed:
    """Merges layers, the lowest first.

    Args:
        layers: as read; they are not changed.
    """
    composed = Composed()
    for layer in layers:
        _Merge(composed, layer).section(Settings, composed.values, layer.values, "")
    return composed


class _Merge:
    """One layer on its way into the settings below it."""

    def __init__(self, into: Composed, layer: Layer):
        self.into, self.layer = into, layer

    def section(self, cls: type, low: dict[str, Any], high: dict[str, Any], path: str) -> None:
        """Merges ``high`` into ``low``, which is changed."""
        fields = fields_of(cls)
        for name, value in high.items():
            key = f"{path}{name}"
            metadata = fields[name].metadata if name in fields else {}
            if "section" in metadata and isinstance(value, dict) and isinstance(low.get(name, {}), dict):
                self._mark_group(key)
                self.section(metadata["section"], low.setdefault(name, {}), value, f"{key}.")
            elif "component" in metadata:
                self.component(low, name, value, key, metadata)
            elif "components" in metadata and isinstance(value, dict) and isinstance(low.get(name, {}), dict):
                self._mark_group(key)
                for entry, options in value.items():
                    self.hook(low.setdefault(name, {}), entry, options, f"{key}.{entry}")
            elif key == "PLUGINS" and isinstance(value, list) and isinstance(low.get(name, []), list):
                low[name] = low.get(name, []) + [plugin for plugin in value if plugin not in low.get(name, [])]
                self._take_origins(key)
            else:
                self.plain(low, name, value, key)

    def component(self, low: dict[str, Any], name: str, value: Any, key: str, metadata: Any) -> None:
        """Options are merged if the component stays the same one."""
        old = low.get(name)
        if not (isinstance(old, dict) and isinstance(value, dict)):
            self.plain(low, name, value, key)
            return
        implied = IMPLIED_DATASET if metadata["short"] == "path" else None
        before = old.get("name", implied if "path" in old else None)
        after = value.get("name", before)
        if implied and "path" in value and "name" not in value and not _takes_path(metadata["component"], before):
            after = implied
        if before is not None and after != before:
            self.into.changes[f"{key}.name"] = Change(before, self._below(f"{key}.name"), after, self._origin(key))
            low[name] = copy.deepcopy(value)
            self._take_origins(key)
        else:
            self._mark_group(key)
            self.options(old, value, key)

    def options(self, low: dict[str, Any], high: dict[str, Any], path: str) -> None:
        """Groups inside a component are merged too."""
        for name, value in high.items():
            key = f"{path}.{name}"
            if isinstance(value, dict) and isinstance(low.get(name), dict):
                self._mark_group(key)
                self.options(low[name], value, key)
            else:
                self.plain(low, name, value, key)

    def hook(self, low: dict[str, Any], name: str, value: Any, key: str) -> None:
        """A group adds or adjusts a hook; null removes it."""
        old = low.get(name)
        if value is None:
            if old is None:
                self.into.problems.append(
                    f"{key} = null ({self._origin(key)}): null removes a hook, but none is called {name!r} below. To "
                    f"switch it on as it is, write {name}: {{}}."
                )
                return
            self.plain(low, name, None, key)
            del low[name]
        elif isinstance(value, dict) and isinstance(old, dict):
            self._mark_group(key)
            self.options(old, value, key)
        else:
            self.plain(low, name, value, key)

    def plain(self, low: dict[str, Any], name: str, value: Any, key: str) -> None:
        """Replaces a value."""
        if name in low and low[name] != value:
            below = self.into.changes.get(key)
            old, old_origin = (below.old, below.old_origin) if below else (low[name], self._below(key))
            self.into.changes[key] = Change(old, old_origin, value, self._origin(key))
        low[name] = copy.deepcopy(value)
        self._take_origins(key)

    def _below(self, key: str) -> str:
        return self.into.written(key) or "default"

    def _origin(self, key: str) -> str:
        return self.layer.origins.get(key, self.layer.source)

    def _mark_group(self, key: str) -> None:
        self.into.origins.setdefault(key, self._origin(key))

    def _take_origins(self, key: str) -> None:
        inside = (f"{key}.", f"{key}[")
        for known in [known for known in self.into.origins if known.startswith(inside)]:
            del self.into.origins[known]
        self.into.origins.update({k: v for k, v in self.layer.origins.items() if k.startswith(inside)})
        self.into.origins[key] = self._origin(key)


def _takes_path(registry: str, name: str | None) -> bool:
    """Whether the dataset called ``name`` has an option ``path``; only a known one without it says no."""
    if name is None:
        return True
    try:
        component = REGISTRIES[registry].describe(name)
    except (UserError, OSError, SyntaxError, ValueError, TypeError):
        return True
    return "path" in component.options or component.open_options
