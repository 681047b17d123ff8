"""Which code a measure is made by, so that an edited one is another one."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
BASEMENT = ("compat", "component", "config", "distributed", "plugins", "records", "registry", "utils")
"""Rooms and files that say nothing of what is measured."""


def code_digest(kind: type) -> str:
    """Digest of the file that a class is written in and of all files of this package that it imports, near or far.

    Trunks, which are found by name, are not among them: their weights and settings identify them.
    """
    first = Path(inspect.getfile(kind)).resolve()
    return _digest(first, first.stat().st_mtime_ns)


def code_files(first: Path) -> dict[Path, bytes]:
    """A file and all files of this package that it imports, near or far, with what they hold."""
    seen: dict[Path, bytes] = {}
    waiting = [first]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen[file] = file.read_bytes()
            waiting += [found for name in _imports(seen[file]) if (found := _file_of(name)) is not None]
    return seen


@functools.lru_cache(maxsize=64)
def _digest(first: Path, changed: int) -> str:
    digest = hashlib.sha256()
    for file, content in sorted(code_files(first).items()):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _imports(source: bytes) -> list[str]:
    """Dotted names of modules of this package that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            names += [name.name for name in node.names]
    return [name for name in names if name.startswith(f"{PACKAGE.name}.") and name.split(".")[1] not in BASEMENT]


def _file_of(name: str) -> Path | None:
    """The file of a module; None for what lies inside of one, and for packages, which are empty here."""
    file = PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
    return file if file.is_file() else None
