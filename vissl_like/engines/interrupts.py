"""Signals that end a measurement, where nothing but the measurement itself is to be ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vissl_like.trainer.signals import TOGETHER_S

_NOBODYS = (signal.SIG_DFL, signal.default_int_handler)


@contextmanager
def interrupts() -> Iterator[None]:
    """SIGTERM interrupts this process as Ctrl-C does; those that come within 2 s of the first are the same.

    A signal that somebody else has taken (a Slurm job, to go back into the queue) is left to them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own, first = os.getpid(), -TOGETHER_S

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != own:  # a loading process that was forked
            os._exit(128 + number)
        if time.monotonic() - first >= TOGETHER_S:
            first = time.monotonic()
            raise KeyboardInterrupt(signal.Signals(number).name)

    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in found.items() if handler in _NOBODYS}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
