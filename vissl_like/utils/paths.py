"""Paths that users name: local files, or addresses that are fetched once and kept."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from vissl_like.utils.errors import UserError


def local_file(path: str | Path) -> Path:
    """A file on this machine for ``path``: itself, or a cached copy of an ``http(s)://`` address.

    Raises:
        UserError: the address cannot be fetched.
    """
    text = str(path)
    if "://" not in text:
        return Path(text).expanduser()
    if not text.startswith(("http://", "https://")):
        raise UserError(f"{text}: only local paths and http(s) addresses can be read; copy the file here first")
    try:
        return Path(_manager().get_local_path(text))
    except Exception as error:  # iopath lets every error of urllib and of the file system through
        raise UserError(f"{text} cannot be fetched: {error}") from error


@lru_cache(maxsize=1)
def _manager() -> Any:
    from iopath.common.file_io import HTTPURLHandler, PathManager

    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    return manager
