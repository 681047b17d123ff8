"""Checks values against annotations."""

from __future__ import annotations

import math
import re
from typing import Any

from vissl_like.config.annotations import ANY, MORE, Kind
from vissl_like.utils.duration import HOW_TO, parse_duration
from vissl_like.utils.errors import nearest

Problem = tuple[str, str]
"""Where inside the value (``""``, ``[0].size``), and what is wrong there."""

LARGEST = 2**63 - 1
_PERCENT = re.compile(r"^(100|\d{1,2})(\.\d+)?\s*%$")


def find_problems(kind: Kind, value: Any) -> list[Problem]:
    """Everything that is wrong with ``value``, empty if nothing is."""
    return _CHECKS.get(kind.what, _check_plain)(kind, value)


def convert(kind: Kind, value: Any) -> Any:
    """A valid value with whole numbers made floats where the annotation says float (1 -> 1.0)."""
    if kind.what == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind.what == "union":
        return next((convert(part, value) for part in kind.parts if not find_problems(part, value)), value)
    if kind.what in ("list", "tuple") and isinstance(value, list):
        parts = [part for part in kind.parts if part is not MORE] or [ANY]
        return [convert(parts[min(place, len(parts) - 1)], item) for place, item in enumerate(value)]
    if kind.what == "dict" and isinstance(value, dict):
        return {key: convert(kind.parts[1] if kind.parts else ANY, item) for key, item in value.items()}
    if kind.what == "record" and isinstance(value, dict):
        return {key: convert(kind.fields[key][0], item) for key, item in value.items()}
    return value


def _check_plain(kind: Kind, value: Any) -> list[Problem]:
    wanted = {"bool": bool, "str": str, "dict": dict}
    if kind.what in ("any", "more"):
        return []
    if kind.what == "none":
        return [] if value is None else [("", f"must be {kind}")]
    if isinstance(value, wanted[kind.what]):
        return []
    return [("", f"must be {kind}{_remedy(kind, value)}")]


def _remedy(kind: Kind, value: Any) -> str:
    """What to do about the commonest mistakes of type."""
    if kind.what == "bool" and str(value).casefold() in ("yes", "no", "on", "off", "0", "1"):
        return f"; write {'true' if str(value).casefold() in ('yes', 'on', '1') else 'false'}"
    if kind.what == "str" and isinstance(value, (int, float)):
        return "; put it in quotes"
    if kind.what in ("int", "float") and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return "; it is text: remove the quotes or leading zeros"
    return ""


def _check_number(kind: Kind, value: Any) -> list[Problem]:
    types = (int,) if kind.what == "int" else (int, float)
    if not isinstance(value, types) or isinstance(value, bool):
        whole = isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) <= LARGEST
        return [("", f"must be {kind}" + (f"; write {int(value)}" if whole else _remedy(kind, value)))]
    if isinstance(value, float) and not math.isfinite(value):
        return [("", f"must be {kind}, and finite")]
    if abs(value) > LARGEST and isinstance(value, int):
        return [("", f"must be {kind}, at most {LARGEST}")]
    return [] if kind.range is None or kind.range.holds(value) else [("", f"must be {kind}")]


def _check_text(kind: Kind, value: Any) -> list[Problem]:
    if kind.what == "percent":
        return [] if isinstance(value, str) and _PERCENT.match(value) else [("", f"must be {kind}")]
    if not isinstance(value, str):
        return [("", f"has no unit: {HOW_TO}" if isinstance(value, (int, float)) else f"must be {kind}")]
    try:
        parse_duration(value)
    except ValueError as error:
        return [("", str(error).partition(": ")[2] or str(error))]
    return []


def _check_literal(kind: Kind, value: Any) -> list[Problem]:
    if any(value == part and type(value) is type(part) for part in kind.parts):
        return []
    words = [part for part in kind.parts if isinstance(part, str)]
    return [
        ("", f"must be {kind}.{nearest(value, words)}".rstrip(".") if isinstance(value, str) else f"must be {kind}")
    ]


def _check_union(kind: Kind, value: Any) -> list[Problem]:
    found = [find_problems(part, value) for part in kind.parts]
    if not all(found):
        return []
    # Where the outer type fits one alternative only, what is wrong inside it says more than a list of alternatives.
    container = ("list", "tuple") if isinstance(value, list) else ("dict", "record") if isinstance(value, dict) else ()
    inside = [problems for part, problems in zip(kind.parts, found, strict=True) if part.what in container]
    if len(inside) == 1:
        return inside[0]
    words = [word for part in kind.parts if part.what == "literal" for word in part.parts if isinstance(word, str)]
    duration = next((part for part in kind.parts if part.what == "duration"), None)
    if duration is not None and not isinstance(value, bool):
        return find_problems(duration, value)
    near = nearest(value, words) if isinstance(value, str) else ""
    remedy = next((text for part in kind.parts if (text := _remedy(part, value))), "")
    return [("", f"must be {kind}" + (f".{near}" if near else remedy))]


def _check_list(kind: Kind, value: Any) -> list[Problem]:
    if not isinstance(value, list):
        return [("", f"must be {kind}" + (f"; write [{value}]" if isinstance(value, (str, int, float)) else ""))]
    parts = kind.parts
    if kind.what == "tuple" and parts and not (len(parts) == 2 and parts[1] is MORE):
        if len(value) != len(parts):
            return [("", f"has {len(value)} entries; must be {kind}")]
        pairs = list(zip(parts, value, strict=True))
    else:
        pairs = [(parts[0] if parts else ANY, item) for item in value]
    found: list[Problem] = []
    for place, (part, item) in enumerate(pairs):
        found += [(f"[{place}]{where}", text) for where, text in find_problems(part, item)]
    return found


def _check_dict(kind: Kind, value: Any) -> list[Problem]:
    if not isinstance(value, dict):
        return [("", f"must be {kind}")]
    part = kind.parts[1] if kind.parts else ANY
    return [(f".{key}{where}", text) for key, item in value.items() for where, text in find_problems(part, item)]


def _check_record(kind: Kind, value: Any) -> list[Problem]:
    if not isinstance(value, dict):
        return [("", f"must be {kind}")]
    found: list[Problem] = []
    for key, item in value.items():
        if key not in kind.fields:
            found.append((f".{key}", f"unknown.{nearest(key, kind.fields)} Known here: {', '.join(kind.fields)}"))
        else:
            found += [(f".{key}{where}", text) for where, text in find_problems(kind.fields[key][0], item)]
    absent = [key for key, (_, required) in kind.fields.items() if required and key not in value]
    return found + [(f".{key}", f"is missing; must be {kind.fields[key][0]}") for key in absent]


_CHECKS = {
    "int": _check_number,
    "float": _check_number,
    "duration": _check_text,
    "percent": _check_text,
    "literal": _check_literal,
    "union": _check_union,
    "list": _check_list,
    "tuple": _check_list,
    "dict": _check_dict,
    "record": _check_record,
}
