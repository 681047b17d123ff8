#!/usr/bin/env python3
"""Turns the ground truth of revisited Oxford or Paris from its pickle into JSON.

    python extra_scripts/convert_revisited_ground_truth.py gnd_roxford5k.pkl data/roxford5k/gnd.json

The pickle is ``gnd_roxford5k.pkl`` or ``gnd_rparis6k.pkl`` of the authors (Radenovic, Iscen, Tolias, Avrithis, Chum:
Revisiting Oxford and Paris, CVPR 2018). A pickle can run any program when it is read in the usual way; here it may only
make dictionaries, lists, tuples, text, numbers and numpy arrays of numbers, and nothing of numpy is called for them.
Put the images beside the JSON file, as ``jpg/<name>.jpg``.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 1 << 27
MOST_VALUES = 10_000_000
"""The real files have about 1 MB."""
GROUPS = ("easy", "hard", "junk")
_NUMERIC = re.compile(r"[<>|=]?[iuf][1248]")


class ConvertError(Exception):
    """Something that the person who runs the script can mend."""


class _Type:
    """Stands for ``numpy.dtype``: remembers the name of the kind of numbers and their byte order."""

    def __init__(self, name: Any, *_: Any):
        self.name = name
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def numbers(self) -> np.dtype[Any]:
        """The real one, for whole and floating-point numbers only."""
        text = self.name if str(self.name)[:1] in "<>|=" else f"{self.order}{self.name}"
        if not isinstance(text, str) or not _NUMERIC.fullmatch(text):
            raise ConvertError(f"the pickle holds an array of {text!r:.60}; only numbers are read")
        return np.dtype(text)


class _Array:
    """Stands for ``numpy.ndarray``: remembers shape, kind of numbers and bytes."""

    def __init__(self) -> None:
        self.shape: Any = ()
        self.type: Any = None
        self.content: Any = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, _, self.content = state

    def values(self) -> list[Any]:
        """The numbers in a list.

        Raises:
            ConvertError: it is not one-dimensional, or the bytes are not of this number of numbers.
        """
        if not isinstance(self.type, _Type) or not isinstance(self.content, (bytes, bytearray, str)):
            raise ConvertError("the pickle holds an array that is not of numbers")
        content = self.content.encode("latin1") if isinstance(self.content, str) else bytes(self.content)
        kind = self.type.numbers()
        if math.prod(self.shape) * kind.itemsize != len(content) or len([n for n in self.shape if n != 1]) > 1:
            raise ConvertError(f"the pickle holds an array of shape {self.shape!r:.60}; a list of numbers is needed")
        return np.frombuffer(content, dtype=kind).tolist()


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, kind: Any, shape: Any, _order: Any = "C") -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, False, content))
    return array


def _scalar(kind: Any, content: Any) -> Any:
    return _from_buffer(content, kind, (1,)).values()[0]


def _encode(text: Any, encoding: Any) -> bytes:
    """How bytes are written by old protocols."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ConvertError("the pickle encodes something in an unusual way")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """How old protocols write bytes that are none: ``bytes()``."""
    return b""


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    **{
        (f"numpy.{core}.{module}", name): made
        for core in ("core", "_core")
        for module, name, made in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _Reader(pickle.Unpickler):
    """Finds nothing but the stand-ins above."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ConvertError(f"the pickle asks for {module}.{name}; nothing but data is read from it")
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """``imlist``, ``qimlist`` and ``gnd`` as plain lists, dictionaries, text and numbers.

    Raises:
        ConvertError: no such file, too large, damaged, with anything but data in it, or not a ground truth.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConvertError(f"{path} has more than {MAX_BYTES:,d} bytes; the real files have about a million")
        content = path.read_bytes()
    except OSError as error:
        raise ConvertError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = _plain(_Reader(io.BytesIO(content), encoding="latin1").load(), [MOST_VALUES])
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ConvertError(f"{path} is no pickle of a ground truth: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or not {"imlist", "qimlist", "gnd"} <= found.keys():
        raise ConvertError(f"{path} has no 'imlist', 'qimlist' and 'gnd'; is it gnd_roxford5k.pkl or gnd_rparis6k.pkl?")
    return {
        "imlist": _names(found["imlist"], path),
        "qimlist": _names(found["qimlist"], path),
        "gnd": [_entry(entry, number, path) for number, entry in enumerate(found["gnd"])],
    }


def _plain(value: Any, left: list[int]) -> Any:
    """The value in JSON types; ``left`` counts down what may still come: shared lists can unfold without end."""
    left[0] -= 1
    if left[0] < 0:
        raise ConvertError(f"the pickle holds more than {MOST_VALUES:,d} values, which no ground truth does")
    if isinstance(value, _Array):
        return value.values()
    if isinstance(value, (list, tuple)):
        return [_plain(item, left) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, left) for key, item in value.items()}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ConvertError(f"the pickle holds a {type(value).__name__}; only lists, text and numbers are read")


def _names(names: Any, path: Path) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConvertError(f"{path}: 'imlist' and 'qimlist' must be lists of names")
    return names


def _entry(entry: Any, number: int, path: Path) -> dict[str, list[float]]:
    """A query's groups as whole numbers, and its box."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(group), list) for group in GROUPS):
        raise ConvertError(
            f"{path}: query {number} has no lists {', '.join(GROUPS)}. The ground truth of the first Oxford and Paris "
            "(good, ok, junk) is another one."
        )
    kept: dict[str, list[float]] = {}
    for group in GROUPS:
        positions = [int(position) for position in entry[group]]
        if positions != entry[group]:
            raise ConvertError(f"{path}: {group!r} of query {number} holds something else than whole numbers")
        kept[group] = positions
    if entry.get("bbx") is not None:
        kept["bbx"] = [float(value) for value in entry["bbx"]]
    return kept


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the JSON file is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pickle", type=Path, help="gnd_roxford5k.pkl or gnd_rparis6k.pkl")
    parser.add_argument("json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    try:
        truth = read_pickle(options.pickle)
        part = options.json.with_name(f"{options.json.name}.{os.getpid()}.part")
        part.write_text(json.dumps(truth), encoding="utf-8")
        os.replace(part, options.json)
    except ConvertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {options.json} cannot be written: {error}", file=sys.stderr)
        return 1
    print(f"{options.json}: {len(truth['qimlist'])} queries, {len(truth['imlist']):,d} images in the database")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
