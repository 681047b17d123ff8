"""Where the state of a training lies until its result is on disk."""

from __future__ import annotations

import contextlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch

from vissl_like.distributed import comm
from vissl_like.utils.files import write_atomic

FORMAT = 1


@dataclass
class Keeper:
    """Where the state of a training is kept until its result is.

    Attributes:
        path: file of this training and no other: whatever changes the training must change its name.
        every: seconds between two writes.
    """

    path: Path
    every: float = 60.0

    def load(self) -> dict[str, Any] | None:
        """What was kept, None if there is nothing, or it is damaged (then it is made anew)."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            return state if state["format"] == FORMAT else None
        except (OSError, RuntimeError, LookupError, TypeError, EOFError, ValueError, PickleError, zipfile.BadZipFile):
            return None

    def save(self, state: dict[str, Any]) -> None:
        """Keeps a state in place of the last.

        Raises:
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **state}, buffer)
        write_atomic(self.path, buffer.getvalue())

    def drop(self) -> None:
        """Forgets it: the result is there."""
        if comm.is_main():
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
