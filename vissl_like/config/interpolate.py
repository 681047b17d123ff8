"""Replaces ``${TRAIN.global_batch}`` and ``${oc.env:NAME}`` in settings by what they stand for.

The two forms of OmegaConf that settings need, with its meaning: a reference is a dotted key from the root, or relative
with leading dots (``${.path}`` is the neighbour of the value it stands in); ``${oc.env:NAME,default}`` is text. A value
that is one reference takes the target's value and type; inside a longer text a plain target is inserted as text. What
came from the environment, be it through other settings, is noted: records show the reference in its place.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from vissl_like.utils.errors import UserError, nearest

MAX_LENGTH = 100_000
MAX_VALUES = 50_000
_REFERENCE = re.compile(r"\$\{([^{}$]*)\}")
_KEY = re.compile(r"^\.*[A-Za-z_][\w-]*(?:\.[\w-]+|\[\d+\])*$")
_ENVIRONMENT = re.compile(r"^oc\.env:\s*(\w+)\s*(?:,(.*))?$")


class Unresolved:
    """Stands where a reference could not be followed, so that it is reported once only."""

    def __repr__(self) -> str:
        return "unresolved"


UNRESOLVED = Unresolved()


class InterpolationError(ValueError):
    """A reference that cannot be followed; the message says why."""


@dataclass(frozen=True)
class Interpolated:
    """Settings without references.

    Attributes:
        values: the settings.
        problems: ``(key, message)`` of each reference that could not be followed.
        from_environment: path of each value that holds something of an environment variable -> its text as written.
    """

    values: dict[str, Any]
    problems: list[tuple[str, str]]
    from_environment: dict[tuple[str, ...], str]


def interpolate(values: dict[str, Any], fallback: dict[str, Any]) -> Interpolated:
    """Follows all references.

    Args:
        values: settings as given; not changed.
        fallback: settings that a reference may mean although they were not given.

    Raises:
        UserError: there are more values than settings ever have.
    """
    work = _Interpolation(values, fallback)
    try:
        return Interpolated(work.inside(values, ()), work.problems, work.from_environment)
    except InterpolationError as error:
        raise UserError(f"the settings are too large: {error}") from None


class _Interpolation:
    def __init__(self, values: dict[str, Any], fallback: dict[str, Any]):
        self.values, self.fallback, self.problems = values, fallback, list[tuple[str, str]]()
        self.done: dict[tuple[str, ...], Any] = {}
        self.open: dict[tuple[str, ...], str] = {}
        self.from_environment: dict[tuple[str, ...], str] = {}
        self.count = 0

    def inside(self, value: Any, path: tuple[str, ...]) -> Any:
        """A copy of ``value`` with references followed; ``path`` is where it stands."""
        self.counted()
        if isinstance(value, dict):
            return {key: self.inside(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.inside(item, (*path, str(place))) for place, item in enumerate(value)]
        if not (isinstance(value, str) and "${" in value):
            return value
        return self.text(value, path)

    def counted(self) -> None:
        """Counts one more value."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise InterpolationError(f"references make more than {MAX_VALUES} values")

    def copied(self, value: Any) -> Any:
        """A copy whose values count, so that references to references cannot grow without limit."""
        self.counted()
        if isinstance(value, dict):
            return {key: self.copied(item) for key, item in value.items()}
        return [self.copied(item) for item in value] if isinstance(value, list) else value

    def text(self, value: str, path: tuple[str, ...]) -> Any:
        """What a text with references stands for; failures are noted once."""
        if path in self.done:
            if path in self.from_environment:
                self.note_environment()
            return self.done[path]
        try:
            if path in self.open:
                opened = list(self.open)
                circle = " -> ".join(map(_dotted, [*opened[opened.index(path) :], path]))
                raise InterpolationError(f"references go in a circle: {circle}")
            self.open[path] = value
            try:
                found = self.expand(value, path)
            finally:
                del self.open[path]
        except InterpolationError as error:
            if not any(key == _dotted(path) for key, _ in self.problems):
                self.problems.append((_dotted(path), str(error)))
            found = UNRESOLVED
        self.done[path] = found
        return found

    def expand(self, value: str, path: tuple[str, ...]) -> Any:
        """One text, its references followed."""
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self.copied(self.follow(whole[1].strip(), path))
        if "${" in _REFERENCE.sub("", value):
            raise InterpolationError("a reference is written ${SECTION.key} or ${oc.env:NAME}, and not inside another")
        pieces = []
        for place, piece in enumerate(_REFERENCE.split(value)):
            if place % 2:
                target = self.follow(piece.strip(), path)
                if isinstance(target, (dict, list)):
                    raise InterpolationError(f"${{{piece}}} is a group or a list; inside a text only plain values fit")
                piece = target if isinstance(target, str) else _as_text(target)
            pieces.append(piece)
            if sum(map(len, pieces)) > MAX_LENGTH:
                raise InterpolationError(f"the text becomes longer than {MAX_LENGTH} characters")
        return "".join(pieces)

    def note_environment(self) -> None:
        """All values that are being expanded now get something of the environment."""
        self.from_environment.update(self.open)

    def follow(self, reference: str, path: tuple[str, ...]) -> Any:
        """The value that one reference means."""
        environment = _ENVIRONMENT.match(reference)
        if environment:
            self.note_environment()
            found = os.environ.get(environment[1], environment[2])
            if found is None:
                raise InterpolationError(f"the environment variable {environment[1]} is not set")
            return found.strip() if environment[1] not in os.environ else found
        if not _KEY.match(reference):
            raise InterpolationError(f"${{{reference}}} is not of the form ${{SECTION.key}} or ${{oc.env:NAME}}")
        dots = len(reference) - len(reference.lstrip("."))
        if dots > len(path):
            raise InterpolationError(f"${{{reference}}} has more leading dots than there are groups above it")
        below = tuple(reference.lstrip(".").replace("[", ".").replace("]", "").split("."))
        target = (*path[: len(path) - dots], *below) if dots else below
        if target == path[: len(target)]:
            raise InterpolationError(f"${{{reference}}} refers to itself or to the group it stands in")
        for root in (self.values, self.fallback):
            found, there = self.step_down(root, target)
            if there:
                if found is UNRESOLVED:
                    raise InterpolationError(f"it refers to {_dotted(target)}, which is wrong itself")
                return found
        known = self.values.keys() | self.fallback.keys() if len(target) == 1 else self._siblings(target)
        raise InterpolationError(f"there is no setting {_dotted(target)}.{nearest(target[-1], known)}")

    def step_down(self, root: Any, target: tuple[str, ...]) -> tuple[Any, bool]:
        """``(value, whether it exists)`` under ``root``; references met on the way are followed."""
        value = root
        for depth, part in enumerate(target):
            if isinstance(value, str) and "${" in value:
                value = self.text(value, target[:depth])
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None, False
        return self.inside(value, target), True

    def _siblings(self, target: tuple[str, ...]) -> set[str]:
        names: set[str] = set()
        for root in (self.values, self.fallback):
            found, there = self.step_down(root, target[:-1])
            names |= set(found) if there and isinstance(found, dict) else set()
        return names


def _dotted(path: tuple[str, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if part.isdecimal() else f".{part}" if text else part
    return text


def _as_text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
