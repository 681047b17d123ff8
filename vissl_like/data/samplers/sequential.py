"""Every epoch in the order of the dataset."""

from __future__ import annotations

import numpy as np

from vissl_like.data.samplers.base import BatchSampler
from vissl_like.registry import SAMPLERS


@SAMPLERS.register("sequential")
class SequentialSampler(BatchSampler):
    """Every epoch goes through the dataset in its own order, for tests and measurements."""

    def order(self, epoch: int) -> np.ndarray:
        return np.arange(self.dataset_size)
