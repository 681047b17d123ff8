"""Finds what a name in an annotation stands for, in source files, without importing them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Names:
    """Definitions of one source file.

    Attributes:
        file: the file; its imports are followed within this package, and relative ones next to it.
    """

    file: Path

    def find(self, name: str, followed: int = 0) -> tuple[ast.ClassDef | ast.expr, Names] | None:
        """The class or the right-hand side of the alias called ``name``, and the file where it stands."""
        tree = _tree(self.file)
        if tree is None or followed > 10:
            return None
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node, self
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return node.value, self
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                return (node.value, self) if node.value is not None else None
        for inner in ast.walk(tree):
            if isinstance(inner, ast.ImportFrom):
                for alias in inner.names:
                    if (alias.asname or alias.name) == name:
                        other = self._imported(inner)
                        return Names(other).find(alias.name, followed + 1) if other else None
        return None

    def _imported(self, node: ast.ImportFrom) -> Path | None:
        parts = (node.module or "").split(".") if node.module else []
        if node.level:
            base = self.file.parents[node.level - 1] if node.level <= len(self.file.parents) else None
        elif parts and parts[0] == _PACKAGE.name:
            base, parts = _PACKAGE, parts[1:]
        else:
            return None
        if base is None:
            return None
        target = base.joinpath(*parts)
        return next((file for file in (target.with_suffix(".py"), target / "__init__.py") if file.is_file()), None)


@lru_cache(maxsize=256)
def _tree(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
