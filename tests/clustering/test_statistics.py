import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from vissl_like.clustering.statistics import describe_sizes, evenness, moved_share, mutual_information, purity


@pytest.mark.parametrize(("clusters", "classes"), [(5, 3), (2, 7), (12, 12)])
def test_information_equals_scikit_learns_geometric_one(clusters, classes):
    generator = np.random.default_rng(clusters)
    first, second = generator.integers(0, clusters, 200), generator.integers(0, classes, 200)
    second[:120] = first[:120] % classes  # some agreement
    found = float(mutual_information(torch.from_numpy(first), torch.from_numpy(second)))
    expected = normalized_mutual_info_score(second, first, average_method="geometric")
    assert found == pytest.approx(expected, rel=1e-9) and 0.1 < found < 0.95
    if clusters != classes:
        assert found != pytest.approx(normalized_mutual_info_score(second, first), rel=1e-3)  # arithmetic mean


def test_information_at_the_ends():
    labels = torch.tensor([0, 0, 1, 1, 4, 4])
    assert float(mutual_information(torch.tensor([3, 3, 0, 0, 1, 1]), labels)) == pytest.approx(1.0)
    assert float(mutual_information(torch.tensor([0, 1] * 2), torch.tensor([0, 0, 1, 1]))) == 0.0
    assert float(mutual_information(torch.zeros(6, dtype=torch.int64), labels)) == 0.0


def test_purity_by_hand():
    # Cluster 0: two of class 1, one of class 0 -> 2; cluster 2: two of class 1 -> 2; cluster 3: one -> 1. Five of six.
    clusters, labels = torch.tensor([0, 0, 0, 2, 2, 3]), torch.tensor([1, 1, 0, 1, 1, 2])
    assert purity(clusters, labels) == pytest.approx(5 / 6)


def test_samples_that_moved():
    # Two former clusters trade names, and one sample goes over: one of six.
    before, labels = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 1, 1, 0, 0, 1])
    assert moved_share(labels, before) == pytest.approx(1 / 6)
    assert moved_share(before, before) == 0


def test_sizes():
    found = describe_sizes(torch.tensor([4, 0, 1, 3]))
    even = found.pop("evenness")
    assert found == {"clusters": 4, "empty": 1, "smallest": 1, "median": 3.0, "largest": 4}
    shares = np.array([4, 1, 3]) / 8
    assert even == pytest.approx(-(shares * np.log(shares)).sum() / np.log(4))
    assert float(evenness(torch.tensor([7, 7, 7]))) == pytest.approx(1) and float(evenness(torch.tensor([7]))) == 0
