"""A hook that stands still on one process."""

import time

from vissl_like.distributed import comm
from vissl_like.hooks.base import Hook
from vissl_like.registry import HOOKS
from vissl_like.utils.kinds import Index


@HOOKS.register("stand_still")
class StandStill(Hook):
    """The last process does nothing more after a step.

    Options:
        step: the step
    """

    def __init__(self, *, step: Index):
        super().__init__()
        self.step = step

    def on_step(self, run):
        if run.progress.step == self.step and comm.rank() == comm.world_size() - 1:
            time.sleep(300)
