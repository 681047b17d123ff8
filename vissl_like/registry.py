"""Registries: a name in a YAML is a file of the package, and looking it up imports that file only.

``LOSS.name: swav`` is ``vissl_like/losses/swav.py``. A plugin adds entries from its own modules by the same decorator::

    from vissl_like.registry import LOSSES

    @LOSSES.register("my_loss")
    class MyLoss(Loss): ...
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fvcore.common.registry import Registry as FvcoreRegistry

from vissl_like.component import Component, scan_file
from vissl_like.utils.errors import UserError, nearest

Entry = TypeVar("Entry", bound=Callable[..., Any])


class UnknownNameError(UserError):
    """A name that no file of the package and no loaded plugin registers."""


class DuplicateNameError(UserError):
    """Two definitions claim the same name in one registry."""


class Registry(FvcoreRegistry):
    """Names of one kind of component.

    Args:
        variable: name of this object in the module (``LOSSES``), by which source files are recognised.
        kind: the word for one entry (``loss``), used in messages.
        package: package whose files are the built-in entries.
    """

    def __init__(self, variable: str, kind: str, package: str):
        super().__init__(kind)
        self.variable, self.kind, self.package = variable, kind, package
        self._outside: dict[str, tuple[Component, Callable[[], Any]]] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:  # type: ignore[override]
        """Decorator that enters a class or factory function under ``name``.

        Raises:
            DuplicateNameError: the name is taken by another definition; both places are named.
        """

        def enter(entry: Entry) -> Entry:
            known = self._obj_map.get(name)
            if known is not None and _place(known) != _place(entry):
                raise DuplicateNameError(
                    f"two {self.kind} entries are called {name!r}: {_place(known)} and {_place(entry)}. Rename one."
                )
            built_in = self._file(name)
            if built_in.is_file() and not _same_file(inspect.getfile(entry), built_in):
                raise DuplicateNameError(
                    f"{_place(entry)} registers the {self.kind} {name!r}, which is built in ({built_in}). Rename yours."
                )
            self._obj_map.pop(name, None)
            self._do_register(name, entry)
            return entry

        return enter

    def get(self, name: str) -> Any:
        """The class or factory called ``name``; imports its file if need be.

        Raises:
            UnknownNameError: nothing has that name; the message gives the nearest and the full list.
        """
        if name not in self._obj_map:
            self._import(name)
        if name not in self._obj_map:
            raise UnknownNameError(self.unknown(name))
        return self._obj_map[name]

    def unknown(self, name: str) -> str:
        """The message for a name that does not exist."""
        names = self.names()
        return f"unknown {self.kind} {name!r}.{nearest(name, names)} Known: {', '.join(names) or 'none'}."

    def names(self) -> list[str]:
        """Every name, sorted: files of the package, and what plugins added."""
        return sorted(component.name for component in self.components())

    def components(self) -> Iterator[Component]:
        """Descriptions of all entries, read from source."""
        for file in sorted(self._folder().glob("*.py")):
            yield from (entry for entry in scan_file(file) if entry.registry == self.variable)
        yield from (component for component, _ in self._outside.values())

    def describe(self, name: str) -> Component:
        """The description of one entry, read from source without importing it.

        Raises:
            UnknownNameError: nothing has that name.
        """
        file = self._file(name)
        if file.is_file():
            for component in scan_file(file):
                if component.registry == self.variable and component.name == name:
                    return component
        if name in self._outside:
            return self._outside[name][0]
        raise UnknownNameError(self.unknown(name))

    def add_outside(self, component: Component, load: Callable[[], Any]) -> None:
        """Announces an entry of a plugin before it is imported; ``load`` imports the module that registers it.

        Raises:
            DuplicateNameError: the name is taken.
        """
        known = self._outside.get(component.name)
        taken_by = known[0].file if known else self._file(component.name)
        if (known and not _same_file(known[0].file, component.file)) or self._file(component.name).is_file():
            raise DuplicateNameError(
                f"the plugin {component.file}:{component.line} registers the {self.kind} {component.name!r}, "
                f"which {taken_by} has already. Rename yours."
            )
        self._outside[component.name] = (component, load)

    def _import(self, name: str) -> None:
        if name in self._outside:
            self._outside[name][1]()
        elif name.isidentifier() and self._file(name).is_file():
            importlib.import_module(f"{self.package}.{name}")

    def _folder(self) -> Path:
        return Path(__file__).parent.joinpath(*self.package.split(".")[1:])

    def _file(self, name: str) -> Path:
        return self._folder() / f"{name}.py"


def _place(entry: Any) -> str:
    try:
        return f"{inspect.getfile(entry)}:{inspect.getsourcelines(entry)[1]}"
    except (OSError, TypeError):
        return repr(entry)


def _same_file(left: str | Path, right: str | Path) -> bool:
    return Path(left).resolve() == Path(right).resolve()


TRUNKS = Registry("TRUNKS", "trunk", "vissl_like.models.trunks")
HEADS = Registry("HEADS", "head", "vissl_like.models.heads")
TEACHERS = Registry("TEACHERS", "teacher", "vissl_like.models.teachers")
LOSSES = Registry("LOSSES", "loss", "vissl_like.losses")
HOOKS = Registry("HOOKS", "hook", "vissl_like.hooks")
OPTIMIZERS = Registry("OPTIMIZERS", "optimizer", "vissl_like.optimizers")
SCHEDULES = Registry("SCHEDULES", "schedule", "vissl_like.schedules")
DATASETS = Registry("DATASETS", "dataset", "vissl_like.data.datasets")
TRANSFORMS = Registry("TRANSFORMS", "transform", "vissl_like.data.transforms")
SAMPLERS = Registry("SAMPLERS", "sampler", "vissl_like.data.samplers")
METERS = Registry("METERS", "meter", "vissl_like.meters")
ENGINES = Registry("ENGINES", "engine", "vissl_like.engines")
EVALUATIONS = Registry("EVALUATIONS", "evaluation", "vissl_like.evaluation")

REGISTRIES: dict[str, Registry] = {
    "trunks": TRUNKS,
    "heads": HEADS,
    "teachers": TEACHERS,
    "losses": LOSSES,
    "hooks": HOOKS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "datasets": DATASETS,
    "transforms": TRANSFORMS,
    "samplers": SAMPLERS,
    "meters": METERS,
    "engines": ENGINES,
    "evaluations": EVALUATIONS,
}
"""By the plural used on the command line: ``--list losses``."""
