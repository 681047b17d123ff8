#!/usr/bin/env python3
"""One pass of k-means (assignment and means) beside faiss and scikit-learn, from the same first centroids, in turn.

    OMP_NUM_THREADS=1 python dev/bench/kmeans.py
    OMP_NUM_THREADS=1 python dev/bench/kmeans.py --rows 1000000 --dims 128 --clusters 1000 --sides ours faiss --runs 1

Gaussian rows. Every side makes four assignments of all rows; the table has CPU seconds of one of them (median of runs),
the ratio to ours, and what the process held at most beside the rows. ``same`` is the share of labels equal to ours.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from views import machine

from vissl_like.clustering.kmeans import kmeans
from vissl_like.clustering.nearest import _by_products
from vissl_like.compat.faiss import get_faiss

ASSIGNMENTS = 4


def ours(rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Three iterations and the last assignment."""
    data = torch.from_numpy(rows)
    found = kmeans(data, torch.arange(len(rows)), len(start), ASSIGNMENTS - 1, start=torch.from_numpy(start))
    return found.labels.numpy()


def torch_side(rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """What ``ours`` does where there is no faiss, and on a GPU."""
    from vissl_like.clustering import kmeans as module

    kept, module.nearest_finder = module.nearest_finder, _by_products
    try:
        return ours(rows, start)
    finally:
        module.nearest_finder = kept


def faiss_side(rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """faiss.Kmeans, three iterations, and a search."""
    faiss = get_faiss()
    model = faiss.Kmeans(rows.shape[1], len(start), niter=ASSIGNMENTS - 1, max_points_per_centroid=len(rows))
    model.train(rows, init_centroids=start)
    return model.index.search(rows, 1)[1][:, 0]


def sklearn_side(rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """scikit-learn's Lloyd, three iterations and the assignment that it ends with."""
    from sklearn.cluster import KMeans

    model = KMeans(len(start), init=start, n_init=1, max_iter=ASSIGNMENTS - 1, tol=0, algorithm="lloyd")
    return model.fit(rows).labels_


SIDES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ours": ours,
    "ours without faiss": torch_side,
    "faiss": faiss_side,
    "sklearn": sklearn_side,
}


def main() -> int:
    """Prints one table per number of clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=256)
    parser.add_argument("--clusters", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}; {options.rows:,d} rows of {options.dims}, {torch.get_num_threads()} thread(s)\n")
    rows = np.random.default_rng(0).standard_normal((options.rows, options.dims), dtype=np.float32)
    for clusters in options.clusters:
        start = np.ascontiguousarray(rows[np.random.default_rng(1).permutation(len(rows))[:clusters]])
        seconds: dict[str, list[float]] = {name: [] for name in options.sides}
        labels: dict[str, np.ndarray] = {}
        for _ in range(options.runs):
            for name in options.sides:
                began = time.process_time()
                labels[name] = SIDES[name](rows, start)
                seconds[name].append((time.process_time() - began) / ASSIGNMENTS)
        first = options.sides[0]
        print(f"| K = {clusters} | CPU s | of {first} | same |\n|---|---:|---:|---:|")
        for name, values in seconds.items():
            middle = statistics.median(values)
            share = 100 * float((labels[name] == labels[first]).mean())
            print(f"| {name} | {middle:.2f} | {middle / statistics.median(seconds[first]):.2f} | {share:.2f} % |")
        print(flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"most memory of this process: {peak:.0f} MiB, of which rows {rows.nbytes / 2**20:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
