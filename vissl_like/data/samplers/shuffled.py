"""Every epoch in its own random order."""

from __future__ import annotations

import numpy as np

from vissl_like.data.samplers.base import BatchSampler
from vissl_like.registry import SAMPLERS


@SAMPLERS.register("shuffled")
class ShuffledSampler(BatchSampler):
    """Every epoch goes through the dataset in a random order of its own, a function of seed and epoch alone."""

    def order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        return generator.permutation(self.dataset_size)
