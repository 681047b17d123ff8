"""Components that break on purpose."""

import os
import signal
import time

import torch

from vissl_like.distributed import comm
from vissl_like.hooks.base import Hook
from vissl_like.losses.swav import SwAVLoss
from vissl_like.registry import HOOKS, LOSSES
from vissl_like.utils.kinds import Index


@LOSSES.register("nan_at")
class NanAt(SwAVLoss):
    """SwAV whose loss is NaN at one step.

    Options:
        step: the step
        rank: the process where it is; None: on all
    """

    def __init__(self, context, *, step: Index, rank: Index | None = None):
        super().__init__(context)
        self.step, self.rank = step, rank

    def forward(self, output, batch, progress):
        parts = super().forward(output, batch, progress)
        if progress.step == self.step and self.rank in (None, comm.rank()):
            parts["loss"] = parts["loss"] * torch.nan
        return parts


@HOOKS.register("kill_worker")
class KillWorker(Hook):
    """Kills one data-loading worker after the second step."""

    def on_step(self, run):
        if run.progress.step == 2:
            import multiprocessing

            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@HOOKS.register("slow")
class Slow(Hook):
    """Takes its time at every step, and says when the first is over."""

    def on_step(self, run):
        time.sleep(0.2)
        if run.is_main:
            (run.output_dir / "first_step_done").touch()
