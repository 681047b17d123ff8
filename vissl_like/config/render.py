"""What the command line prints about settings: ``--help``, ``--list``, ``--show``."""

from __future__ import annotations

import textwrap
from dataclasses import MISSING, Field
from typing import Any

from vissl_like.component import Component, Option
from vissl_like.config.annotations import parse_kind, spell
from vissl_like.config.check import component_at
from vissl_like.config.files import config_names, config_summaries, shown
from vissl_like.config.names import Names
from vissl_like.config.schema import Settings, field_at, fields_of, walk
from vissl_like.registry import REGISTRIES, Registry
from vissl_like.utils.errors import UserError, nearest

WIDTH = 120
CONFIGS = "configs"
"""Topic of ``--list`` beside the kinds of components: the settings files that come with the package."""

USAGE = """\
usage: vissl-like config=NAME_OR_FILE [config=...] [config.SECTION.key=VALUE ...]

  config=quick/NAME            settings that come with the package, or a path ending in .yaml; later ones are laid over
  config.TRAIN.length='5 epochs'   changes one setting; values are YAML: [a, b], {a: 1}, null, true, 'text'
  --check                      say everything that is wrong with the settings, and which weights and data are missing
                               or cannot be read, and stop
  --show                       print the settings of the run and where each comes from, and stop
  --estimate                   print the memory that each process of the run needs, start nothing, and stop
  --list [KIND]                components by kind: losses, heads, trunks, hooks, datasets, ...; or configs, the names
                               that config= takes
  --help [TOPIC]               on everything, a section (TRAIN), a setting (TRAIN.length), a component (losses/NAME)
  --version                    print the version
"""

MOST_USED = (
    "DATA.TRAIN",
    "DATA.PROBE_TRAIN",
    "OUTPUT_DIR",
    "TRAIN.length",
    "TRAIN.global_batch",
    "TRAIN.max_per_rank_batch",
    "OPTIMIZER.base_lr",
    "DISTRIBUTED.processes",
    "ENGINE",
    "SEED",
)


def help_text(topic: str | None = None) -> str:
    """Text of ``--help``.

    Args:
        topic: None, a section, a setting, a kind of component, or ``kind/name``.

    Raises:
        UserError: the topic does not exist.
    """
    if topic is None:
        return _help_all()
    if topic in REGISTRIES:
        return list_text(topic)
    kind, slash, name = topic.partition("/")
    if slash and kind in REGISTRIES:
        return _help_component(component_at(kind, name))
    key = topic.removeprefix("config.")
    entry = field_at(key)
    if entry is not None:
        return "\n".join(_help_entry(key, entry))
    named = [c for registry in REGISTRIES.values() for c in registry.components() if c.name == topic]
    if named:
        return "\n\n".join(_help_component(component) for component in named)
    known = [*(full for full, _ in walk()), *REGISTRIES]
    names = [component.name for registry in REGISTRIES.values() for component in registry.components()]
    raise UserError(
        f"there is no help on {topic!r}.{nearest(topic, [*known, *names])} Topics: {', '.join(fields_of(Settings))}; "
        f"{', '.join(REGISTRIES)}; a setting such as TRAIN.length; a component such as losses/NAME."
    )


def _help_all() -> str:
    lines = [
        USAGE,
        "Settings files that come with the package:",
        _wrapped(", ".join(config_names()) or "none", "  "),
        "",
    ]
    lines.append("Most used settings:")
    for key in MOST_USED:
        entry = field_at(key)
        assert entry is not None, key
        lines += _entry_lines(key, entry)
    lines += ["", "All settings, section by section. A component also takes its own options: --help KIND/NAME.", ""]
    for name, entry in fields_of(Settings).items():
        lines += [*_help_entry(name, entry), ""]
    return "\n".join(lines).rstrip()


def _help_entry(key: str, entry: Field[Any]) -> list[str]:
    inner = entry.metadata.get("section")
    if inner is None:
        lines = _entry_lines(key, entry)
        for name, extra in fields_of(entry.metadata["extra"]).items() if entry.metadata.get("extra") else ():
            lines += _entry_lines(f"{key}.{name}", extra)
        return lines
    lines = [f"{key}: {entry.metadata['help']}"]
    for full, below in walk(inner, f"{key}."):
        if "section" not in below.metadata:
            lines += _entry_lines(full, below)
    return lines


def _entry_lines(key: str, entry: Field[Any]) -> list[str]:
    unit = entry.metadata.get("unit")
    return [
        f"  {key}",
        _wrapped(f"{entry.metadata['help']}{f' [{unit}]' if unit else ''}", "      "),
        _wrapped(f"{_kind_words(entry)}; default {_default_words(entry)}", "      "),
    ]


def _kind_words(entry: Field[Any]) -> str:
    metadata = entry.metadata
    if "component" in metadata:
        kind = metadata["component"]
        short = "a path, or a group" if metadata["short"] == "path" else "a name, or a group"
        return f"{short} with name and options (--list {kind})"
    if "components" in metadata:
        return f"a group of names (--list {metadata['components']})"
    return str(parse_kind(metadata["kind"]))


def _default_words(entry: Field[Any]) -> str:
    default = _default(entry)
    if isinstance(default, dict) and list(default) == ["name"]:
        return str(default["name"])
    none = entry.metadata.get("kind") and "None" not in entry.metadata["kind"]
    return "none: must be given" if default is None and none else spell(default)


def _default(entry: Field[Any]) -> Any:
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def _help_component(component: Component) -> str:
    doc = component.doc.split("\nOptions:")[0].rstrip()
    lines = [f"{component.name} ({component.registry.lower()}, {shown(component.file)}:{component.line})", "", doc, ""]
    names = Names(component.file)
    lines.append("Options:" if component.options else "It has no options.")
    for option in component.options.values():
        lines.append(f"  {option.name}: {_default_of(option)}")
        if option.doc:
            lines.append(_wrapped(option.doc, "      "))
        kind = parse_kind(option.annotation, names)
        lines.append(_wrapped(str(kind) if kind.understood() else option.annotation, "      "))
    facts = {key: value for key, value in component.facts.items() if key.startswith(("needs_", "gives_")) and value}
    lines += [f"{key.replace('_', ' ')}: {spell(value)}" for key, value in facts.items()]
    return "\n".join(lines)


def _default_of(option: Option) -> str:
    if option.required:
        return "must be given"
    # A default that is an expression is kept as its text by ``component``; texts that are defaults look the same.
    return f"default {spell(option.default)}"


def list_text(kind: str | None = None) -> str:
    """Text of ``--list``: every component, or those of one kind, with one-line descriptions and files; or ``configs``.

    Raises:
        UserError: there is no such kind.
    """
    if kind == CONFIGS:
        return _list_configs()
    if kind is not None and kind not in REGISTRIES:
        known = (CONFIGS, *REGISTRIES)
        raise UserError(f"there is no kind of component {kind!r}.{nearest(kind, known)} {', '.join(known)}.")
    chosen = REGISTRIES if kind is None else {kind: REGISTRIES[kind]}
    return "\n\n".join(f"{name}:\n{_list(registry)}" for name, registry in chosen.items())


def _list_configs() -> str:
    rows = config_summaries()
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows) or "none"


def _list(registry: Registry) -> str:
    rows = sorted((c.name, c.summary, shown(c.file)) for c in registry.components())
    width = max((len(name) for name, _, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {text}  ({file})" for name, text, file in rows) or "  none"
