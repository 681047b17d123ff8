"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes to a temporary name beside ``path``, flushes to disk, then renames over it.

    Raises:
        OSError: no space, no permission; the temporary file is removed and ``path`` is untouched.
    """
    path = Path(path)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_flushed(temporary, payload)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_flushed(path: Path, payload: bytes | memoryview) -> None:
    """Writes and forces the bytes to disk; a short write (full disk) raises OSError."""
    with open(path, "wb") as stream:
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())


def flush_folder(path: Path) -> None:
    """Forces a folder's entries (renames) to disk, where the system allows it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Atomic, indented, valid JSON (no NaN)."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def new_private_folder(prefix: str, shared: bool) -> Path:
    """A new folder that only this user may enter, with a name that nobody can guess.

    Args:
        prefix: its name begins so.
        shared: in the home folder, which machines of a cluster share, instead of the system's for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    return Path(tempfile.mkdtemp(prefix=prefix, dir=Path.home() if shared else None))


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
