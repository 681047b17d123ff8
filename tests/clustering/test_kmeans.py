"""k-means against hand-worked cases, a plain float64 form and scikit-learn, in one, two and four processes."""

import math

import numpy as np
import pytest
import torch
from processes import run_in_processes
from sklearn.cluster import KMeans

from vissl_like.clustering import kmeans as module
from vissl_like.clustering import nearest
from vissl_like.clustering.kmeans import hierarchical_kmeans, kmeans, random_priorities, split_clusters
from vissl_like.distributed import comm
from vissl_like.utils.errors import UserError


def spherical_kmeans(rows, priority, clusters, iterations):
    """As DeepCluster-v2 has it; returns centroids and labels."""
    return kmeans(rows, priority, clusters, iterations, spherical=True, split_empty=False)[:2]


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
    monkeypatch.setattr(nearest, "PIECE_NUMBERS", 42)  # pieces of 7 rows
    pieces = spherical_kmeans(rows, priority, 5, 10)
    torch.testing.assert_close(pieces[0], whole[0])
    assert torch.equal(pieces[1], whole[1])


def test_both_ways_to_sum_are_the_sum():
    rows, labels = points(9), torch.tensor([0, 3, 3, 1, 0, 3, 1, 0, 3])
    expected = torch.stack([sum((rows[i] for i in range(9) if labels[i] == k), torch.zeros(6)) for k in range(5)])
    for sums in (module._sums, module._sums_by_product):
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


def far_groups(count=3000, dim=24, groups=12):
    generator = torch.Generator().manual_seed(2)
    centres = 2 * torch.randn(groups, dim, generator=generator)
    return centres[torch.arange(count) % groups] + torch.randn(count, dim, generator=generator)


@pytest.mark.parametrize("clusters", [5, 12, 40])
def test_equals_scikit_learn_from_given_centroids(clusters):
    rows = far_groups()
    start = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(clusters))[:clusters]]
    theirs = KMeans(clusters, init=start.numpy(), n_init=1, max_iter=8, tol=0, algorithm="lloyd").fit(rows.numpy())
    ours = kmeans(rows, torch.arange(len(rows)), clusters, 8, start=start)
    np.testing.assert_allclose(ours.centroids.numpy(), theirs.cluster_centers_, rtol=1e-5, atol=1e-5)
    assert ours.labels.tolist() == theirs.labels_.tolist()
    expected = (rows - ours.centroids[ours.labels]).square().sum(1)
    torch.testing.assert_close(ours.scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spherical", [True, False])
def test_both_ways_to_find_the_nearest_agree(monkeypatch, spherical):
    rows = points(400, 16)
    centroids = rows[:30] * (1 if spherical else 1.3)
    labels, scores = nearest.nearest_finder(centroids, spherical)(rows)
    monkeypatch.setattr(nearest, "PIECE_NUMBERS", 1000)
    others, values = nearest._by_products(centroids, spherical)(rows)
    assert labels.tolist() == others.tolist()
    torch.testing.assert_close(scores, values, rtol=1e-4, atol=1e-5)
    exact = rows.double() @ centroids.double().t() if spherical else -torch.cdist(rows.double(), centroids.double())
    assert labels.tolist() == exact.argmax(1).tolist()


def test_without_faiss(monkeypatch):
    rows = far_groups(300)
    expected = kmeans(rows, random_priorities(300, 1), 7, 5)
    monkeypatch.setattr(nearest, "get_faiss", lambda: (_ for _ in ()).throw(UserError("none here")))
    found = kmeans(rows, random_priorities(300, 1), 7, 5)
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.centroids, expected.centroids)


def test_split_by_hand():
    # 9 rows and 3 rows; two are empty. The first takes 4 of the 9, the second then 2 of the 5 that are left.
    centroids = torch.tensor([[1.0, -2.0], [5, 5], [8, 8], [4, 4]])
    split = split_clusters(centroids, torch.tensor([9, 0, 0, 3]))
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    first, rest = torch.tensor([1.0 * up, -2 * down]), torch.tensor([1.0 * down, -2 * up])
    second, last = rest * torch.tensor([up, down]), rest * torch.tensor([down, up])
    torch.testing.assert_close(split, torch.stack([last, first, second, torch.tensor([4.0, 4])]))
    full = torch.tensor([[1.0], [2.0]])
    assert split_clusters(full, torch.tensor([1, 1])) is full
    torch.testing.assert_close(split_clusters(full, torch.tensor([1, 0])), full)  # a single row cannot be halved


def test_an_empty_cluster_gets_rows():
    # 39 rows close together and one far away; two centroids start where there is nothing.
    near = torch.ones(39, 2) + 0.05 * torch.randn(39, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([near, torch.tensor([[9.0, 9.0]])])
    start = torch.tensor([[1.0, 1], [50, 50], [60, 60], [9, 9]])
    kept = kmeans(rows, torch.arange(40), 4, 20, start=start, split_empty=False)
    assert kept.labels.bincount(minlength=4).tolist() == [39, 0, 0, 1]
    split = kmeans(rows, torch.arange(40), 4, 20, start=start)
    assert split.labels.bincount(minlength=4).min() > 0


def test_goes_on_where_it_was_stopped():
    rows, priority, seen = far_groups(), random_priorities(3000, 4), {}
    whole = kmeans(rows, priority, 9, 6, after=lambda done, centroids: seen.update({done: centroids}))
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    again = kmeans(rows, priority, 9, 6, start=seen[2], done=2)
    for one, other in zip(whole, again):
        assert torch.equal(one, other)


def test_centroids_from_some_rows_labels_for_all():
    rows, priority = far_groups(), random_priorities(3000, 6)
    found = kmeans(rows, priority, 10, 5, rows_per_cluster=40)
    chosen = priority < 400
    expected = kmeans(rows[chosen], priority[chosen], 10, 5)
    torch.testing.assert_close(found.centroids, expected.centroids)
    assert len(found.labels) == 3000 and found.labels[chosen].tolist() == expected.labels.tolist()


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(UserError, match="11 clusters were asked for and there are 10 rows"):
        kmeans(points(10), torch.arange(10), 11, 2)


def test_two_levels():
    # Four groups in two pairs: the upper level finds the pairs, the lower one the groups of each.
    corners = torch.tensor([[0.0, 0], [0, 1], [20, 0], [20, 1]])
    rows = corners.repeat_interleave(25, 0) + 0.05 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    upper, lower = hierarchical_kmeans(rows, random_priorities(100, 0), 2, 2, 10)
    names = (2 * upper + lower).view(4, 25)
    assert (names == names[:, :1]).all() and len(set(names[:, 0].tolist())) == 4
    assert upper[0] == upper[25] != upper[50]
    few = torch.tensor([[0.0], [0.1], [9.0]])
    upper, lower = hierarchical_kmeans(few, torch.tensor([0, 2, 1]), 2, 2, 5)
    assert sorted(zip(upper.tolist(), lower.tolist())) == [(0, 0), (0, 1), (1, 0)]


def _uneven(rank, world_size, rows, priority):
    """Shares of different sizes; the last process has nothing where there are four. Counts what travels."""
    order = torch.arange(len(rows))
    rest = (order % 10 >= 7) & (order % max(1, world_size - 2) == rank - 1)
    own = order[order % 10 < 7] if rank == 0 else order[rest]
    sent, reduce = [], comm.all_reduce

    def counted(tensor, *rest, **named):
        sent.append(tensor.numel())
        return reduce(tensor, *rest, **named)

    comm.all_reduce = counted
    try:
        found = kmeans(rows[own], priority[own], 11, 6)
    finally:
        comm.all_reduce = reduce
    levels = hierarchical_kmeans(rows[own], priority[own], 3, 4, 4)
    return [own, *found, *levels, sent]


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_finds_the_same(processes):
    rows, priority = far_groups(900), random_priorities(900, 8)
    expected = kmeans(rows, priority, 11, 6)
    upper, lower = hierarchical_kmeans(rows, priority, 3, 4, 4)
    covered = []
    for own, centroids, labels, _, first, second, sent in run_in_processes(_uneven, processes, rows, priority):
        torch.testing.assert_close(centroids, expected.centroids, rtol=1e-5, atol=1e-5)
        assert labels.tolist() == expected.labels[own].tolist()
        assert first.tolist() == upper[own].tolist() and second.tolist() == lower[own].tolist()
        covered += own.tolist()
        # The number of rows, the first centroids, then in each iteration K * D + K numbers.
        assert sent == [1, 11 * 24] + 6 * [11 * 24, 11]
    assert sorted(covered) == list(range(900))
