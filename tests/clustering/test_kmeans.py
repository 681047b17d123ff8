"""Spherical k-means against a hand-worked case and a plain float64 transcription, in one and two processes."""

import math

import numpy as np
import pytest
import torch
from processes import run_in_processes

from vissl_like.clustering import kmeans
from vissl_like.clustering.kmeans import random_priorities, spherical_kmeans


def unit(*degrees):
    return torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees])


def plain(rows, priority, clusters, iterations):
    """Row by row, in float64; returns centroids and labels."""
    rows = rows.double().numpy()
    centroids = [rows[row].copy() for row in np.argsort(priority.numpy())[:clusters]]
    for iteration in range(iterations + 1):
        labels = [int(np.argmax([row @ centroid for centroid in centroids])) for row in rows]
        if iteration == iterations:
            return np.array(centroids), labels
        for cluster in range(clusters):
            members = [row for row, label in zip(rows, labels) if label == cluster]
            if members:
                mean = sum(members) / len(members)
                centroids[cluster] = mean / np.sqrt((mean**2).sum())


def test_hand_worked():
    # Starts at 0 and 20 degrees (priorities 0 and 1). First assignment: {0} and {20, 90, 110} by the larger cosine;
    # means point to 0 and to the direction of the sum of the three. That is at
    # atan2(sin 20 + 1 + sin 110, cos 20 + 0 + cos 110) = atan2(2.28171, 0.59767) = 75.32 degrees, so 20 changes sides;
    # then centroids are at 10 and 100 degrees and nothing moves any more.
    rows = unit(0, 20, 90, 110)
    priority = torch.tensor([0, 1, 2, 3])
    centroids, labels = spherical_kmeans(rows, priority, 2, 1)
    torch.testing.assert_close(centroids, unit(0, 75.32147), rtol=1e-5, atol=1e-5)
    assert labels.tolist() == [0, 0, 1, 1]
    centroids, labels = spherical_kmeans(rows, priority, 2, 2)
    torch.testing.assert_close(centroids, unit(10, 100))
    assert labels.tolist() == [0, 0, 1, 1]


def test_no_iteration_gives_the_rows_of_best_priority():
    rows = unit(0, 20, 90, 110)
    centroids, labels = spherical_kmeans(rows, torch.tensor([9, 4, 7, 2]), 2, 0)
    torch.testing.assert_close(centroids, unit(110, 20))
    assert labels.tolist() == [1, 1, 0, 0]


def test_a_centroid_without_rows_stays():
    # Two equal rows start two centroids; the first of equals takes both rows, the second stays where it is.
    centroids, labels = spherical_kmeans(unit(30, 30, 200), torch.tensor([0, 1, 2]), 3, 5)
    torch.testing.assert_close(centroids, unit(30, 30, 200))
    assert labels.tolist() == [0, 0, 2]


def points(count=60, dim=6):
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize(("clusters", "iterations"), [(2, 10), (7, 10), (20, 3), (60, 2)])
def test_equals_the_plain_form(clusters, iterations):
    rows, priority = points(), random_priorities(60, 5, clusters)
    centroids, labels = spherical_kmeans(rows, priority, clusters, iterations)
    expected, expected_labels = plain(rows, priority, clusters, iterations)
    np.testing.assert_allclose(centroids.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert labels.tolist() == expected_labels
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(clusters))


def test_pieces_change_nothing(monkeypatch):
    rows, priority = points(), random_priorities(60, 0)
    whole = spherical_kmeans(rows, priority, 5, 10)
    monkeypatch.setattr(kmeans, "_SCORES_AT_ONCE", 35)  # pieces of 7 rows
    pieces = spherical_kmeans(rows, priority, 5, 10)
    torch.testing.assert_close(pieces[0], whole[0])
    assert torch.equal(pieces[1], whole[1])


def test_both_ways_to_sum_are_the_sum():
    rows, labels = points(9), torch.tensor([0, 3, 3, 1, 0, 3, 1, 0, 3])
    expected = torch.stack([sum((rows[i] for i in range(9) if labels[i] == k), torch.zeros(6)) for k in range(5)])
    for sums in (kmeans._sums, kmeans._sums_by_product):
        torch.testing.assert_close(sums(rows, labels, 5), expected)


def test_priorities_are_a_random_order_of_their_seed():
    first = random_priorities(50, 3, 0, 1)
    assert sorted(first.tolist()) == list(range(50)) and first.tolist() != list(range(50))
    assert torch.equal(first, random_priorities(50, 3, 0, 1))
    assert not torch.equal(first, random_priorities(50, 3, 1, 0))


def _part(rank, world_size, rows, priority):
    # Dealt out alternately, so that neighbours in one process are not neighbours in two. 40 are more than either has.
    return [list(spherical_kmeans(rows[rank::2], priority[rank::2], clusters, 10)) for clusters in (7, 40)]


def test_two_processes_equal_one():
    rows, priority = points(), random_priorities(60, 8)
    results = run_in_processes(_part, 2, rows, priority)
    for clusters, (first, first_labels), (second, second_labels) in zip((7, 40), *results):
        centroids, labels = spherical_kmeans(rows, priority, clusters, 10)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, centroids, rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.stack([first_labels, second_labels], 1).flatten(), labels)
