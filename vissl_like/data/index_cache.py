"""Scans kept on disk between runs, so that a folder of millions is listed once.

A scan is stored under a key (what was scanned, and how) in ``$VISSL_LIKE_CACHE/indexes``, by default
``~/.cache/vissl_like/indexes``; each time it is written to a new folder ``<key>.<time>``, complete from the moment it
has that name, and the newest counts. A damaged or outdated one is replaced; where the folder cannot be written, runs go
on without it. Processes that start together scan once: the first holds ``<key>.lock``, the others wait for it. What was
not used for 90 days is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "VISSL_LIKE_CACHE"
SETTLED_NS = 2_000_000_000
"""Something modified less than this before it was read may change again within one tick of its file system's clock."""

_LAYOUT = 1
_KEPT_S = 24 * 3600.0
_UNUSED_S = 90 * 24 * 3600.0


class Storable(Protocol):
    """What can be kept: anything that writes itself into an empty folder."""

    def save(self, folder: Path) -> None:
        """Writes all of it into an existing, empty folder."""


Kept = TypeVar("Kept", bound=Storable)


def cache_folder() -> Path:
    """Where indexes are kept; need not exist.

    Raises:
        RuntimeError: the home folder is unknown and the environment variable not set.
    """
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    return (Path(given).expanduser() if given else Path.home() / ".cache" / "vissl_like") / "indexes"


def key_of(*parts: str | int) -> str:
    """A short name for what is scanned and how."""
    return hashlib.sha256(json.dumps([_LAYOUT, *parts]).encode()).hexdigest()[:32]


def kept_or_built(
    key: str,
    load: Callable[[Path], Kept],
    is_current: Callable[[Kept], bool],
    build: Callable[[], Kept],
    newest_change: Callable[[Kept], int],
) -> Kept:
    """What is stored under ``key`` if it is whole and current, else what ``build`` makes, which is then stored.

    Args:
        key: from ``key_of``.
        load: reads a stored folder; any ``OSError``, ``ValueError``, ``KeyError`` or ``TypeError`` means damaged.
        is_current: whether a stored one still describes what is on disk.
        build: makes it afresh; its errors are the caller's.
        newest_change: latest modification time, in ns since 1970, among what it was built from. Too recent a change is
            not stored: another one could follow without a visible difference in time.
    """
    found = _stored(key, load, is_current)
    if found is not None:
        return found
    with _only_one(key) as waited:
        found = _stored(key, load, is_current) if waited else None
        if found is not None:
            return found
        started = time.time_ns()
        built = build()
        stored = _store(key, built) if newest_change(built) < started - SETTLED_NS else None
        return built if stored is None else load(stored)  # from disk, where all processes share the pages


def _stored(key: str, load: Callable[[Path], Kept], is_current: Callable[[Kept], bool]) -> Kept | None:
    """What is kept under ``key``, if it is whole and current."""
    stored = _newest(key)
    if stored is not None:
        try:
            kept = load(stored)
            if is_current(kept):
                with contextlib.suppress(OSError):
                    os.utime(stored)  # used today
                return kept
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the stored index %s is damaged (%s); it is built again", stored, error)
    return None


@contextlib.contextmanager
def _only_one(key: str) -> Iterator[bool]:
    """Inside, no other process scans the same; tells whether another one did until now.

    Where the folder or its file system takes no locks, all scan.
    """
    with contextlib.ExitStack() as opened:
        waited = False
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            place = cache_folder() / f"{key}.lock"
            stream = opened.enter_context(open(place, "a", encoding="utf-8"))
            opened.callback(place.unlink, missing_ok=True)  # who comes now finds the stored scan
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(stream, fcntl.LOCK_EX)
        except (OSError, RuntimeError):
            waited = False
        yield waited


def _generations(key: str) -> list[Path]:
    """Folders of a key, oldest first."""
    try:
        return sorted(cache_folder().glob(f"{key}.[0-9]*"))
    except (OSError, RuntimeError):
        return []


def _newest(key: str) -> Path | None:
    generations = _generations(key)
    return generations[-1] if generations else None


def _store(key: str, built: Storable) -> Path | None:
    """The new folder, or None where it cannot be written."""
    unfinished: Path | None = None
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"unfinished-{uuid.uuid4().hex}"
        unfinished.mkdir()
        built.save(unfinished)
        finished = folder / f"{key}.{time.time_ns():020d}"
        os.replace(unfinished, finished)
    except (OSError, RuntimeError) as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        logger.warning(
            "the index of paths is not kept for the next run (%s); set %s to a writable folder",
            error,
            ENVIRONMENT_VARIABLE,
        )
        return None
    _forget(key)
    return finished


def _forget(key: str) -> None:
    """Removes old generations, except recent ones: another run may be about to map them; and what nobody uses."""
    older = _generations(key)[:-1]
    with contextlib.suppress(OSError):
        for entry in list(cache_folder().iterdir()):
            kept_s = _KEPT_S if entry in older or entry.name.startswith("unfinished-") else _UNUSED_S
            with contextlib.suppress(OSError):  # another process may be removing it as well
                if time.time() - entry.stat().st_mtime > kept_s:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
