"""The contract of a meter."""

from __future__ import annotations

from torch import Tensor


class Meter:
    """Collects predictions over batches and gives named values at the end. State is small and lives on the CPU."""

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Adds n samples: ``scores`` ``[n, C]`` (higher is likelier), ``labels`` ``[n]`` in 0..C-1."""
        raise NotImplementedError

    def value(self) -> dict[str, float]:
        """The measures so far, by name.

        Raises:
            ValueError: no sample has been added.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets every sample."""
        raise NotImplementedError
