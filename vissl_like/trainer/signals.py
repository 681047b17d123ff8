"""Ctrl-C and signals that end a run: finish the step, write a checkpoint, then leave."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from vissl_like.distributed import preemption

TOGETHER_S = 2.0
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Clusters announce the end of a job by SIGUSR1 or SIGUSR2, pre-emption by SIGTERM."""


class StopSignals:
    """While active, the first signal that ends a run is noted in ``requested``; one that comes 2 s later acts at once.

    In a job of a cluster later ones change nothing: it sends several by itself, and SIGKILL when it has waited enough.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[int, Any] = {}
        self._first = 0.0
        self._process = os.getpid()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data-loading worker: signals to the whole group reach the training process too
        name = signal.Signals(number).name
        preemption.note(name)
        if self.requested:
            # One cause can bring several signals: to the group, from the launcher, by its death.
            if time.monotonic() - self._first > TOGETHER_S and not preemption.in_job():
                raise KeyboardInterrupt(name)
            return
        self._first = time.monotonic()
        self.requested = name
        again = "" if preemption.in_job() else " (again: leave at once)"
        print(f"\n{name}: finishing this step and writing a checkpoint{again}", file=sys.stderr, flush=True)
