"""Ends a process that stands still, and says where it stood: better than a hang that says nothing.

Training calls ``beat`` with what it is about to do. When no beat comes for the given time, the process writes that
stage and the Python stacks of all its threads to stderr and exits with ``STALLED``. A process that hangs keeps the
others waiting, so that each of them tells where it stood.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

STALLED = 4
"""Exit status of a process that stood still."""
LINGER_S = 3.0
"""The end of one process ends the others: time for them to tell where they stand, too."""


class Watchdog:
    """Watches one process.

    Args:
        limit_s: longest time without a beat, in seconds.
        name: of the process, for the message.

    Attributes:
        watching: whether silence would end the process now.
    """

    def __init__(self, limit_s: float, name: str):
        self.limit_s, self.name = limit_s, name
        self._stage, self._since = "", 0.0
        self.watching = False
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self, stage: str) -> None:
        """The process lives, and begins something."""
        self._stage, self._since = stage, time.monotonic()
        self.watching = True

    def rest(self) -> None:
        """What comes now may take as long as it likes, until the next beat."""
        self.watching = False

    def end(self) -> None:
        """No more watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.limit_s / 4)):
            silent = time.monotonic() - self._since
            if self.watching and silent > self.limit_s:
                self._tell_and_exit(silent)

    def _tell_and_exit(self, silent: float) -> None:
        print(
            f"{self.name} has stood still for {silent / 60:.1f} minutes in: {self._stage}. Its threads, newest call "
            "first, are below. A process that only waits for the others stands in a collective; the one to blame does "
            f"not. Exit status {STALLED}. If this was just slow, raise DISTRIBUTED.stall_minutes (0: never).",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=2, all_threads=True)
        sys.stdout.flush()
        time.sleep(LINGER_S)
        os._exit(STALLED)


_watchdog: Watchdog | None = None


def arm(limit_s: float, name: str) -> None:
    """Watches this process from the first beat on; 0 seconds: not at all."""
    global _watchdog
    disarm()
    _watchdog = Watchdog(limit_s, name) if limit_s > 0 else None


def disarm() -> None:
    """Ends the watching."""
    global _watchdog
    if _watchdog is not None:
        _watchdog.end()
        _watchdog = None


def beat(stage: str) -> None:
    """This process lives, and begins ``stage``. Costs nothing worth measuring."""
    if _watchdog is not None:
        _watchdog.beat(stage)


def go_on(stage: str) -> None:
    """Part of something long is done: a beat if beats are being watched for, else nothing."""
    if _watchdog is not None and _watchdog.watching:
        _watchdog.beat(stage)


def rest() -> None:
    """What comes now may take as long as it likes, until the next beat."""
    if _watchdog is not None:
        _watchdog.rest()
