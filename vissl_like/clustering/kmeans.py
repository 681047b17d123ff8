"""k-means over the rows of all processes, plain or spherical, in one level or two.

Lloyd's algorithm as in faiss and in DeeperCluster's distributed form (Caron et al. 2019, arXiv:1905.01278, sec. 3.3):
between processes travel only the counts and sums of clusters, K * D + K numbers an iteration. Rows are worked through
in pieces, may be mapped from a file, and no N x K matrix is ever made.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vissl_like.clustering.nearest import PIECE_NUMBERS, nearest_finder, pieces
from vissl_like.distributed import comm
from vissl_like.utils.errors import UserError

SPLIT_SHIFT = 1 / 1024
"""How far the two halves of a split cluster are moved apart, relative to each coordinate (the number is faiss's)."""

_LAST = torch.iinfo(torch.int64).max


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        centroids: ``[K, D]`` float32, equal on all processes.
        labels: ``[n]`` int64 in 0..K-1, of this process's rows.
        scores: ``[n]`` float32, how each row lies to its centroid: squared distance, or cosine where it is spherical.
    """

    centroids: Tensor
    labels: Tensor
    scores: Tensor


@torch.no_grad()
def kmeans(
    rows: Tensor,
    priority: Tensor,
    num_clusters: int,
    iterations: int,
    *,
    spherical: bool = False,
    split_empty: bool = True,
    rows_per_cluster: int | None = None,
    start: Tensor | None = None,
    done: int = 0,
    after: Callable[[int, Tensor], None] | None = None,
) -> Clusters:
    """Clusters rows; every process holds a part of them, calls this, and gets the same centroids.

    Starts from the ``num_clusters`` rows of best priority among all processes. Each iteration gives every row to the
    nearest centroid (the first of equals) and replaces each centroid by the mean of its rows. A last assignment follows
    the last iteration. The same input gives the same bits again. How rows are spread over processes changes nothing but
    rounding, if priorities are tied to what the rows are (the image) and not to where they lie.

    Args:
        rows: ``[n, D]``, perhaps mapped from a file; n may differ between processes, and be 0.
        priority: ``[n]`` int64 >= 0, lowest first, distinct over all processes.
        num_clusters: K, at most the rows of all processes.
        iterations: >= 0, those that are ``done`` included.
        spherical: rows and centroids are of length 1 (rows must come so) and nearest is the largest cosine.
        split_empty: a centroid without rows takes half of the largest cluster's; False leaves it where it is.
        rows_per_cluster: centroids are found from this many rows for each of them, those of best priority, which then
            must be a permutation of 0..N-1; None takes all. Labels are given to all rows in any case.
        start: ``[K, D]`` centroids to begin with, equal on all processes; None takes rows.
        done: iterations that ``start`` has behind it.
        after: called with the number of finished iterations and the centroids, to keep them somewhere.

    Raises:
        UserError: fewer rows than clusters.
    """
    total = int(comm.all_reduce(torch.tensor(len(rows), device=rows.device)))
    if num_clusters > total:
        raise UserError(f"{num_clusters} clusters were asked for and there are {total} rows to cluster; ask for fewer")
    learnt = rows
    if rows_per_cluster is not None and num_clusters * rows_per_cluster < total:
        learnt = rows[priority < num_clusters * rows_per_cluster]
    centroids = _first_centroids(rows, priority, num_clusters) if start is None else start.float()
    for iteration in range(done, iterations):
        centroids = _moved(learnt, centroids, spherical, split_empty)
        if after is not None:
            after(iteration + 1, centroids)
    return Clusters(centroids, *assign(rows, centroids, spherical=spherical))


@torch.no_grad()
def assign(rows: Tensor, centroids: Tensor, *, spherical: bool = False) -> tuple[Tensor, Tensor]:
    """The nearest centroid of every row: labels ``[n]`` int64 and scores ``[n]`` float32 as in ``Clusters``."""
    find = nearest_finder(centroids, spherical)
    found = [find(piece) for piece in pieces(rows)]
    if not found:
        return rows.new_empty(0, dtype=torch.int64), rows.new_empty(0, dtype=torch.float32)
    return torch.cat([labels for labels, _ in found]), torch.cat([scores for _, scores in found])


@torch.no_grad()
def hierarchical_kmeans(
    rows: Tensor,
    priority: Tensor,
    num_upper: int,
    num_lower: int,
    iterations: int,
    *,
    spherical: bool = False,
) -> tuple[Tensor, Tensor]:
    """k-means in two levels: clusters of all rows, then clusters inside of each (Caron et al. 2019, section 3.3).

    The authors give every upper cluster to a group of processes, which needs its rows there; here all processes work
    through one upper cluster after the other, each on the rows that it has: the same sums travel, rows stay where they
    are, and any number of processes will do. An upper cluster of fewer rows than ``num_lower`` gets one for each row.

    Args:
        rows, priority, iterations, spherical: as in ``kmeans``.
        num_upper: clusters of the first level.
        num_lower: clusters inside of each.

    Returns:
        upper labels ``[n]`` int64 in 0..num_upper-1, lower labels ``[n]`` int64 in 0..num_lower-1.
    """
    upper = kmeans(rows, priority, num_upper, iterations, spherical=spherical).labels
    lower = torch.zeros_like(upper)
    for number in range(num_upper):
        own = (upper == number).nonzero().flatten()
        size = int(comm.all_reduce(torch.tensor(len(own), device=rows.device)))
        if size:
            inside = kmeans(rows[own], priority[own], min(num_lower, size), iterations, spherical=spherical)
            lower[own] = inside.labels
    return upper, lower


def random_priorities(count: int, *seed: int) -> Tensor:
    """``[count]`` int64: a random order of 0..count-1 that is a function of the seed numbers (>= 0) alone."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(list(seed))).permutation(count))


def split_clusters(centroids: Tensor, counts: Tensor) -> Tensor:
    """Gives every centroid without rows half of the cluster that is largest at that moment.

    Both halves start from the donor's place, moved apart by ``SPLIT_SHIFT`` of each coordinate, with signs that
    alternate. faiss chooses the donor at random, in proportion to its size; here it is a function of the counts alone,
    so that all processes do the same without asking each other.

    Args:
        centroids: ``[K, D]``.
        counts: ``[K]`` int64 rows of each.

    Returns:
        ``[K, D]``; the argument itself if no cluster is empty.
    """
    empty = (counts == 0).nonzero().flatten().tolist()
    if not empty:
        return centroids
    split = centroids.clone()
    sizes = [(-count, number) for number, count in enumerate(counts.tolist()) if count > 1]
    heapq.heapify(sizes)
    shift = torch.full_like(split[0], SPLIT_SHIFT)
    shift[1::2] *= -1
    for number in empty:
        if not sizes:  # every other cluster is a single row
            break
        count, donor = heapq.heappop(sizes)
        split[number] = split[donor] * (1 + shift)
        split[donor] *= 1 - shift
        half = -count // 2
        for part, owner in ((half, number), (-count - half, donor)):
            if part > 1:
                heapq.heappush(sizes, (-part, owner))
    return split


def _first_centroids(rows: Tensor, priority: Tensor, num_clusters: int) -> Tensor:
    """Rows of best priority over all processes. Each offers its best; only priorities and the K winners travel."""
    own = priority.argsort(stable=True)[:num_clusters]
    offered = torch.full((num_clusters,), _LAST, dtype=torch.int64, device=rows.device)
    offered[: len(own)] = priority[own]
    chosen = comm.all_gather(offered).argsort(stable=True)[:num_clusters]
    mine = chosen // num_clusters == comm.rank()
    centroids = torch.zeros(num_clusters, rows.shape[1], device=rows.device)
    centroids[mine] = rows[own[chosen[mine] % num_clusters]].float()
    return comm.all_reduce(centroids)


def _moved(rows: Tensor, centroids: Tensor, spherical: bool, split_empty: bool) -> Tensor:
    """One iteration: assign, average, see to empty clusters."""
    num_clusters = centroids.shape[0]
    find = nearest_finder(centroids, spherical)
    sums = torch.zeros_like(centroids)
    counts = torch.zeros(num_clusters, dtype=torch.int64, device=centroids.device)
    for piece in pieces(rows):
        labels, _ = find(piece)
        # On a CPU additions come in a fixed order; on a GPU they do not, and a product repeats exactly.
        add = _sums_by_product if piece.is_cuda else _sums
        sums += add(piece.float(), labels, num_clusters)
        counts += torch.bincount(labels, minlength=num_clusters)
    sums, counts = comm.all_reduce(sums), comm.all_reduce(counts)
    moved = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centroids)
    if split_empty:
        moved = split_clusters(moved, counts)
    return normalize(moved, dim=1) if spherical else moved


def _sums(rows: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """``[K, D]`` sum of the rows of each label."""
    return rows.new_zeros(num_clusters, rows.shape[1]).index_add_(0, labels, rows)


def _sums_by_product(rows: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """``[K, D]`` sum of the rows of each label, as products with the one-hot labels."""
    total = rows.new_zeros(num_clusters, rows.shape[1])
    step = max(1, PIECE_NUMBERS // num_clusters)
    for part, names in zip(rows.split(step), labels.split(step), strict=True):
        members = part.new_zeros(len(part), num_clusters).scatter_(1, names[:, None], 1.0)
        total.addmm_(members.t(), part)
    return total
