"""One run per output folder."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from vissl_like.utils.errors import UserError


class FolderLock:
    """Holds ``OUTPUT_DIR/.lock`` while a run writes there; the system frees it even after ``kill -9``.

    A POSIX record lock: unlike ``flock`` it is not inherited by forked data-loading workers, which outlive a killed
    parent for some seconds.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        self._stream: IO[str] | None = None

    def __enter__(self) -> FolderLock:
        self._stream = open(self.path, "a+", encoding="utf-8")
        try:
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.seek(0)
            holder = self._stream.read().strip() or "another process"
            self._stream.close()
            raise UserError(
                f"{self.path.parent} is being written by {holder}. Wait for it, stop it, or choose another OUTPUT_DIR."
            ) from error
        self._stream.truncate(0)
        self._stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._stream.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
