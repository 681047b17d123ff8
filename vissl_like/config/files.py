"""Finds settings files by name or path."""

from __future__ import annotations

from pathlib import Path

from vissl_like.config.yaml_text import MAX_CHARACTERS
from vissl_like.utils.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
_SUFFIXES = (".yaml", ".yml")


def configs_folder() -> Path:
    """The folder of the settings that come with the package: part of an installed package, beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Names that ``config=`` takes, sorted: paths under the configs folder without ``.yaml``."""
    folder = configs_folder()
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def config_summaries() -> list[tuple[str, str]]:
    """Each name that ``config=`` takes, with the first line of its file's header."""
    folder, rows = configs_folder(), []
    for name in config_names():
        first = read_text(folder / f"{name}.yaml").partition("\n")[0]
        rows.append((name, first.lstrip("# ").rstrip() if first.startswith("#") else ""))
    return rows


def find_config(name: str, beside: Path | None = None) -> Path:
    """The file that a ``config=`` or ``BASES`` entry means.

    Args:
        name: a path ending in .yaml or .yml, or a name under the configs folder.
        beside: folder that relative paths refer to first; None is the current one.

    Raises:
        UserError: there is no such file; the nearest name is given.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{name!r} is not the name of a settings file")
    wanted = Path(name).expanduser()
    if wanted.suffix in _SUFFIXES:
        places = [*([beside / wanted] if beside else []), wanted, configs_folder() / wanted]
    else:
        plain = wanted.parent / f"{wanted.name}.yaml"
        places = [configs_folder() / plain, *([beside / plain] if beside else []), plain]
    try:
        for place in places:
            if place.is_file():
                return place.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"the settings file {name!r} cannot be reached: {error}") from None
    raise UserError(
        f"there is no settings file {name!r}.{nearest(name, config_names())} Give a path ending in .yaml, or a name "
        "that 'vissl-like --list configs' shows."
    )


def read_text(file: Path) -> str:
    """Text of a settings file.

    Raises:
        UserError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise UserError(f"{shown(file)}: cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_CHARACTERS:
        raise UserError(f"{shown(file)}: larger than {MAX_CHARACTERS} bytes; that is not a settings file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown(file)}:{line}: not UTF-8 text") from None


def shown(file: Path) -> str:
    """A file's path as short as is unambiguous: below the current folder, or with ``configs/`` in front, or whole."""
    try:
        return file.relative_to(Path.cwd()).as_posix()
    except (ValueError, OSError):
        pass
    try:
        return "configs/" + file.relative_to(configs_folder().resolve()).as_posix()
    except ValueError:
        return str(file)
