"""Arguments to checked settings."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vissl_like.config.annotations import parse_kind, spell
from vissl_like.config.check import check_settings, component_at
from vissl_like.config.complete import complete
from vissl_like.config.compose import Change, compose
from vissl_like.config.interpolate import UNRESOLVED, interpolate
from vissl_like.config.layers import Layer, read_layers
from vissl_like.config.names import Names
from vissl_like.config.schema import Settings, defaults, fields_of
from vissl_like.config.values import convert
from vissl_like.plugins import announce_plugins
from vissl_like.utils.errors import SettingsError, UserError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

_OVERRIDE = re.compile(r"^config\.([^=]+)=(.*)$", re.DOTALL)


@dataclass
class LoadedSettings:
    """Checked settings of a run.

    Attributes:
        resolved: every setting with its value, read only, in the structure of ``schema.Settings``.
        given: what the user wrote, bases and overrides in one; dumped as YAML it makes the same run.
        origins: dotted key -> ``file:line`` or ``command line``; keys that are absent have their default.
        plugins: modules and files that every process loads.
        sources: files that the settings came from, lowest first, and ``command line``.
        changes: values that a higher layer replaced.
        from_environment: path of each value that holds something of an environment variable -> its text as written.
    """

    resolved: DictConfig
    given: dict[str, Any]
    origins: dict[str, str]
    plugins: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    changes: dict[str, Change] = field(default_factory=dict)
    from_environment: dict[tuple[str, ...], str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """All settings as plain values, for files and the screen.

        What came from the environment stands there as it was written, ``${oc.env:NAME}``: it may be a secret, and
        records are shown to others.
        """
        from omegaconf import OmegaConf

        values: Any = OmegaConf.to_container(self.resolved)
        for path, written in self.from_environment.items():
            _put(values, path, written)
        return values


def load_settings(arguments: list[str], below: LoadedSettings | None = None) -> LoadedSettings:
    """Reads, composes and checks the settings that a command line asks for.

    Args:
        arguments: ``config=NAME_OR_FILE`` and ``config.KEY=VALUE`` in any order and number.
        below: settings that these are laid over, all but their ENGINE: what a suite's command line says holds for all
            of its entries.

    Raises:
        UserError: an argument or a file cannot be read.
        SettingsError: settings are wrong; all problems are listed.
    """
    configs, overrides = split_arguments(arguments)
    layers = read_layers(configs, overrides)
    if below is not None:
        layers.insert(0, _as_layer(below))
    plugins, problems = _announce(layers)
    composed = compose(layers)
    followed = interpolate(composed.values, defaults())
    values = followed.values
    problems += composed.problems
    problems += [f"{key} ({composed.origin(key) or 'default'}): {text}" for key, text in followed.problems]
    full = complete(values)
    problems += check_settings(full, composed)
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))
    return LoadedSettings(
        resolved=_structured(full),
        given=composed.values,
        origins=composed.origins,
        plugins=plugins,
        sources=[layer.source for layer in layers],
        changes=composed.changes,
        from_environment=followed.from_environment,
    )


def _put(values: Any, path: tuple[str, ...], text: str) -> None:
    """Replaces what stands at ``path``, if anything does."""
    for depth, part in enumerate(path):
        key: Any = int(part) if isinstance(values, list) else part
        if not (key in values if isinstance(values, dict) else isinstance(values, list) and key < len(values)):
            return
        if depth == len(path) - 1:
            values[key] = text
        values = values[key]


def _as_layer(settings: LoadedSettings) -> Layer:
    values = {name: copy.deepcopy(value) for name, value in settings.given.items() if name != "ENGINE"}
    return Layer("below", values, dict(settings.origins))


def announce_only(arguments: list[str]) -> None:
    """Makes the components of plugins known without checking settings, for ``--list`` and ``--help``.

    Raises:
        UserError: an argument, a file or a plugin is wrong.
    """
    _, problems = _announce(read_layers(*split_arguments(arguments)))
    if problems:
        raise SettingsError(problems)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of settings files, and overrides as ``(key, text of the value)``.

    Raises:
        UserError: an argument is neither.
    """
    configs, overrides = [], []
    for argument in arguments:
        override = _OVERRIDE.match(argument)
        if argument.startswith("config="):
            configs.append(argument.removeprefix("config="))
        elif override:
            overrides.append((override[1], override[2]))
        else:
            raise UserError(f"cannot read the argument {argument!r}.{_meant(argument)}")
    return configs, overrides


def _meant(argument: str) -> str:
    key, equals, _ = argument.lstrip("-").partition("=")
    first = key.split(".")[0]
    if equals and (first in fields_of(Settings) or nearest(first, fields_of(Settings))):
        return f" Did you mean 'config.{argument.lstrip('-')}'?"
    if argument.endswith((".yaml", ".yml")):
        return f" Did you mean 'config={argument}'?"
    if argument.startswith("config.") and not equals:
        return " It has no value: write config.KEY=VALUE."
    return " Write config=FILE to choose settings and config.KEY=VALUE to change one; --help lists them."


def _announce(layers: list[Layer]) -> tuple[list[str], list[str]]:
    """Makes the plugins' components known; returns all plugins, and messages for those that fail."""
    wanted: list[str] = []
    for layer in layers:
        listed = layer.values.get("PLUGINS")
        wanted += [plugin for plugin in listed if isinstance(plugin, str)] if isinstance(listed, list) else []
    wanted = list(dict.fromkeys(wanted))
    try:
        return announce_plugins(wanted), []
    except Exception:  # told plugin by plugin below
        return wanted, _plugin_problems(wanted)


def _plugin_problems(plugins: list[str]) -> list[str]:
    problems = []
    for plugin in [*plugins, None]:
        try:
            announce_plugins([] if plugin is None else [plugin])
        except UserError as error:
            problems.append(f"{'an installed plugin is wrong' if plugin is None else 'PLUGINS'}: {error}")
        except Exception as error:  # finding a module runs the code of the packages it lies in
            problems.append(f"PLUGINS: the plugin {plugin!r} cannot be read: {type(error).__name__}: {error}")
    return list(dict.fromkeys(problems))


def _structured(full: dict[str, Any]) -> DictConfig:
    """Read-only settings in OmegaConf's form, typed by the schema."""
    from omegaconf import OmegaConf

    _convert_options(Settings, full)
    settings = OmegaConf.merge(OmegaConf.structured(Settings), full)
    OmegaConf.set_readonly(settings, True)
    return settings  # type: ignore[return-value]


def _convert_options(cls: type, values: dict[str, Any]) -> None:
    """Brings whole numbers to float where a component's option is a float, in place."""
    for name, entry in fields_of(cls).items():
        value, metadata = values[name], entry.metadata
        if "section" in metadata:
            _convert_options(metadata["section"], value)
        elif "component" in metadata and value is not None:
            _convert(metadata["component"], value["name"], value, metadata["extra"])
        elif "components" in metadata:
            for hook, options in value.items():
                _convert(metadata["components"], hook, options, None)


def _convert(registry: str, name: str, options: dict[str, Any], extra: type | None) -> None:
    component = component_at(registry, name)
    for key, value in options.items():
        if extra and key in fields_of(extra):
            options[key] = convert(parse_kind(fields_of(extra)[key].metadata["kind"]), value)
        elif key in component.options and value is not UNRESOLVED:
            options[key] = convert(parse_kind(component.options[key].annotation, Names(component.file)), value)


def describe_change(key: str, change: Change) -> str:
    """``TRAIN.global_batch: 256 (base.yaml:3) -> 64 (command line)``."""
    return f"{key}: {spell(change.old)} ({change.old_origin}) -> {spell(change.new)} ({change.new_origin})"
