"""Packages that may move under us are imported in one place each."""

import ast
from pathlib import Path

import pytest

import vissl_like

ROOT = Path(vissl_like.__file__).parent.parent
HOMES = {"classy_vision": "vissl_like/compat/classy.py", "faiss": "vissl_like/compat/faiss.py"}
FOLDERS = ("vissl_like", "tools", "extra_scripts", "dev")


def imported_roots(source: str) -> set[str]:
    """First parts of every module that a source text imports, by statement or by ``import_module("...")``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


def test_the_reader_sees_every_way_to_import():
    source = (
        "import a.b\nfrom c.d import e\ndef f():\n    import g\n    importlib.import_module('h.i')\nfrom . import j\n"
    )
    assert imported_roots(source) == {"a", "c", "g", "h"}


@pytest.mark.parametrize("package", HOMES)
def test_one_importer(package):
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 20
    importers = [
        file.relative_to(ROOT).as_posix()
        for file in files
        if package in imported_roots(file.read_text(encoding="utf-8"))
    ]
    assert importers == [HOMES[package]]
