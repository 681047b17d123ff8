"""Power-iteration clustering of a graph of neighbours (Lin and Cohen 2010; DeepCluster, arXiv:1807.05520, appendix)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vissl_like.clustering.nearest import nearest_neighbours


def power_iteration_clusters(
    rows: Tensor, *, neighbours: int = 5, sigma: float = 0.2, alpha: float = 0.001, iterations: int = 200
) -> Tensor:
    """Clusters rows; how many clusters there are is not chosen but found.

    Args:
        rows: ``[N, D]`` on the CPU, of length 1 in DeepCluster.
        neighbours: k of the graph.
        sigma: width of the kernel, > 0.
        alpha: share of the graph in every iteration, in (0, 1).
        iterations: of the power method.

    Returns:
        ``[N]`` int64 from 0, in the order in which clusters first appear.

    Raises:
        UserError: not more rows than neighbours.
    """
    places, distances = nearest_neighbours(rows, neighbours)
    return clusters_of_graph(places, distances, sigma=sigma, alpha=alpha, iterations=iterations)


def clusters_of_graph(places: Tensor, distances: Tensor, *, sigma: float, alpha: float, iterations: int) -> Tensor:
    """Clusters of a graph of nearest neighbours.

    The weight of an edge is exp(-d / sigma^2) with d the SQUARED distance, as in the authors' code; weights of both
    directions are added. From v = 1/N, v <- alpha W v + (1 - alpha) / N is repeated, scaled to sum 1. Every node then
    points to the neighbour j of largest W_ij (v_j - v_i), if that is above 0, and is a root otherwise: a cluster is a
    tree of pointers. A node that is alone goes to the cluster of its nearest neighbour that is not.

    Args:
        places, distances: ``[N, k]``, as ``nearest_neighbours`` gives them.
        sigma, alpha, iterations: as above.

    Returns:
        ``[N]`` int64 as above.
    """
    near = places.numpy()
    count, width = near.shape
    first, second = np.repeat(np.arange(count), width), near.reshape(-1)
    weight = np.exp(-distances.double().numpy().reshape(-1) / sigma**2)
    # Both directions; an edge that is there twice simply counts twice, which is the sum.
    sources, targets = np.concatenate([first, second]), np.concatenate([second, first])
    pairs, where = np.unique(sources * count + targets, return_inverse=True)
    weight = np.bincount(where.reshape(-1), np.concatenate([weight, weight]), len(pairs))
    sources, targets = pairs // count, pairs % count

    importance = np.full(count, 1 / count)
    for _ in range(iterations):
        importance = alpha * np.bincount(sources, weight * importance[targets], count) + (1 - alpha) / count
        importance /= importance.sum()

    gain = weight * (importance[targets] - importance[sources])
    order = np.lexsort((-targets, gain, sources))  # the last of each source is its best; of equals, the first target
    last = order[np.flatnonzero(np.diff(sources[order], append=count))]
    pointer = np.arange(count)
    uphill = last[gain[last] > 0]
    pointer[sources[uphill]] = targets[uphill]
    # Importance rises along pointers, so there is no circle.
    while not np.array_equal(pointer, further := pointer[pointer]):
        pointer = further

    alone = np.bincount(pointer, minlength=count)[pointer] == 1
    company = ~alone[near] & alone[:, None]
    joined = np.flatnonzero(company.any(1))
    pointer[joined] = pointer[near[joined, company[joined].argmax(1)]]
    _, begins, labels = np.unique(pointer, return_index=True, return_inverse=True)
    rank = np.empty(len(begins), dtype=np.int64)
    rank[begins.argsort()] = np.arange(len(begins))
    return torch.from_numpy(rank[labels.reshape(-1)])
