"""Hooks that end a run at a given step, politely or not."""

import os
import signal

from vissl_like.hooks.base import Hook
from vissl_like.registry import HOOKS
from vissl_like.utils.kinds import Index


@HOOKS.register("stop_at")
class StopAt(Hook):
    """Asks the run to stop after a step.

    Options:
        step: the step
    """

    def __init__(self, *, step: Index):
        super().__init__()
        self.step = step

    def on_step(self, run):
        if run.progress.step == self.step:
            run.request_stop("test")


@HOOKS.register("kill_at")
class KillAt(Hook):
    """Kills the process after a step, before anything else can happen.

    Options:
        step: the step
    """

    def __init__(self, *, step: Index):
        super().__init__()
        self.step = step

    def on_step(self, run):
        if run.progress.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
