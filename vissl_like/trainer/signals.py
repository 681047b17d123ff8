"""Ctrl-C and termination signals: finish the step, write a checkpoint, then leave."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

TOGETHER_S = 2.0


class StopSignals:
    """While active, the first SIGINT or SIGTERM is noted in ``requested``; one that comes 2 s later acts at once."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[int, Any] = {}
        self._first = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            # One cause can bring several signals: to the group, from the launcher, by its death.
            if time.monotonic() - self._first > TOGETHER_S:
                raise KeyboardInterrupt(name)
            return
        self._first = time.monotonic()
        self.requested = name
        print(
            f"\n{name}: finishing this step and writing a checkpoint (again: leave at once)",
            file=sys.stderr,
            flush=True,
        )
