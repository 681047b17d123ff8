"""Reads annotations that are known only as text, such as ``Positive | None`` or ``list[Count]``.

Understood are the names of ``vissl_like.utils.kinds``, ``Percent``, bool, int, float, str, Path, None, Literal,
Annotated with a Range, Optional, Union and ``|``, list, tuple, dict, and names that the same file defines or imports
from this package: aliases of these, dataclasses and TypedDicts. Whatever else a file annotates (``Any``, a torch type)
accepts every value; ``Kind.known`` is False for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from vissl_like.config.names import Names
from vissl_like.utils.kinds import KINDS, Range

_NUMBERS = {"bool": "bool", "int": "int", "float": "float", "str": "str", "Path": "str", "PathLike": "str"}
_LISTS = ("list", "List", "Sequence", "Iterable")
_DICTS = ("dict", "Dict", "Mapping")
_MAX_DEPTH = 8


def spell(value: Any) -> str:
    """A value as it is written in YAML, shortened: ``null``, ``true``, ``'text'``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:  # integers of thousands of digits
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:70]}...{text[-6:]}"


@dataclass(frozen=True)
class Kind:
    """A parsed annotation.

    Attributes:
        what: bool, int, float, str, none, any, duration, percent, literal, list, tuple, dict, union or record.
        parts: kinds inside; for ``literal`` the allowed values.
        range: limits of a number.
        fields: of a record: name -> (kind, whether it must be given).
        known: False where the annotation could not be read, so that nothing is checked.
    """

    what: str
    parts: tuple[Any, ...] = ()
    range: Range | None = None
    fields: dict[str, tuple[Kind, bool]] = field(default_factory=dict)
    known: bool = True

    def understood(self) -> bool:
        """Whether every part of the annotation could be read."""
        inner = [part for part in self.parts if isinstance(part, Kind)] + [kind for kind, _ in self.fields.values()]
        return self.known and all(part.understood() for part in inner)

    def __str__(self) -> str:
        """In words, for messages: ``a whole number >= 1``."""
        if self.what == "union":
            return _join(dict.fromkeys(str(part) for part in self.parts))
        if self.what == "literal":
            allowed = [spell(part) for part in self.parts]
            return allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"
        if self.what == "list":
            return f"a list of {_plural(self.parts[0])}" if self.parts else "a list"
        if self.what == "tuple":
            if len(self.parts) == 2 and self.parts[1] is MORE:
                return f"a list of {_plural(self.parts[0])}"
            return f"a list of {len(self.parts)}: {', '.join(map(str, self.parts))}" if self.parts else "a list"
        if self.what == "record":
            return f"a group of {', '.join(self.fields)}"
        if self.range is not None and str(self.range) != "any number":
            return f"{_PLAIN[self.what]} {self.range}"
        return _PLAIN[self.what]


ANY = Kind("any")
MORE = Kind("more")
_PLAIN = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "none": "null",
    "any": "any value",
    "dict": "a group of settings",
    "duration": "a duration such as '10 epochs', '500 steps' or '5%'",
    "percent": "a percentage such as '1%'",
    "more": "...",
}


@lru_cache(maxsize=4096)
def parse_kind(annotation: str, names: Names | None = None) -> Kind:
    """Reads an annotation.

    Args:
        annotation: source text.
        names: definitions of the file that the annotation stands in.
    """
    return _Reader(names).read(ast.Constant(annotation), 0)


class _Reader:
    """Turns an annotation's syntax tree into a kind."""

    def __init__(self, names: Names | None):
        self.names = names

    def read(self, node: ast.expr, depth: int) -> Kind:
        """The kind of one expression; unknown ones accept anything."""
        if depth > _MAX_DEPTH:
            return Kind("any", known=False)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                return self._text(node.value, depth + 1)
            return Kind("none") if node.value is None else MORE if node.value is ... else Kind("any", known=False)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return _union([self.read(node.left, depth + 1), self.read(node.right, depth + 1)])
        if isinstance(node, ast.Subscript):
            return self._subscript(node, depth + 1)
        name = _last_name(node)
        return Kind("any", known=False) if name is None else self._name(name, depth + 1)

    def _text(self, annotation: str, depth: int) -> Kind:
        try:
            return self.read(ast.parse(annotation.strip(), mode="eval").body, depth)
        except (SyntaxError, ValueError, RecursionError):
            return Kind("any", known=False)

    def _name(self, name: str, depth: int) -> Kind:
        if name in KINDS:
            base, limits = KINDS[name]
            return Kind("duration" if name == "Duration" else base.__name__, range=limits)
        if name == "Percent":
            return Kind("percent")
        if name in _NUMBERS:
            return Kind(_NUMBERS[name])
        if name in _LISTS or name in _DICTS or name in ("tuple", "Tuple"):
            return Kind("list" if name in _LISTS else "dict" if name in _DICTS else "tuple")
        if name in ("Any", "object"):
            return ANY
        found = self.names.find(name) if self.names is not None else None
        if found is None:
            return Kind("any", known=False)
        node, owner = found
        if isinstance(node, ast.ClassDef):
            return _Reader(owner).record(node, depth)
        return _Reader(owner).read(node, depth)

    def _subscript(self, node: ast.Subscript, depth: int) -> Kind:
        name = _last_name(node.value)
        inside = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Literal":
            return _literal(inside)
        if name == "Annotated":
            return self._annotated(inside, depth)
        parts = tuple(self.read(part, depth) for part in inside)
        if name == "Optional":
            return _union([*parts, Kind("none")])
        if name == "Union":
            return _union(list(parts))
        if name in ("NotRequired", "Required", "Final", "ClassVar", "ReadOnly"):
            return parts[0]
        if name in _LISTS:
            return Kind("list", parts[:1])
        if name in ("tuple", "Tuple"):
            return Kind("tuple", parts)
        if name in _DICTS and len(parts) == 2:
            return Kind("dict", parts)
        return Kind("any", known=False)

    def _annotated(self, inside: list[ast.expr], depth: int) -> Kind:
        kind = self.read(inside[0], depth)
        for extra in inside[1:]:
            if isinstance(extra, ast.Call) and _last_name(extra.func) == "Range":
                try:
                    arguments = [ast.literal_eval(argument) for argument in extra.args]
                    keywords = {item.arg: ast.literal_eval(item.value) for item in extra.keywords if item.arg}
                    kind = replace(kind, range=Range(*arguments, **keywords))
                except (ValueError, TypeError):
                    return Kind("any", known=False)
        return kind

    def record(self, node: ast.ClassDef, depth: int) -> Kind:
        """Fields of a dataclass or TypedDict with what may be left out."""
        typed_dict = any(_last_name(base) == "TypedDict" for base in node.bases)
        if not typed_dict and not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            return Kind("any", known=False)
        partial = any(word.arg == "total" and ast.unparse(word.value) == "False" for word in node.keywords)
        found = {}
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                optional = partial or statement.value is not None or "NotRequired[" in ast.unparse(statement.annotation)
                found[statement.target.id] = (self.read(statement.annotation, depth), not optional)
        return Kind("record", fields=found)


def _literal(parts: list[ast.expr]) -> Kind:
    try:
        return Kind("literal", tuple(ast.literal_eval(part) for part in parts))
    except ValueError:
        return Kind("any", known=False)


def _last_name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _union(kinds: list[Kind]) -> Kind:
    flat: list[Kind] = []
    for kind in kinds:
        flat += kind.parts if kind.what == "union" else [kind]
    return Kind("union", tuple(flat))


def _join(words: Iterable[str]) -> str:
    found = list(words)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"


def _plural(kind: Kind) -> str:
    text = str(kind)
    for single, many in (("a whole number", "whole numbers"), ("a number", "numbers"), ("a group", "groups")):
        if text.startswith(single):
            return many + text[len(single) :]
    return "texts" if text == "text" else text
