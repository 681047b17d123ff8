"""Checks settings against the schema and against the signatures of the components they name: all problems at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vissl_like.component import Component
from vissl_like.config.annotations import ANY, Kind, parse_kind, spell
from vissl_like.config.compose import Composed
from vissl_like.config.interpolate import UNRESOLVED
from vissl_like.config.names import Names
from vissl_like.config.needs import unmet_needs
from vissl_like.config.paths import groups_of, part_at, unset_places, value_at
from vissl_like.config.resolve import plan_job, split_batch
from vissl_like.config.schema import REQUIRED_BY_DEFAULT, Settings, field_at, fields_of, walk
from vissl_like.config.values import find_problems
from vissl_like.registry import REGISTRIES
from vissl_like.utils.duration import parse_duration
from vissl_like.utils.errors import SettingsError, UserError, nearest

_NAME = re.compile(r"^[\w.:-]+$")


def check_settings(values: dict[str, Any], composed: Composed) -> list[str]:
    """Messages for everything that is wrong, in the order of the settings.

    Args:
        values: all settings, defaults included, without references.
        composed: where each was written.
    """
    check = _Check(composed)
    check.section(Settings, values, "")
    check.required(values)
    check.relations(values)
    if "LOSS" in check.components:
        where = f"LOSS.name ({composed.origin('LOSS.name') or 'default'})"
        count_views = not check.bad_below("DATA.TRANSFORM")
        unmet = unmet_needs(check.components, values, count_views=count_views)
        check.problems += [f"{where}: {text}" for text in unmet]
    return check.problems


def component_at(registry: str, name: Any) -> Component:
    """The description of a component by name.

    Raises:
        UserError: there is none; the message gives the nearest.
    """
    entries = REGISTRIES[registry]
    if not isinstance(name, str) or not _NAME.match(name):
        raise UserError(entries.unknown(name if isinstance(name, str) else spell(name)))
    try:
        return entries.describe(name)
    except (SyntaxError, OSError, ValueError) as error:
        raise UserError(f"the file of the {entries.kind} {name!r} cannot be read: {error}") from None


class _Check:
    """Collects problems.

    Attributes:
        problems: messages so far.
        components: components in use, by dotted key; those whose name is wrong are absent.
        bad: keys that have a problem already.
    """

    def __init__(self, composed: Composed):
        self.composed = composed
        self.problems: list[str] = []
        self.components: dict[str, Component] = {}
        self.bad: set[str] = set()

    def say(self, key: str, text: str, value: Any = ...) -> None:
        """Notes a problem: key, value if there is one, where it was written, what is allowed."""
        self.bad.add(key)
        got = "" if value is ... else f" = {spell(value)}"
        self.note(f"{key}{got} ({self.composed.origin(key) or 'default'})", text)

    def missing(self, key: str, text: str) -> None:
        """Notes that a setting is absent."""
        self.bad.add(key)
        self.note(key, f"missing; {text}")

    def note(self, subject: str, text: str) -> None:
        """Adds a message, ended properly."""
        self.problems.append(f"{subject}: {text}" if text.endswith((".", "?")) else f"{subject}: {text}.")

    def section(self, cls: type, values: Any, path: str) -> None:
        """A group of settings."""
        if not isinstance(values, dict):
            self.say(path.rstrip("."), "must be a group of settings; remove the line to keep the defaults", values)
            return
        fields = fields_of(cls)
        for name, value in values.items():
            key = f"{path}{name}"
            if name not in fields:
                self.unknown(key, name, list(fields))
                continue
            metadata = fields[name].metadata
            if value is UNRESOLVED:
                self.bad.add(key)
            elif "section" in metadata:
                self.section(metadata["section"], value, f"{key}.")
            elif "component" in metadata:
                self.component(key, value, metadata)
            elif "components" in metadata:
                self.hooks(key, value, metadata)
            else:
                self.plain(key, value, fields[name].default, metadata["kind"])

    def unknown(self, key: str, name: str, known: list[str]) -> None:
        """A key that nobody reads."""
        elsewhere = [full for full, _ in walk() if full.rsplit(".", 1)[-1].casefold() == name.casefold()]
        if "." in name:
            self.say(key, "unknown setting. In a file, write the parts of a key as nested groups")
        elif elsewhere and not nearest(name, known):
            self.say(key, f"unknown setting. Did you mean '{elsewhere[0]}'?")
        else:
            self.say(key, f"unknown setting.{nearest(name, known)} Known here: {', '.join(known)}")

    def plain(self, key: str, value: Any, default: Any, annotation: str) -> None:
        """A value that the program reads."""
        if value is None and default is None and self.composed.origins.get(key) is None:
            return  # not set; whether it must be is another question
        self.value(key, value, parse_kind(annotation))

    def value(self, key: str, value: Any, kind: Kind) -> None:
        """A value against its annotation. OmegaConf's ``???`` stands for one that the user must give."""
        unset = [key + where for where in unset_places(value)]
        for place in unset:
            self.missing(place, f"{self.composed.origin(place) or 'default'} leaves it to you: config.{key}=...")
        for where, text in () if unset else find_problems(kind, value):
            self.say(key + where, text, part_at(value, where))

    def component(self, key: str, value: Any, metadata: Mapping[str, Any]) -> None:
        """A section with ``name`` and options."""
        registry = metadata["component"]
        if value is None:
            return
        if not isinstance(value, dict):
            self.say(key, "must be a name, or a group with 'name' and options", value)
            return
        if value.get("name") is None:
            self.say(key, f"has no name. Known: {', '.join(REGISTRIES[registry].names()) or 'none'}")
            return
        options = {name: option for name, option in value.items() if name != "name"}
        self.named(key, registry, value["name"], options, metadata["extra"])

    def hooks(self, key: str, value: Any, metadata: Mapping[str, Any]) -> None:
        """Components under their own names."""
        if not isinstance(value, dict):
            self.say(key, "must be a group of names, each with its options ({} for none)", value)
            return
        for name, options in value.items():
            if isinstance(options, dict):
                self.named(f"{key}.{name}", metadata["components"], name, options, None, name_key=f"{key}.{name}")
            elif options is not UNRESOLVED:
                self.say(f"{key}.{name}", "must be a group of options; {} switches it on as it is", options)

    def named(
        self, key: str, registry: str, name: Any, options: dict[str, Any], extra: type | None, *, name_key: str = ""
    ) -> None:
        """A component's name and options against its signature."""
        extra_fields = fields_of(extra) if extra else {}
        for option, value in options.items():
            if option in extra_fields and value is not UNRESOLVED:
                entry = extra_fields[option]
                self.plain(f"{key}.{option}", value, entry.default, entry.metadata["kind"])
        if name is UNRESOLVED:
            return
        try:
            found = component_at(registry, name)
        except UserError as error:
            self.say(name_key or f"{key}.name", str(error))
            return
        self.components[key] = found
        for option, value in options.items():
            if option not in extra_fields:
                self.option(f"{key}.{option}", option, value, found, extra_fields)
        origin = self.composed.origin(name_key or f"{key}.name") or "default"
        for wanted in found.options.values():
            if wanted.required and wanted.name not in options:
                kind = parse_kind(wanted.annotation, Names(found.file))
                help = f" ({wanted.doc})" if wanted.doc else ""
                text = f"the {_kind(registry)} {name!r} ({origin}) needs it{help}. It must be {kind}"
                self.missing(f"{key}.{wanted.name}", text)

    def option(self, key: str, name: str, value: Any, found: Component, extra: Mapping[str, Any]) -> None:
        """One option of a component."""
        if name not in found.options:
            if found.open_options:
                self.value(key, value, ANY)
                return
            known = [*found.options, *extra]
            listed = f"Its options: {', '.join(known)}" if known else "It has no options"
            self.say(key, f"the {found.name!r} component has no such option.{nearest(name, known)} {listed}")
            return
        wanted = found.options[name]
        if value is UNRESOLVED or (value is None and wanted.default is None):
            return
        self.value(key, value, parse_kind(wanted.annotation, Names(found.file)))

    def required(self, values: dict[str, Any]) -> None:
        """What the engine and the other components in use cannot do without."""
        needed: dict[str, list[str]] = {}
        for key, component in self.components.items():
            for wanted in component.facts.get("required_settings", REQUIRED_BY_DEFAULT if key == "ENGINE" else ()):
                needed.setdefault(str(wanted), []).append(f"{_kind_of(key)} {component.name!r}")
        for key, users in needed.items():
            group, _, last = key.rpartition(".")
            if value_at(values, key) is not None or self.bad_below(key) or self.bad & set(groups_of(key)):
                continue
            if group in needed and value_at(values, group) is None:
                continue  # the whole group is missing, which is said once
            entry = field_at(key)
            help = f" ({entry.metadata['help']})" if entry else ""
            example = f"config.{key}={_EXAMPLES.get(last, '...')}"
            self.missing(key, f"the {' and the '.join(users)} needs it{help}. Give it in a file or as {example}")

    def relations(self, values: dict[str, Any]) -> None:
        """Settings that must fit each other."""
        train, evaluate = values.get("TRAIN"), values.get("EVALUATE")
        for key in ("TRAIN.length", "CHECKPOINT.every", "CHECKPOINT.keep_every"):
            text = value_at(values, key)
            if key in self.bad or not isinstance(text, str):
                continue
            if parse_duration(text).value == 0:
                self.say(key, "must be longer than nothing", text)
            elif key == "TRAIN.length" and parse_duration(text).unit == "%":
                self.say(key, "a percentage of what? Write epochs or steps, such as '10 epochs'", text)
        given = self.composed.origin("TRAIN.clip")
        if given and value_at(values, "TRAIN.clip") == "tensor" and self.composed.origin("TRAIN.clip_norm") is None:
            self.say("TRAIN.clip", "has no effect without TRAIN.clip_norm; give the largest norm", "tensor")
        processes = self.processes(values)
        self.batch(train, processes)
        self.together(values, processes)
        if not isinstance(evaluate, dict) or self.bad & {"EVALUATE.resize", "EVALUATE.image_size"}:
            return
        resize, size = evaluate.get("resize"), evaluate.get("image_size")
        if resize and size and resize < size:
            self.say("EVALUATE.resize", f"must be at least image_size, {size}", resize)

    def processes(self, values: dict[str, Any]) -> int:
        """Processes of the run; those of a job follow from what Slurm is asked for."""
        given, slurm = value_at(values, "DISTRIBUTED.processes") or 1, values.get("SLURM")
        if not isinstance(slurm, dict) or slurm.get("USE_SLURM") is not True or self.bad_below("SLURM"):
            return given
        if UNRESOLVED in slurm.values() or self.bad_below("DISTRIBUTED"):
            return given
        try:
            return plan_job(slurm, given).processes
        except SettingsError as error:
            self.problems += error.problems
            self.bad.add("DISTRIBUTED.processes")  # how many there are is unknown: nothing can be divided by it
            return given

    def batch(self, train: Any, processes: int) -> None:
        """Whether the batch can be divided."""
        keys = [f"TRAIN.{name}" for name in ("global_batch", "accumulation", "max_per_rank_batch")]
        if not isinstance(train, dict) or self.bad & {"TRAIN", "DISTRIBUTED", "DISTRIBUTED.processes", *keys}:
            return
        batch, accumulation, limit = (train[key.split(".")[1]] for key in keys)
        if batch is not None and UNRESOLVED not in (batch, accumulation, limit):
            try:
                split_batch(batch, processes, accumulation, limit)
            except SettingsError as error:
                self.problems += error.problems

    def together(self, values: dict[str, Any], processes: int) -> None:
        """What several processes cannot do; one does without all of it."""
        group_key, norm_key = "MODEL.SYNC_BATCH_NORM_GROUP", "MODEL.SYNC_BATCH_NORM"
        wrong = self.bad & {"MODEL", "TRAIN", "DISTRIBUTED", "DISTRIBUTED.processes", group_key, norm_key}
        if processes == 1 or wrong:
            return
        group = value_at(values, group_key)
        if isinstance(group, int) and value_at(values, norm_key) is False:
            self.say(group_key, f"contradicts {norm_key} = false: leave one of the two out", group)
        elif isinstance(group, int) and processes % group:
            fitting = ", ".join(str(number) for number in range(1, processes + 1) if processes % number == 0)
            self.say(group_key, f"does not divide the {processes} processes; it can be {fitting}, or null", group)
        if value_at(values, "DISTRIBUTED.sharding") == "full" and value_at(values, "TRAIN.precision") == "fp16":
            self.say("TRAIN.precision", "does not go with DISTRIBUTED.sharding = full: use bf16, fp32 or auto", "fp16")

    def bad_below(self, key: str) -> bool:
        """Whether a problem was found at the key or inside it."""
        return any(known == key or known.startswith((f"{key}.", f"{key}[")) for known in self.bad)


_EXAMPLES = {
    "length": "'10 epochs'",
    "global_batch": "256",
    "base_lr": "0.1",
    "TRAIN": "/path/of/images",
    "LOSS": "NAME",
}


def _kind(registry: str) -> str:
    return REGISTRIES[registry].kind


def _kind_of(key: str) -> str:
    entry = field_at(key) or field_at(key.rpartition(".")[0])
    metadata = entry.metadata if entry else {}
    return _kind(metadata.get("component") or metadata["components"])
