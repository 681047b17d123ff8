"""Balanced soft assignment by Sinkhorn-Knopp (Cuturi 2013; SwAV, arXiv:2006.09882, eq. 3-4 and listing 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from vissl_like.distributed import comm

_EXP_RANGE = 80.0  # exp(-87) is the smallest normal float32: beyond this spread a prototype's column could vanish


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assignment of samples to prototypes with (nearly) equal prototype mass over all processes.

    Each iteration gives every prototype the same total mass over the samples of all processes, then every sample mass
    1; the last operation is per sample, so rows sum to 1 and prototype masses are equal only approximately. The result
    does not depend on how samples are spread over processes, nor on a constant added to the scores. Computed in
    float32, in logarithms where exp(scores / epsilon) could underflow.

    Args:
        scores: ``[b, K]`` similarity of this process's samples to the prototypes.
        epsilon: entropy weight, > 0; smaller is sharper (0.05 in SwAV, 0.03 where 0.05 stays uniform).
        iterations: 3 in SwAV, 10 in SEER; 0 gives a plain softmax over prototypes.

    Returns:
        ``[b, K]`` float32, rows sum to 1.
    """
    scaled = scores.float() / epsilon
    extremes = comm.all_reduce(torch.stack([scaled.max(), -scaled.min()]), "max")
    if float(extremes.sum()) > _EXP_RANGE:
        return _sinkhorn_log(scaled, iterations)
    mass = scaled.sub_(extremes[0]).exp_()
    for _ in range(iterations):
        mass /= comm.all_reduce(mass.sum(0))
        mass /= mass.sum(1, keepdim=True)
    return mass if iterations else mass.div_(mass.sum(1, keepdim=True))


def _sinkhorn_log(scaled: Tensor, iterations: int) -> Tensor:
    """The same iteration on logarithms: slower, safe for any spread of scores."""
    logs = scaled
    for _ in range(iterations):
        highest = comm.all_reduce(logs.max(0).values, "max")
        total = comm.all_reduce((logs - highest).exp().sum(0))
        logs = logs - (highest + total.log())
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.softmax(1)
