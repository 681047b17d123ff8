"""Numbers that tell a collapsed representation from a healthy one; pure functions of a batch of outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


def even_rows(rows: Tensor, limit: int) -> Tensor:
    """At most ``limit`` rows of ``[n, ...]``, evenly spread over it (so over views as well)."""
    return rows[:: -(-rows.shape[0] // limit)]


def spread(rows: Tensor) -> float:
    """Standard deviation over l2-normalised rows ``[n, D]``, mean over dimensions, in units of 1 / sqrt(D).

    1 for directions that fill the sphere evenly, 0 if all are the same (Chen & He 2021, arXiv:2011.10566, figure 2).
    """
    return float(normalize(rows.float(), dim=1).std(dim=0, correction=0).mean()) * rows.shape[1] ** 0.5


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the singular values of ``[n, D]`` as shares of their sum, between 1 and min(n, D).

    RankMe (Garrido et al. 2023, arXiv:2210.02885, equation 2). 0 for a matrix of zeros.
    """
    return _entropy_rank(_singular_values(rows))


def centred_directions(rows: Tensor) -> tuple[float, float]:
    """Along how many directions l2-normalised rows ``[n, D]`` differ from their mean.

    Without centring the mean direction, strong in every untrained network, would hide the others.

    Returns:
        effective rank of the centred rows; share of their variance that lies along the first principal direction, 0..1
        (NaN if all rows are the same).
    """
    unit = normalize(rows.double(), dim=1)
    values = _singular_values(unit - unit.mean(dim=0))
    variances = values.square()
    return _entropy_rank(values), float(variances.max() / variances.sum())


def _singular_values(rows: Tensor) -> Tensor:
    """By the smaller Gram matrix, several times faster than an SVD; double precision keeps them exact enough."""
    rows = rows.double()
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()


def _entropy_rank(values: Tensor) -> float:
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def assignment_numbers(logits: Tensor, temperature: float) -> tuple[float, float, float]:
    """How images are spread over prototypes, from logits ``[n, K]`` and a softmax temperature.

    Returns:
        entropy of the mean assignment over ln min(n, K): 1 = all prototypes alike, 0 = one takes everything;
        mean entropy of the single assignments over ln K: 1 = every image belongs to all prototypes alike;
        share of the min(n, K) prototypes possible that are the nearest one of some image.
    """
    rows, count = logits.shape
    possible = min(rows, count)
    assignments = (logits.float() / temperature).softmax(dim=1)
    of_mean = float(torch.special.entr(assignments.mean(dim=0)).sum()) / max(math.log(possible), 1e-9)
    of_each = float(torch.special.entr(assignments).sum(dim=1).mean()) / max(math.log(count), 1e-9)
    used = logits.argmax(dim=1).unique().numel() / possible
    return min(of_mean, 1.0), of_each, used
