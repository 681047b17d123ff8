import json

import numpy as np
import pytest
import torch

from vissl_like.clustering.statistics import purity
from vissl_like.evaluation.base import Features
from vissl_like.evaluation.clustering import ClusteringEvaluation, kmeans_clusters
from vissl_like.utils.errors import UserError


def groups(count=60, classes=3, spread=0.05, seed=0, scale=1.0):
    """Directions of three classes with lengths that say nothing."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    rows = np.eye(8)[labels] + spread * generator.normal(size=(count, 8))
    rows *= generator.uniform(1, scale, (count, 1)) if scale > 1 else 1
    return Features(torch.tensor(rows, dtype=torch.float32), torch.tensor(labels), torch.arange(count))


@pytest.mark.parametrize("spherical", [True, False])
def test_clear_groups_are_found(spherical):
    features = groups()
    best = max(
        purity(kmeans_clusters(features.features, 3, iterations=20, spherical=spherical, seed=seed), features.labels)
        for seed in range(6)
    )
    assert best == 1.0


def test_lengths_count_without_spherical_only():
    rows = torch.tensor([[1.0, 0.1], [1.0, -0.1], [100.0, 0.0], [0.1, 1.0], [-0.1, 1.0], [0.0, 100.0]])
    angles = kmeans_clusters(rows, 2, iterations=20, spherical=True, seed=0).tolist()
    assert len(set(angles[:3])) == len(set(angles[3:])) == 1 and angles[0] != angles[3]
    plain = [kmeans_clusters(rows, 3, iterations=20, spherical=False, seed=seed).tolist() for seed in range(8)]
    assert any(len({found[0], found[2], found[5]}) == 3 and found[0] == found[3] for found in plain)


def test_result():
    test = groups(count=90, spread=0.3, scale=9.0)
    result = ClusteringEvaluation(runs=4)(groups(), test, 3)
    assert result.main == "nmi" and result.items is None and result.predictions is None
    runs = result.details["per_run"]
    assert result.metrics["nmi"] == pytest.approx(np.mean([run["nmi"] for run in runs]))
    assert result.details["sd"]["purity"] == pytest.approx(np.std([run["purity"] for run in runs], ddof=1))
    assert result.details["clusters"] == 3 and result.details["mean_size"] == 30
    assert 1 <= result.details["min_size"] <= 30 <= result.details["max_size"] <= 90
    assert result.metrics["nmi"] > 50 > 10 > result.chance.metrics["nmi"]
    assert 33 < result.chance.metrics["purity"] < 60 and result.chance.name == "shuffled clusters"
    again = ClusteringEvaluation(runs=4)(groups(), test, 3)
    assert again.metrics == result.metrics and again.chance.metrics == result.chance.metrics
    json.dumps(result.details)


def test_many_clusters_flatter_even_what_is_shuffled():
    test = groups(count=60)
    result = ClusteringEvaluation(runs=2, clusters=40)(groups(), test, 3)
    assert result.chance.metrics["nmi"] > 30 and result.details["clusters"] == 40  # why chance stands beside it


def test_labels_take_no_part():
    test = groups(count=60, spread=0.6)
    turned = Features(test.features, test.labels.roll(7), test.indices)
    sizes = [ClusteringEvaluation(runs=3)(groups(), found, 3).details for found in (test, turned)]
    assert [sizes[0][name] for name in ("min_size", "max_size")] == [
        sizes[1][name] for name in ("min_size", "max_size")
    ]


def test_senseless_requests():
    with pytest.raises(UserError, match=r"70 clusters were asked for and there are 60 test images"):
        ClusteringEvaluation(clusters=70)(groups(), groups(), 3)
    single = Features(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    with pytest.raises(UserError, match="one class only"):
        ClusteringEvaluation()(groups(), single, 3)
    with pytest.raises(UserError, match="test images have no labels"):
        ClusteringEvaluation()(groups(), Features(torch.ones(4, 2), None, torch.arange(4)), 3)
