"""Small local files of text, JSON and XML, read within a size limit; missing files named all together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vissl_like.data.decode import EXTENSIONS
from vissl_like.utils.errors import UserError, nearest

MAX_TEXT_BYTES = 1 << 30
"""Lists and JSON; the largest in use, COCO's training instances, has 450 MB."""

MAX_XML_BYTES = 1 << 20
"""One image's annotation has a few kB."""

_NAMED = 10


def folder_at(path: str | Path, what: str, layout: str) -> Path:
    """A folder that must exist.

    Args:
        path: as the user gave it; ``~`` is the home folder.
        what: what it is, for the message.
        layout: how to lay the data out, for the message.

    Raises:
        UserError: it is not there, or is a file; the message names the first missing part and the entry most like it.
    """
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if place.is_dir():
        return place
    if place.exists():
        raise UserError(f"{what}: {str(place)!r} is a file, and a folder is needed. {layout}")
    missing = next(part for part in reversed([place, *place.parents]) if not part.exists())
    beside = os.listdir(missing.parent) if missing.parent.is_dir() and os.access(missing.parent, os.R_OK) else []
    raise UserError(
        f"{what}: the folder {str(place)!r} does not exist: there is no {missing.name!r} in {str(missing.parent)!r}."
        f"{nearest(missing.name, beside)} {layout}"
    )


def read_bytes(path: str | Path, what: str, layout: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The contents of a file.

    Args:
        path: as the user gave it; ``~`` is the home folder.
        what, layout: as in ``folder_at``.
        limit: largest size accepted, in bytes.

    Raises:
        UserError: it is not there, is a folder, cannot be read or is too large.
    """
    place = Path(path).expanduser()
    try:
        with open(place, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > limit:
                raise UserError(f"{what}: {str(place)!r} has {size:,d} bytes, and more than {limit:,d} is not read")
            return stream.read(limit)
    except FileNotFoundError as error:
        beside = os.listdir(place.parent) if place.parent.is_dir() and os.access(place.parent, os.R_OK) else []
        raise UserError(
            f"{what}: the file {str(place)!r} does not exist.{nearest(place.name, beside)} {layout}"
        ) from error
    except OSError as error:
        raise UserError(f"{what}: {str(place)!r} cannot be read: {error.strerror}. {layout}") from error


def read_text(path: str | Path, what: str, layout: str, limit: int = MAX_TEXT_BYTES) -> str:
    """The contents of a UTF-8 text file; otherwise as ``read_bytes``.

    Raises:
        UserError: as ``read_bytes``; or it is not UTF-8 text.
    """
    try:
        return read_bytes(path, what, layout, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {str(path)!r} is not UTF-8 text: {error}. {layout}") from error


def read_lines(path: str | Path, what: str, layout: str) -> list[tuple[int, str]]:
    """Line numbers (from 1) and stripped contents of the lines that are not empty.

    Raises:
        UserError: as ``read_text``; or there are none.
    """
    text = read_text(path, what, layout)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{what}: {str(path)!r} is empty. {layout}")
    return lines


def read_json(path: str | Path, what: str, layout: str) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: as ``read_text``; or it is no JSON.
    """
    text = read_text(path, what, layout)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: {str(path)!r} is not JSON: {error}. {layout}") from error


def read_xml(path: str | Path, what: str, layout: str) -> ElementTree.Element:
    """The root element of a small XML file.

    Document types and entities are refused: annotations have none, and entities can be made to fill the memory.

    Raises:
        UserError: as ``read_text``; or it is no XML, or declares a document type or entities.
    """
    text = read_text(path, what, layout, MAX_XML_BYTES)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{what}: {str(path)!r} declares a document type or entities, which is not read. {layout}")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{what}: {str(path)!r} is not XML: {error}. {layout}") from error


def require_keys(value: Any, keys: Sequence[str], source: str, what: str, layout: str) -> dict[str, Any]:
    """A JSON object that must have some keys.

    Raises:
        UserError: it is no object, or has not all of them.
    """
    if not isinstance(value, dict):
        raise UserError(f"{what}: {source} is a {type(value).__name__}, and an object is needed. {layout}")
    missing = [key for key in keys if key not in value]
    if missing:
        raise UserError(
            f"{what}: {source} has no {', '.join(map(repr, missing))}.{nearest(missing[0], map(str, value))} "
            f"It has: {', '.join(map(str, list(value)[:12])) or 'nothing'}. {layout}"
        )
    return value


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number (``true`` is none)."""
    return isinstance(value, int) and not isinstance(value, bool)


class Folders:
    """Looks up files by listing every folder once, which is much faster than one look per file."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._listed: dict[str, frozenset[str]] = {}

    def names_in(self, folder: str) -> frozenset[str]:
        """Names of the entries of a folder relative to the root; none if it is not there."""
        if folder not in self._listed:
            place = self.root / folder
            self._listed[folder] = frozenset(os.listdir(place)) if place.is_dir() else frozenset()
        return self._listed[folder]

    def holds(self, relative: str) -> bool:
        """Whether there is an entry of this path, relative to the root."""
        folder, name = os.path.split(relative)
        return name in self.names_in(folder)

    def image(self, relative: str) -> str | None:
        """The path of an image given with or without its ending, relative to the root; None if there is none."""
        if self.holds(relative):
            return relative
        return next((found for ending in EXTENSIONS if self.holds(found := relative + ending)), None)

    def images(self, names: Iterable[str], what: str, layout: str) -> list[str]:
        """Full paths of images given with or without their endings, relative to the root.

        Raises:
            UserError: some are not there, of which ten are named; or one lies outside the root.
        """
        found, missing = [], []
        for name in names:
            if os.path.isabs(name) or ".." in name.split("/"):
                raise UserError(f"{what}: the image {name!r} is not named relative to {str(self.root)!r}. {layout}")
            relative = self.image(name)
            if relative is None:
                missing.append(name)
            else:
                found.append(os.path.join(self.root, relative))
        if missing:
            raise UserError(missing_message(missing, len(found) + len(missing), str(self.root), what, layout))
        return found


def missing_message(missing: list[str], total: int, root: str, what: str, layout: str) -> str:
    """A message that names the first ten missing files."""
    return (
        f"{what}: {len(missing):,d} of {total:,d} images do not exist in {root!r}:\n"
        + "\n".join(f"  {name}" for name in missing[:_NAMED])
        + ("\n  ..." if len(missing) > _NAMED else "")
        + f"\n{layout}"
    )


def images_in(folder: Path) -> list[str]:
    """Names of the image files directly in a folder, sorted; hidden ones are left alone."""
    return sorted(
        name
        for name in os.listdir(folder)
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
    )
