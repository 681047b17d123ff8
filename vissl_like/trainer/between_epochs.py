"""What a loss may ask for between epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from vissl_like.distributed import comm, watchdog
from vissl_like.records import Batch, ModelOutput, Progress, Skipped
from vissl_like.trainer.parts import Parts


class StoppedBetweenEpochs(Exception):
    """A stop was asked for during a pass; every process raises it at the same batch."""


class EpochFeatures:
    """The ``FeatureSource`` of a run: passes over the epoch that begins, which a signal to any process ends.

    Args:
        parts: of the run.
        progress: at the first step of the epoch.

    Attributes:
        skipped: images that this process could not read in the passes so far.
    """

    def __init__(self, parts: Parts, progress: Progress):
        self._parts, self._progress = parts, progress
        self.skipped = list[Skipped]()

    @torch.no_grad()
    def one_pass(self, views: Sequence[int]) -> Iterator[tuple[Batch, list[ModelOutput]]]:
        """See ``losses.base.FeatureSource``. BatchNorm's running statistics move, as in any training forward."""
        parts, step = self._parts, self._progress.step
        parts.model.head.before_forward(self._progress)
        stage = f"pass over the data before step {step}"
        watchdog.beat(stage)
        loader = parts.make_loader(step, step + self._progress.steps_per_epoch)
        for batch in loader:
            watchdog.beat(stage)
            if any(comm.all_gather_object(parts.signals.requested)):
                raise StoppedBetweenEpochs
            with parts.step.precision.autocast():
                outputs = [parts.model([parts.step.normalise(batch.views[view])]) for view in views]
            yield batch, outputs
        watchdog.rest()
        self.skipped += loader.skipped
