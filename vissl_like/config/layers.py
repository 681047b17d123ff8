"""The layers of a run's settings in the order in which they are laid over each other: bases, files, command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vissl_like.config.files import find_config, read_text, shown
from vissl_like.config.schema import field_at
from vissl_like.config.yaml_text import MAX_DEPTH, read_yaml
from vissl_like.utils.errors import UserError

COMMAND_LINE = "command line"
MAX_FILES = 100


@dataclass
class Layer:
    """Settings from one place.

    Attributes:
        source: file or ``command line``.
        values: nested dictionaries as written, components always as dictionaries.
        origins: dotted key -> where it was written.
    """

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def read_layers(configs: list[str], overrides: list[tuple[str, str]]) -> list[Layer]:
    """Layers from the lowest to the highest; a file that several others build on is laid once, at its first place.

    Args:
        configs: names or paths of files, in the order given.
        overrides: ``("TRAIN.length", "10 epochs")`` pairs from the command line.

    Raises:
        UserError: a file or a value cannot be read, or bases go in a circle.
    """
    layers: list[Layer] = []
    done: set[Path] = set()
    for name in configs:
        _read_file(find_config(name), (), done, layers)
    if overrides:
        layers.append(_command_line(overrides))
    return layers


def _read_file(file: Path, above: tuple[Path, ...], done: set[Path], layers: list[Layer]) -> None:
    if file in above:
        circle = " -> ".join(shown(entry) for entry in [*above[above.index(file) :], file])
        raise UserError(f"{shown(file)}: BASES go in a circle: {circle}")
    if file in done:
        return
    done.add(file)
    if len(done) > MAX_FILES:
        raise UserError(f"{shown(file)}: more than {MAX_FILES} settings files are listed under BASES")
    name = shown(file)
    values, lines = read_yaml(read_text(file), name)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{name}:1: settings are groups such as 'TRAIN:' with indented lines below, not a plain value")
    bases = values.pop("BASES", None) or []
    for place, base in enumerate([bases] if isinstance(bases, str) else bases if isinstance(bases, list) else [bases]):
        line = lines.get(f"BASES[{place}]", lines["BASES"])
        try:
            found = find_config(base, file.parent)
        except UserError as error:
            raise UserError(f"{name}:{line}: BASES: {error}") from None
        _read_file(found, (*above, file), done, layers)
    layer = Layer(name, origins={key: f"{name}:{line}" for key, line in lines.items()})
    layer.values = _spelt_out(values, "", layer.origins, file.parent)
    layers.append(layer)


def _command_line(overrides: list[tuple[str, str]]) -> Layer:
    layer = Layer(COMMAND_LINE)
    for key, text in overrides:
        parts = key.split(".")
        if not all(parts) or len(parts) > MAX_DEPTH:
            raise UserError(f"config.{key[:100]}=...: not a key; write config.SECTION.key=value")
        if parts[0] == "BASES":
            raise UserError("BASES can only be written in a file; on the command line give config= several times")
        value, lines = read_yaml(text, f"command line, config.{key}=")
        inside = {f"{key}{inner}" if inner.startswith("[") else f"{key}.{inner}": COMMAND_LINE for inner in lines}
        layer.origins.update({key: COMMAND_LINE, **inside})
        place: dict[str, Any] = layer.values
        for depth, part in enumerate(parts[:-1]):
            inner = place.get(part)
            if not isinstance(inner, dict):
                inner = place[part] = {}
            place = inner
            layer.origins[".".join(parts[: depth + 1])] = COMMAND_LINE
        value = _spelt_out(value, key, layer.origins)
        old = place.get(parts[-1])
        place[parts[-1]] = _joined(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return layer


def _joined(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Both, ``high`` where they differ."""
    joined = dict(low)
    for key, value in high.items():
        old = joined.get(key)
        joined[key] = _joined(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return joined


def _spelt_out(value: Any, key: str, origins: dict[str, str], folder: Path | None = None) -> Any:
    """Short forms in full: ``LOSS: swav`` is ``{name: swav}``, ``TRAIN: /photos`` is ``{name: auto, path: /photos}``.

    Plugin files in a YAML are relative to its folder if they are there, else to the current one.
    """
    entry = field_at(key) if key else None
    metadata = entry.metadata if entry else {}
    if (not key or "section" in metadata) and isinstance(value, dict):
        below = f"{key}." if key else ""
        return {name: _spelt_out(inner, f"{below}{name}", origins, folder) for name, inner in value.items()}
    if key == "PLUGINS" and isinstance(value, list):
        return [_plugin(plugin, folder) for plugin in value]
    if "component" in metadata and isinstance(value, str) and not value.startswith("${"):
        full = {"name": value} if metadata["short"] == "name" else {"name": "auto", "path": value}
        origins.update({f"{key}.{option}": origins[key] for option in full})
        return full
    return value


def _plugin(plugin: Any, folder: Path | None) -> Any:
    if folder is None or not isinstance(plugin, str) or not plugin.endswith(".py") or Path(plugin).is_absolute():
        return plugin
    try:
        return str(folder / plugin) if (folder / plugin).is_file() else plugin
    except (OSError, ValueError):
        return plugin
