"""``--show``: the settings of a run as YAML that makes the same run, with where each came from."""

from __future__ import annotations

from typing import Any

from vissl_like.component import Component
from vissl_like.config.check import component_at
from vissl_like.config.compose import Composed
from vissl_like.config.load import LoadedSettings, describe_change
from vissl_like.config.schema import Settings, defaults, fields_of
from vissl_like.config.yaml_text import dump_inline

_COMMENT_COLUMN = 56


def show_text(loaded: LoadedSettings) -> str:
    """Resolved settings with their origins; sections that the engine does not use, and unset settings, are left out.

    An option that was not given is shown with its default from the component's signature.
    """
    values = loaded.record()
    engine = component_at("engines", values["ENGINE"]["name"])
    used = engine.facts.get("used_sections", tuple(fields_of(Settings)))
    writer = _Writer(Composed(origins=loaded.origins))
    for line in _heading(loaded):
        writer.lines.append(f"# {line}")
    for name, entry in fields_of(Settings).items():
        if name in used or name in ("PLUGINS", "ENGINE", "SEED", "OUTPUT_DIR"):
            writer.field(name, values[name], defaults()[name], entry.metadata, name, 0)
    return "\n".join(writer.lines)


def _heading(loaded: LoadedSettings) -> list[str]:
    lines = [f"from {' < '.join(loaded.sources) or 'defaults'}"]
    if loaded.changes:
        lines.append("changed on the way:")
        lines += [f"  {describe_change(key, change)}" for key, change in loaded.changes.items()]
    return lines


class _Writer:
    """Lines of YAML with a comment each."""

    def __init__(self, composed: Composed):
        self.composed, self.lines = composed, list[str]()

    def field(self, name: str, value: Any, default: Any, metadata: Any, key: str, depth: int) -> None:
        """One setting or section."""
        if "section" in metadata:
            self.open(name, depth)
            start = len(self.lines)
            for inner, entry in fields_of(metadata["section"]).items():
                self.field(inner, value[inner], default[inner], entry.metadata, f"{key}.{inner}", depth + 1)
            if len(self.lines) == start:
                self.lines.pop()
        elif "component" in metadata and isinstance(value, dict):
            self.open(name, depth)
            self.value("name", value["name"], f"{key}.name", depth + 1)
            self.options(component_at(metadata["component"], value["name"]), value, key, depth + 1)
        elif "components" in metadata:
            self.hooks(name, value, metadata["components"], depth)
        elif value != default or self.composed.written(key) is not None or value not in (None, []):
            self.value(name, value, key, depth)

    def hooks(self, name: str, value: dict[str, Any], registry: str, depth: int) -> None:
        """Components under their own names."""
        if value:
            self.open(name, depth)
        for hook, options in value.items():
            key = f"{name}.{hook}"
            if options:
                self.open(hook, depth + 1)
            else:
                self.value(hook, {}, key, depth + 1)  # an empty entry would read as null, which removes it
            self.options(component_at(registry, hook), options, key, depth + 2)

    def options(self, component: Component, value: dict[str, Any], key: str, depth: int) -> None:
        """Options as given, then those at their defaults."""
        for name, item in value.items():
            if name != "name" and not (item is None and self.composed.written(f"{key}.{name}") is None):
                self.value(name, item, f"{key}.{name}", depth)
        for option in component.options.values():
            if option.name not in value and not option.required:
                self.lines.append(f"{'  ' * depth}# {option.name}: {dump_inline(_plain(option.default))}  (default)")

    def open(self, name: str, depth: int) -> None:
        """The line above a group."""
        self.lines.append(f"{'  ' * depth}{dump_inline(name)}:")

    def value(self, name: str, value: Any, key: str, depth: int) -> None:
        """One line, or one per entry of a list of groups."""
        indent = "  " * depth
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            self.open(name, depth)
            for place, item in enumerate(value):
                self.line(f"{indent}  - {dump_inline(item)}", f"{key}[{place}]")
        else:
            self.line(f"{indent}{dump_inline(name)}: {dump_inline(value)}", key)

    def line(self, text: str, key: str) -> None:
        """Text, and where it came from."""
        self.lines.append(f"{text:<{_COMMENT_COLUMN}}  # {self.composed.written(key) or 'default'}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
