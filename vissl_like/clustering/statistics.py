"""How clusterings look and agree: sizes, information, purity."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mutual_information(first: Tensor, second: Tensor) -> Tensor:
    """Normalised mutual information of two labelings of the same samples, I / sqrt(H1 H2), in [0, 1].

    The square-root form of the DeepCluster paper (arXiv:1807.05520, section 4.1); scikit-learn divides by the
    arithmetic mean of the entropies unless told otherwise, which gives lower values. 0 where a labeling has one class
    only, which says nothing of the other, and where there are no samples.

    Args:
        first: ``[n]`` int64 >= 0.
        second: ``[n]`` int64 >= 0.

    Returns:
        float64, on the labels' device.
    """
    if not len(first):
        return torch.zeros((), dtype=torch.float64, device=first.device)
    shared = torch.unique(first * (second.max() + 1) + second, return_counts=True)[1]
    one, other = entropy(torch.bincount(first)), entropy(torch.bincount(second))
    return ((one + other - entropy(shared)) / (one * other).sqrt().clamp_min(1e-12)).clamp(0, 1)


def purity(clusters: Tensor, labels: Tensor) -> float:
    """Share of samples of their cluster's most frequent class, in (0, 1].

    Args:
        clusters, labels: ``[n]`` int64 >= 0, n > 0.
    """
    width = int(labels.max()) + 1
    pairs, counts = torch.unique(clusters * width + labels, return_counts=True)
    most = torch.zeros(int(clusters.max()) + 1, dtype=torch.int64, device=clusters.device)
    return float(most.scatter_reduce_(0, pairs // width, counts, "amax").sum()) / len(labels)


def moved_share(labels: Tensor, before: Tensor) -> float:
    """Share of samples that did not come along: of a cluster, all but the largest part from one former cluster.

    Labels of two clusterings need not agree, so a cluster is taken for the continuation of the former one that most of
    its samples come from.

    Args:
        labels, before: ``[n]`` int64 >= 0, n > 0.
    """
    return 1 - purity(labels, before)


def entropy(counts: Tensor) -> Tensor:
    """Entropy in nats of the distribution that counts describe, float64."""
    share = counts.double() / counts.sum()
    return -torch.xlogy(share, share).sum()


def evenness(counts: Tensor) -> Tensor:
    """Entropy of the sizes of K clusters over ln K: 1 for equal sizes, 0 for a single one; float64."""
    return entropy(counts) / max(math.log(len(counts)), 1e-12)


def describe_sizes(counts: Tensor) -> dict[str, float | int]:
    """Sizes of K clusters in a few numbers: ``clusters``, ``empty``, ``smallest`` and ``largest`` (of those with
    members), ``median``, ``evenness``.

    Args:
        counts: ``[K]`` int64, not all 0.
    """
    full = counts[counts > 0]
    return {
        "clusters": len(counts),
        "empty": len(counts) - len(full),
        "smallest": int(full.min()),
        "median": float(full.double().quantile(0.5)) if len(full) < 2**24 else float(full.double().median()),
        "largest": int(full.max()),
        "evenness": float(evenness(counts)),
    }
