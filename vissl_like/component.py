"""Reads what a component is (name, description, options, declared facts) from its source text, without importing it.

Importing a loss means importing torch, which takes seconds; a typing mistake in a YAML should be answered at once.
A component is a class or function under ``@REGISTRY.register("name")``; its options are its keyword-only parameters,
and whatever it needs to be built with by the program (not by the user) is positional. Class-level constants such as
``needs_views = 2`` are its declared facts.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

REQUIRED = "<required>"


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter: annotation as written, default (``REQUIRED`` if none), its line of the docstring."""

    name: str
    annotation: str
    default: Any = REQUIRED
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether the user must give a value."""
        return isinstance(self.default, str) and self.default == REQUIRED


@dataclass(frozen=True)
class Component:
    """What is known of a registered class or function without importing it."""

    registry: str
    name: str
    file: Path
    line: int
    qualname: str
    summary: str = ""
    doc: str = ""
    options: dict[str, Option] = field(default_factory=dict)
    open_options: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def scan_file(file: Path) -> list[Component]:
    """Components registered in a source file, in order of appearance.

    Raises:
        SyntaxError: the file is not Python.
        OSError: the file cannot be read.
    """
    tree = _parse(file, file.stat().st_mtime_ns)
    found = []
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for registry, name in _registrations(node):
                found.append(_describe(file, tree, node, registry, name))
    return found


@lru_cache(maxsize=512)
def _parse(file: Path, _modified: int) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def _registrations(node: ast.ClassDef | ast.FunctionDef) -> list[tuple[str, str]]:
    """``(registry variable, name)`` of every ``@LOSSES.register("name")`` above a definition."""
    found = []
    for decorator in node.decorator_list:
        if not (isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute)):
            continue
        owner = decorator.func.value
        variable = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else None
        if decorator.func.attr != "register" or variable is None or len(decorator.args) != 1:
            continue
        argument = decorator.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            found.append((variable, argument.value))
    return found


def _describe(
    file: Path, tree: ast.Module, node: ast.ClassDef | ast.FunctionDef, registry: str, name: str
) -> Component:
    doc = ast.get_docstring(node) or ""
    options, open_options = _options(tree, node)
    option_docs = option_lines(doc)
    return Component(
        registry=registry,
        name=name,
        file=file,
        line=node.lineno,
        qualname=node.name,
        summary=doc.strip().split("\n", 1)[0].strip(),
        doc=doc,
        options={
            key: Option(key, annotation, default, option_docs.get(key, ""))
            for key, (annotation, default) in options.items()
        },
        open_options=open_options,
        facts=_facts(tree, node) if isinstance(node, ast.ClassDef) else {},
    )


def option_lines(doc: str) -> dict[str, str]:
    """Texts of the ``Options:`` block of a docstring by option name; continuation lines are joined."""
    texts: dict[str, str] = {}
    inside, indent, current = False, None, ""
    for line in doc.splitlines():
        if line.strip() == "Options:":
            inside, indent = True, None
            continue
        if not inside or not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            break
        indent = depth if indent is None else indent
        key, colon, text = line.strip().partition(":")
        if depth == indent and colon and key.isidentifier():
            current = key
            texts[current] = text.strip()
        elif current:
            texts[current] += " " + line.strip()
    return texts


def _options(tree: ast.Module, node: ast.AST) -> tuple[dict[str, tuple[str, Any]], bool]:
    """Keyword-only parameters ``{name: (annotation, default)}``, and whether any other keyword is taken too."""
    function = _constructor(tree, node) if isinstance(node, ast.ClassDef) else (tree, node)
    if function is None:
        return {}, False
    owner, definition = function
    if isinstance(definition, ast.ClassDef):
        return _dataclass_options(definition), False
    assert isinstance(definition, ast.FunctionDef)
    arguments = definition.args
    constants = _module_constants(owner)
    options = {}
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        annotation = ast.unparse(argument.annotation) if argument.annotation else "Any"
        options[argument.arg] = (annotation, REQUIRED if default is None else _literal(default, constants))
    return options, arguments.kwarg is not None


def _constructor(tree: ast.Module, node: ast.ClassDef) -> tuple[ast.Module, ast.AST] | None:
    """``__init__`` of a class or of the nearest base that defines one, following imports within reach."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return tree, statement
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return tree, node
    for owner, base in _bases(tree, node):
        found = _constructor(owner, base)
        if found is not None:
            return found
    return None


def _dataclass_options(node: ast.ClassDef) -> dict[str, tuple[str, Any]]:
    options = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            default = REQUIRED if statement.value is None else _literal(statement.value, {})
            options[statement.target.id] = (ast.unparse(statement.annotation), default)
    return options


def _bases(tree: ast.Module, node: ast.ClassDef) -> list[tuple[ast.Module, ast.ClassDef]]:
    """Base classes that can be read: in the same file, or imported by name from a file that can be found."""
    found = []
    for base in node.bases:
        if not isinstance(base, ast.Name):
            continue
        local = _class_in(tree, base.id)
        if local is not None:
            found.append((tree, local))
            continue
        for statement in tree.body:
            if not isinstance(statement, ast.ImportFrom) or not statement.module or statement.level:
                continue
            for alias in statement.names:
                if (alias.asname or alias.name) == base.id and (other := _module_tree(statement.module)) is not None:
                    definition = _class_in(other, alias.name)
                    found += [(other, definition)] if definition is not None else []
    return found


def _module_tree(module: str) -> ast.Module | None:
    """Parsed source of one of our own modules; others (torch, ...) are not followed: finding them imports them."""
    if not module.startswith("vissl_like."):
        return None
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin)
    return _parse(file, file.stat().st_mtime_ns)


def _class_in(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _facts(tree: ast.Module, node: ast.ClassDef) -> dict[str, Any]:
    """Literal class-level constants, those of bases first."""
    facts: dict[str, Any] = {}
    for owner, base in reversed(_bases(tree, node)):
        facts.update(_facts(owner, base))
    for statement in node.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                with contextlib.suppress(ValueError):
                    facts[target.id] = ast.literal_eval(value)
    return facts


def _module_constants(tree: ast.Module) -> dict[str, Any]:
    """Literal values of module-level names, annotated or not, alone or several in a line."""
    constants = {}
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts))
        for name, found in pairs:
            if isinstance(name, ast.Name) and isinstance(found, ast.expr):
                with contextlib.suppress(ValueError):
                    constants[name.id] = ast.literal_eval(found)
    return constants


def _literal(node: ast.expr, constants: dict[str, Any]) -> Any:
    """Value of a default where it is a literal or a module constant, else its text."""
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
