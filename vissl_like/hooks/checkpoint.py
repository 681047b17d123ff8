"""When checkpoints are written; how is the run's own business."""

from __future__ import annotations

from vissl_like.hooks.base import Hook, RunView
from vissl_like.registry import HOOKS


@HOOKS.register("checkpoint")
class CheckpointHook(Hook):
    """Writes a checkpoint at the distances of CHECKPOINT.every.

    The run itself writes one at its end and when it is stopped, with or without this hook.

    Options:
        at_start: also keep the network as it is before the first step
    """

    # The other hooks have seen the step by then, so their saved state includes it.
    runs_last = True

    def __init__(self, *, at_start: bool = False):
        super().__init__()
        self.at_start = at_start

    def on_start(self, run: RunView) -> None:
        """The untrained network, if asked for."""
        if self.at_start and run.progress.step == 0:
            run.save_checkpoint("start")

    def on_step(self, run: RunView) -> None:
        """One at every multiple of the distance."""
        every = run.plan.checkpoint_every_steps
        if run.progress.step % every == 0:
            run.save_checkpoint(f"every {every} steps")
