"""Principal components of the rows of all processes, with whitening (DeepCluster, arXiv:1807.05520, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vissl_like.clustering.nearest import pieces
from vissl_like.distributed import comm
from vissl_like.utils.errors import UserError

VARIANCE_FLOOR = 1e-10
"""Variances below this share of the largest are noise of the arithmetic: they are raised to it."""


@dataclass(frozen=True)
class Pca:
    """The directions of largest variance.

    Attributes:
        mean: ``[D]`` float64.
        directions: ``[D, k]`` float64, columns of decreasing variance; the largest entry of each is positive.
        variances: ``[k]`` float64.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor

    @classmethod
    @torch.no_grad()
    def learn(cls, rows: Tensor, dims: int) -> Pca:
        """Learns from the rows of all processes; only their sum and second moment travel. Every process calls it.

        Args:
            rows: ``[n, D]``, perhaps mapped from a file; n may differ between processes.
            dims: k, at most D and at most N - 1 (N rows span no more).

        Raises:
            UserError: more dimensions than there can be, or rows that are all the same.
        """
        width = rows.shape[1]
        sums = torch.zeros(width + 1, dtype=torch.float64, device=rows.device)
        for piece in pieces(rows):
            sums[:width] += piece.double().sum(0)
        sums[width] = len(rows)
        sums = comm.all_reduce(sums)
        total = int(sums[width])
        most = min(width, total - 1)
        if not 1 <= dims <= most:
            raise UserError(
                f"{dims} principal components were asked for, but {total} rows of {width} numbers allow 1 to {most}. "
                "Ask for fewer, or learn them from more images."
            )
        mean = sums[:width] / total
        moment = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
        for piece in pieces(rows):
            centred = piece.double() - mean
            moment += centred.T @ centred
        variances, vectors = torch.linalg.eigh(comm.all_reduce(moment) / total)
        if float(variances[-1]) <= 0:
            raise UserError("there are no principal components: all rows are the same (a collapsed network?)")
        directions = vectors.flip(1)[:, :dims]
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        return cls(mean, directions * largest.sign(), variances.flip(0)[:dims])

    def apply(self, rows: Tensor, *, whiten: bool = True, unit: bool = True) -> Tensor:
        """``[n, D] -> [n, k]`` float32.

        Args:
            rows: to be turned.
            whiten: divide each direction by its standard deviation.
            unit: scale each row to length 1, last.
        """
        scale = self.variances.clamp_min(VARIANCE_FLOOR * float(self.variances[0])).rsqrt() if whiten else 1.0
        turn = (self.directions * scale).float()
        shift = (self.mean @ (self.directions * scale)).float()
        found = [piece.float() @ turn - shift for piece in pieces(rows)] or [turn.new_empty(0, turn.shape[1])]
        turned = torch.cat(found)
        return normalize(turned, dim=1) if unit else turned
