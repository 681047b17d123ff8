"""Spherical k-means over the rows of all processes (DeepCluster-v2 in Caron et al. 2020, arXiv:2006.09882, app. A)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vissl_like.distributed import comm

_SCORES_AT_ONCE = 2**24
"""Scores held in memory at a time (64 MiB): rows are worked through in pieces of this many divided by K."""


@torch.no_grad()
def spherical_kmeans(rows: Tensor, priority: Tensor, num_clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Clusters unit vectors by cosine; every process holds a part of the rows and gets the same centroids.

    Starts from the ``num_clusters`` rows of best priority among all processes. Each iteration gives every row to the
    centroid of largest dot product (the first of equals), replaces each centroid by the mean of its rows, and scales
    it to length 1; a centroid without rows stays where it is. A last assignment follows the last iteration. Computed in
    float32; the same input gives the same bits again.

    How rows are spread over processes changes nothing but rounding, if priorities are tied to what the rows are (the
    image) and not to where they lie. The official code starts from random rows of the first process instead.

    Args:
        rows: ``[n, D]`` of length 1; n equal on all processes.
        priority: ``[n]`` int64, lowest first, distinct over all processes.
        num_clusters: K, at most the rows of all processes.
        iterations: >= 0; 10 in DeepCluster-v2.

    Returns:
        centroids ``[K, D]`` float32 of length 1, equal on all processes, and labels ``[n]`` int64 in 0..K-1.
    """
    rows = rows.float()
    assert num_clusters <= rows.shape[0] * comm.world_size()
    centroids = _first_centroids(rows, priority, num_clusters)
    for _ in range(iterations):
        centroids = _moved(rows, centroids)
    pieces = [(piece @ centroids.t()).argmax(1) for piece in _pieces(rows, num_clusters)]
    return centroids, torch.cat(pieces)


def random_priorities(count: int, *seed: int) -> Tensor:
    """``[count]`` int64: a random order of 0..count-1 that is a function of the seed numbers (>= 0) alone."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(list(seed))).permutation(count))


def _first_centroids(rows: Tensor, priority: Tensor, num_clusters: int) -> Tensor:
    """Rows of best priority over all processes. Each offers its best; only priorities and the K winners travel."""
    own = priority.argsort(stable=True)[:num_clusters]
    chosen = comm.all_gather(priority[own]).argsort(stable=True)[:num_clusters]
    mine = chosen // own.shape[0] == comm.rank()
    centroids = rows.new_zeros(num_clusters, rows.shape[1])
    centroids[mine] = rows[own[chosen[mine] % own.shape[0]]]
    return comm.all_reduce(centroids)


def _moved(rows: Tensor, centroids: Tensor) -> Tensor:
    """One iteration: assign, average, normalise."""
    num_clusters = centroids.shape[0]
    sums = torch.zeros_like(centroids)
    counts = torch.zeros(num_clusters, dtype=torch.int64, device=rows.device)
    for piece in _pieces(rows, num_clusters):
        labels = (piece @ centroids.t()).argmax(1)
        # On a CPU additions come in a fixed order; on a GPU they do not, and a product repeats exactly.
        sums += _sums_by_product(piece, labels, num_clusters) if piece.is_cuda else _sums(piece, labels, num_clusters)
        counts += torch.bincount(labels, minlength=num_clusters)
    sums, counts = comm.all_reduce(sums), comm.all_reduce(counts)
    means = sums / counts.clamp_min(1)[:, None]
    return normalize(torch.where(counts[:, None] > 0, means, centroids), dim=1)


def _sums(rows: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """``[K, D]`` sum of the rows of each label."""
    return rows.new_zeros(num_clusters, rows.shape[1]).index_add_(0, labels, rows)


def _sums_by_product(rows: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """``[K, D]`` sum of the rows of each label, as the product with the one-hot labels."""
    members = rows.new_zeros(rows.shape[0], num_clusters).scatter_(1, labels[:, None], 1.0)
    return members.t() @ rows


def _pieces(rows: Tensor, num_clusters: int) -> tuple[Tensor, ...]:
    return rows.split(max(1, _SCORES_AT_ONCE // num_clusters))
