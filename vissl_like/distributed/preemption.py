"""Signals by which a cluster takes its machines back, and what was heard of them.

Outside a training loop (imports, evaluations) nothing is lost by leaving at once, so the first one ends the process.
The training loop puts its own handlers over these while it runs; it finishes the step, saves, and notes it here.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from vissl_like.distributed import comm

BEFORE_THE_END = ("SIGUSR1", "SIGUSR2")
"""Sent by the cluster some time before it ends a job: the job is to come back."""

_first: str | None = None
_job_process: int | None = None


def in_job() -> bool:
    """Whether this process is a task of a job: nobody sits at its keyboard."""
    return _job_process == os.getpid()


def note(name: str) -> None:
    """A signal has come; the first counts, unless a later one says that the job is to come back."""
    global _first
    if _first is None or name in BEFORE_THE_END:
        _first = name


def noted() -> str | None:
    """Name of the signal that counts, None if there was none."""
    return _first


def enter_job() -> None:
    """From now on signals are noted; call it first thing in a task."""
    global _first, _job_process
    _first, _job_process = None, os.getpid()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _leave)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm sends it along, in case the job was suspended


def agree() -> None:
    """What one process heard, all know; called by all of them."""
    for name in comm.all_gather_object(noted()):
        if name is not None:
            note(name)


def _leave(number: int, frame: FrameType | None) -> None:
    if not in_job():
        return  # a forked helper process: the task itself decides
    name = signal.Signals(number).name
    repeated = noted() is not None
    note(name)
    if repeated:
        return  # on the way out already
    print(f"{name}: no training is under way, leaving at once", file=sys.stderr, flush=True)
    raise KeyboardInterrupt(name)
