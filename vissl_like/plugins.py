"""Plugins: modules or files outside the package that register components.

``PLUGINS: [my_package.my_method, path/to/file.py]`` in a YAML, or the entry-point group ``vissl_like.plugins``. Every
process of a run loads the same list, data-loading workers included (see ``PluginPickle``).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import pickle
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from vissl_like.component import scan_file
from vissl_like.registry import REGISTRIES
from vissl_like.utils.errors import UserError

ENTRY_POINT_GROUP = "vissl_like.plugins"
_announced: dict[str, Path] = {}


def announce_plugins(plugins: Iterable[str]) -> list[str]:
    """Makes the components of plugins known by name without importing them.

    Args:
        plugins: module names, or paths ending in ``.py``.

    Returns:
        the same plugins and those of installed entry points, in order: what other processes must load too.

    Raises:
        UserError: a plugin does not exist or is not Python.
    """
    wanted = list(dict.fromkeys([*(_normalised(plugin) for plugin in plugins), *_installed()]))
    for plugin in wanted:
        if plugin not in _announced:
            _announced[plugin] = _announce(plugin)
    return wanted


def import_plugin(plugin: str) -> None:
    """Imports a plugin's module, which registers its components.

    Raises:
        UserError: the import fails; the message names the plugin and the reason.
    """
    try:
        if plugin.endswith(".py"):
            _import_file(Path(plugin))
        else:
            importlib.import_module(plugin)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the plugin {plugin!r} cannot be imported: {type(error).__name__}: {error}") from error


def _normalised(plugin: str) -> str:
    return str(Path(plugin).expanduser().resolve()) if plugin.endswith(".py") else plugin


def _installed() -> list[str]:
    return [point.value for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)]


def _announce(plugin: str) -> Path:
    file = Path(plugin) if plugin.endswith(".py") else _module_file(plugin)
    if not file.is_file():
        raise UserError(f"the plugin {plugin!r} does not exist. Give an installed module or the path of a .py file.")
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    by_variable = {registry.variable: registry for registry in REGISTRIES.values()}
    for source in files:
        module = plugin if source == file else _submodule(plugin, file.parent, source)
        try:
            components = scan_file(source)
        except SyntaxError as error:
            raise UserError(f"the plugin {plugin!r} is not valid Python: {error}") from error
        for component in components:
            if component.registry in by_variable:
                by_variable[component.registry].add_outside(component, partial(import_plugin, module))
    return file


def _submodule(package: str, folder: Path, source: Path) -> str:
    parts = source.relative_to(folder).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


def _module_file(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(
            f"the plugin {module!r} is not an importable module. Install its package, add its folder to PYTHONPATH, "
            "or give the path of a .py file."
        )
    return Path(spec.origin)


def _import_file(file: Path) -> None:
    """Imports a single file under a name that is the same in every process, so that its classes can be pickled."""
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    name = f"vissl_like_plugin_{file.stem}_{digest}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"the plugin {str(file)!r} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


class PluginPickle:
    """Carries an object to another process, which first loads the plugins that the object's class may come from."""

    def __init__(self, value: Any, plugins: Iterable[str]):
        self.value, self.plugins = value, list(plugins)

    def __reduce__(self) -> tuple[Any, tuple[list[str], bytes]]:
        return _restore, (self.plugins, pickle.dumps(self.value))


def _restore(plugins: list[str], payload: bytes) -> PluginPickle:
    for plugin in announce_plugins(plugins):
        import_plugin(plugin)
    # The bytes come from our own parent process through multiprocessing, not from a file.
    return PluginPickle(pickle.loads(payload), plugins)
