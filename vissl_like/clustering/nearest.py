"""Nearest centroids and nearest neighbours: faiss on a CPU, products in pieces on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from vissl_like.compat.faiss import get_faiss
from vissl_like.utils.errors import UserError

PIECE_NUMBERS = 2**24
"""Numbers of a matrix that is held at a time (64 MiB)."""

Find = Callable[[Tensor], tuple[Tensor, Tensor]]


def pieces(rows: Tensor) -> Iterator[Tensor]:
    """Consecutive rows, ``PIECE_NUMBERS`` numbers at a time; none where there are no rows."""
    if len(rows):
        yield from rows.split(max(1, PIECE_NUMBERS // max(1, rows.shape[1])))


def nearest_finder(centroids: Tensor, spherical: bool) -> Find:
    """A function from rows ``[n, D]`` to the nearest centroid of each, the first of equals.

    On a CPU faiss does it, 1.3 to 1.5 times as fast as torch (``dev/bench/kmeans.py``); torch where faiss is not there.

    Args:
        centroids: ``[K, D]`` float32.
        spherical: nearest is the largest dot product; else the smallest distance.

    Returns:
        a function that gives labels ``[n]`` int64, and ``[n]`` float32 dot products or squared distances.
    """
    if centroids.device.type == "cpu":
        try:
            faiss = get_faiss()
        except UserError:
            return _by_products(centroids, spherical)
        index = (faiss.IndexFlatIP if spherical else faiss.IndexFlatL2)(centroids.shape[1])
        index.add(_array(centroids))

        def find(rows: Tensor) -> tuple[Tensor, Tensor]:
            values, labels = index.search(_array(rows), 1)
            return torch.from_numpy(labels[:, 0]), torch.from_numpy(values[:, 0])

        return find
    return _by_products(centroids, spherical)


def _by_products(centroids: Tensor, spherical: bool) -> Find:
    half = None if spherical else centroids.square().sum(1) / 2

    def find(rows: Tensor) -> tuple[Tensor, Tensor]:
        labels, values = [], []
        for part in rows.float().split(max(1, PIECE_NUMBERS // len(centroids))):
            # |x - c|^2 / 2 = |x|^2 / 2 - (x c - |c|^2 / 2): the largest difference is the nearest.
            scores = part @ centroids.t() if half is None else torch.addmm(half, part, centroids.t(), beta=-1)
            label = scores.argmax(1)
            best = scores.gather(1, label[:, None])[:, 0]
            labels.append(label)
            values.append(best if spherical else (part.square().sum(1) - 2 * best).clamp_min(0))
        return torch.cat(labels), torch.cat(values)

    return find


def nearest_neighbours(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest other rows of every row, by Euclidean distance, on this process alone.

    Args:
        rows: ``[N, D]`` on the CPU.
        count: k, less than N.

    Returns:
        positions ``[N, k]`` int64 and squared distances ``[N, k]`` float32, nearest first; no row is its own neighbour.

    Raises:
        UserError: not more rows than neighbours, or faiss is not there.
    """
    if not 0 < count < len(rows):
        raise UserError(f"{count} neighbours were asked for of {len(rows)} rows; there must be more rows than that")
    faiss = get_faiss()
    index = faiss.IndexFlatL2(rows.shape[1])
    for piece in pieces(rows):
        index.add(_array(piece))
    found = [index.search(_array(piece), count + 1) for piece in pieces(rows)]
    distances = np.concatenate([values for values, _ in found])
    positions = np.concatenate([places for _, places in found])
    # A row is its own first neighbour unless another one is equal to it: then it may stand anywhere, or nowhere.
    itself = positions == np.arange(len(rows))[:, None]
    itself[~itself.any(1), count] = True
    keep = ~itself
    shape = (len(rows), count)
    return torch.from_numpy(positions[keep].reshape(shape)), torch.from_numpy(distances[keep].reshape(shape))


def _array(rows: Tensor) -> np.ndarray:
    return np.ascontiguousarray(rows.float().numpy())
