"""How well groups found in frozen features without labels agree with the classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vissl_like.clustering.statistics import mutual_information, purity
from vissl_like.compat.faiss import get_faiss
from vissl_like.distributed import comm
from vissl_like.evaluation.base import EvaluationResult, FeatureEvaluation, Features, required_labels
from vissl_like.evaluation.bench import Bench
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Index

SHUFFLED = "shuffled clusters"


@EVALUATIONS.register("clustering")
class ClusteringEvaluation(FeatureEvaluation):
    """k-means on the test images' frozen features, compared with their classes; no label takes part in the clustering.

    ``nmi`` is the mutual information of clusters and classes over the geometric mean of their entropies (Caron et al.
    2018, section 4.1); ``purity`` the share of images that are of their cluster's most frequent class. Both grow with
    the number of clusters even where they mean nothing, so the same clusters dealt out at random stand beside them.
    Values are means over runs, which differ by their random start. The training images take no part, but for the mean
    that is taken off pixels.

    Options:
        clusters: number of clusters; null for the number of classes that the test images have
        runs: repetitions from other starts
        spherical: scale features to length 1 and go by the cosine; false takes them as they are, by Euclidean distance
        iterations: of k-means
        seed: of the starts
    """

    def __init__(
        self,
        *,
        clusters: Count | None = None,
        runs: Count = 5,
        spherical: bool = True,
        iterations: Count = 50,
        seed: Index = 0,
    ):
        self.clusters, self.runs, self.spherical = clusters, runs, spherical
        self.iterations, self.seed = iterations, seed

    def __call__(self, train: Features, test: Features, num_classes: int) -> EvaluationResult:
        """Evaluates; see ``FeatureEvaluation``.

        Raises:
            UserError: labels are missing, the test images are of one class, or there are more clusters than images.
        """
        labels = required_labels(test, "test")
        present = len(labels.unique())
        if present < 2:
            raise UserError("the test images are of one class only: there are no classes for clusters to agree with")
        count = present if self.clusters is None else self.clusters
        if count > len(test):
            raise UserError(
                f"{count} clusters were asked for and there are {len(test)} test images; give at most as many: "
                f"config.EVALUATION.clusters={present}"
            )
        found, shuffled, sizes = [], [], []
        for run in range(self.runs):
            clusters = kmeans_clusters(
                test.features, count, iterations=self.iterations, spherical=self.spherical, seed=self.seed + run
            )
            generator = torch.Generator().manual_seed(self.seed + run)
            dealt = clusters[torch.randperm(len(clusters), generator=generator)]
            found.append(_measures(clusters, labels))
            shuffled.append(_measures(dealt, labels))
            sizes.append(clusters.bincount(minlength=count))
        table = torch.stack(sizes)
        empty = int((table == 0).sum())
        details = {
            "clusters": count,
            "classes": present,
            "runs": self.runs,
            "spherical": self.spherical,
            "iterations": self.iterations,
            "seed": self.seed,
            "mean_size": len(test) / count,
            "min_size": int(table.min()),
            "max_size": int(table.max()),
            "sd": {name: float(np.std([row[name] for row in found], ddof=1)) for name in found[0] if self.runs > 1},
            "per_run": found,
            "notices": [f"{empty} of {table.numel()} clusters are empty"] if empty else [],
        }
        chance = EvaluationResult(SHUFFLED, _means(shuffled), main="nmi", test_images=len(test))
        return EvaluationResult(
            "clustering", _means(found), None, details, main="nmi", chance=chance, test_images=len(test)
        )

    def run(self, bench: Bench) -> EvaluationResult | None:
        """See ``Evaluation``."""
        train, test = bench.probe_features()
        if not comm.is_main():
            return None
        result = self(train, test, bench.num_classes)
        result.skipped = test.skipped
        return result


def kmeans_clusters(features: Tensor, count: int, *, iterations: int, spherical: bool, seed: int) -> Tensor:
    """Clusters rows on this process alone, with faiss; a cluster that runs empty takes half of a populated one.

    Args:
        features: ``[N, F]`` on the CPU.
        count: K, at most N.
        iterations: assignments and means, each.
        spherical: rows and centroids are scaled to length 1, which makes the distance one of angles.
        seed: of the rows that are the first centroids.

    Returns:
        ``[N]`` int64 in 0..K-1.
    """
    faiss = get_faiss()
    rows = functional.normalize(features.float(), dim=1) if spherical else features.float()
    data = np.ascontiguousarray(rows.numpy())
    # Without these bounds faiss draws a subset of the rows, or remarks that there are few.
    bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": len(data)}
    model = faiss.Kmeans(data.shape[1], count, niter=iterations, seed=seed, spherical=spherical, **bounds)
    model.train(data)
    _, nearest = model.index.search(data, 1)
    return torch.from_numpy(nearest[:, 0].astype(np.int64))


def _measures(clusters: Tensor, labels: Tensor) -> dict[str, float]:
    return {"nmi": 100 * float(mutual_information(clusters, labels)), "purity": 100 * purity(clusters, labels)}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
