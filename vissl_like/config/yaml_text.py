"""YAML text to plain values with the line each came from, and back.

Stricter than PyYAML's safe loader: no tags, no duplicate keys, no merge keys, ``yes``/``on`` are text (as in YAML 1.2),
``1e-3`` is a number, ``012`` is text, and size, depth and the reach of aliases are limited.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.composer import Composer, ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from vissl_like.utils.errors import UserError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 24
MAX_VALUES = 50_000

_TAG = "tag:yaml.org,2002:"
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_SCALARS = (
    ("bool", _BOOL, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
)


class _Nodes(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's stages up to the tree of nodes, without any that builds objects."""

    def __init__(self, text: str):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth, self.count = 0, 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """As PyYAML's, with limits on depth and number."""
        self.depth, self.count = self.depth + 1, self.count + 1
        if self.depth > MAX_DEPTH or self.count > MAX_VALUES:
            limit = f"deeper than {MAX_DEPTH} levels" if self.depth > MAX_DEPTH else f"more than {MAX_VALUES} values"
            raise ComposerError(None, None, limit, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every text that ``read_yaml`` would not read back as the same text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeats shared values instead of naming them."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    # PyYAML writes NEL and the like plainly, where they read back as spaces.
    style = None if all(character.isprintable() or character == "\n" for character in text) else '"'
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _name, _pattern, _first in _SCALARS:
    _Nodes.add_implicit_resolver(_TAG + _name, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, list(_first))


def read_yaml(text: str, source: str, *, first_line: int = 1) -> tuple[Any, dict[str, int]]:
    """Values of a YAML text, and lines by key.

    Args:
        text: one YAML document.
        source: name of the text in messages.
        first_line: number of the text's first line.

    Returns:
        dict, list, str, int, float, bool or None; and ``{"DATA.TRANSFORM.views[0].size": 12}``.

    Raises:
        UserError: the text is not YAML or is beyond the limits above; the message gives source and line.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{source}: {len(text)} characters; settings have at most {MAX_CHARACTERS}")
    try:
        root = _Nodes(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + first_line}" if mark else source
        raise UserError(f"{place}: not valid YAML: {error.problem or error.context}{_hint(error)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    except (RecursionError, ValueError, OverflowError, IndexError, AttributeError, TypeError) as error:
        # PyYAML's scanner lets some malformed numbers and escapes (%YAML 1.x, \U00110000) out as plain Python errors.
        raise UserError(f"{source}: not valid YAML ({type(error).__name__}: {error})") from None
    lines: dict[str, int] = {}
    return (None if root is None else _Reading(source, first_line, lines).value(root, "", 0)), lines


def _hint(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if any(word in problem for word in ("cannot start any token", "alias", "alphabetic")):
        return ". Put texts with special characters (* & % @ ! : # { [ and tabs) in quotes"
    if "found '?'" in problem:
        return ". Write '???' in quotes, or leave the key out"
    return ""


class _Reading:
    """Values of a tree of nodes."""

    def __init__(self, source: str, first_line: int, lines: dict[str, int]):
        self.source, self.first_line, self.lines, self.count = source, first_line, lines, 0

    def value(self, node: Node, path: str, depth: int) -> Any:
        """The plain value of a node; aliased nodes are visited again, so that their reach is limited too."""
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_VALUES:
            raise self.error(node, f"aliases make this deeper than {MAX_DEPTH} levels or more than {MAX_VALUES} values")
        if path:
            self.lines.setdefault(path, self.line(node))
        kind = node.tag.removeprefix(_TAG) if node.tag.startswith(_TAG) else node.tag
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.value(item, f"{path}[{place}]", depth + 1) for place, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and kind in ("str", "bool", "null", "int", "float"):
            return self._scalar(node, kind)
        raise self.error(node, f"the tag {node.tag!r} is not allowed: settings are plain values")

    def _mapping(self, node: MappingNode, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self.error(key_node, "a key must be a plain word")
            key = key_node.value
            if key == "<<":
                raise self.error(key_node, "merge keys (<<) are not read; list the other file under BASES instead")
            inner = f"{path}.{key}" if path else key
            if key in found:
                raise self.error(key_node, f"{inner!r} is given twice (first in line {self.lines[inner]})")
            self.lines[inner] = self.line(key_node)
            found[key] = self.value(value_node, inner, depth + 1)
        return found

    def _scalar(self, node: ScalarNode, kind: str) -> Any:
        text = node.value
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                digits = text.replace("_", "")
                return int(digits, 16) if "0x" in digits else int(digits)
            number = text.replace("_", "").lower()
            return float(number.replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            raise self.error(node, f"{text[:40]!r} is not a value of type {kind}") from None

    def line(self, node: Node) -> int:
        """Line of a node, counted as the user's editor does."""
        return int(node.start_mark.line) + self.first_line

    def error(self, node: Node, text: str) -> UserError:
        """An error at a node."""
        return UserError(f"{self.source}:{self.line(node)}: {text}")


def dump_yaml(value: Any) -> str:
    """YAML text that ``read_yaml`` reads back as an equal value; keys keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf))


def dump_inline(value: Any) -> str:
    """The same on one line, for a value inside a text."""
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=True
    )
    return str(text).removesuffix("\n").removesuffix("\n...").strip()
