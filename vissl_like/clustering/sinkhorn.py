"""Balanced soft assignment by Sinkhorn-Knopp (Cuturi 2013; SwAV, arXiv:2006.09882, eq. 3-4 and listing 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vissl_like.distributed import comm

_EXP_RANGE = 80.0  # exp(-87) is the smallest normal float32: beyond this spread a prototype's column could vanish
_BLOCK = 1 << 18  # numbers that a CPU works on at a time: 1 MiB stays in its cache


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    epsilon: float,
    iterations: int,
    *,
    last: int | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Assignment of samples to prototypes with (nearly) equal prototype mass over all processes.

    Each iteration gives every prototype the same total mass over the samples of all processes, then every sample mass
    1; the last operation is per sample, so rows sum to 1 and prototype masses are equal only approximately. The result
    does not depend on how samples are spread over processes, nor on a constant added to the scores. Computed in
    float32, in logarithms where exp(scores / epsilon) could underflow.

    Args:
        scores: ``[b, K]`` similarity of this process's samples to the prototypes.
        epsilon: entropy weight, > 0; smaller is sharper (0.05 in SwAV, 0.03 where 0.05 stays uniform).
        iterations: 3 in SwAV, 10 in SEER; 0 gives a plain softmax over prototypes.
        last: return only this many rows, the last ones; None = all.
        overwrite: use the memory of ``scores`` where it is float32, whose values are lost.

    Returns:
        ``[b, K]`` (or ``[last, K]``) float32, rows sum to 1.
    """
    own = overwrite or scores.dtype != torch.float32
    scores = scores.detach().float()
    wanted = scores.shape[0] if last is None else last
    lowest, highest = scores.aminmax()
    extremes = comm.all_reduce(torch.stack([highest, -lowest]), "max")
    if float(extremes.sum()) / epsilon > _EXP_RANGE:
        return _sinkhorn_log(scores / epsilon, iterations)[scores.shape[0] - wanted :]
    with torch.autocast(scores.device.type, enabled=False):  # which would make products of half precision
        mass = scores if own else torch.empty_like(scores, memory_format=torch.contiguous_format)
        return _sinkhorn_plain(scores, mass, extremes[0], epsilon, iterations, wanted)


def _sinkhorn_plain(
    scores: Tensor, mass: Tensor, highest: Tensor, epsilon: float, iterations: int, wanted: int
) -> Tensor:
    """Sinkhorn as factors of rows and columns: an iteration reads the matrix once and writes nothing to it.

    ``mass`` becomes exp((scores - highest) / epsilon). The result is mass[i, j] row[i] column[j]; a row's new factor
    and what it adds to the prototypes' next totals are calculated while the row is in the cache.

    Args:
        scores: ``[b, K]``.
        mass: ``[b, K]`` to write to; may be ``scores``.
        highest: ``[]``, at least about the highest score of all processes, the same on all.
        epsilon, iterations: as in ``sinkhorn``.
        wanted: number of last rows to return.
    """
    rows, columns = scores.shape
    step = max(1, _BLOCK // max(1, columns)) if scores.device.type == "cpu" else max(1, rows)
    blocks = mass.split(step)
    total, ones = scores.new_zeros(columns), scores.new_ones(step)
    for part, block in zip(scores.split(step), blocks, strict=True):
        # A power of 2 is quicker than one of e, and so is a product with ones than a sum down the rows.
        torch.sub(part, highest, out=block).mul_(math.log2(math.e) / epsilon).exp2_()
        total.addmv_(block.t(), ones[: len(block)])
    column = torch.ones_like(total)
    for iteration in range(iterations):
        total = comm.all_reduce(total)
        column = total.mean() / total  # the mean keeps the factors near 1
        if iteration < iterations - 1:
            total = torch.zeros_like(total)
            for block in blocks:
                total.addmv_(block.t(), (block @ column).reciprocal_())
    result = mass[rows - wanted :]
    for block in result.split(step):
        row = (block @ column).reciprocal_()
        block.mul_(column).mul_(row[:, None])
    return result


def _sinkhorn_log(scaled: Tensor, iterations: int) -> Tensor:
    """The same iteration on logarithms: slower, safe for any spread of scores."""
    logs = scaled
    for _ in range(iterations):
        highest = comm.all_reduce(logs.max(0).values, "max")
        total = comm.all_reduce((logs - highest).exp().sum(0))
        logs = logs - (highest + total.log())
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.softmax(1)
