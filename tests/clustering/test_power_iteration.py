"""Power-iteration clustering against a worked graph and a plain transcription on dense matrices."""

import math

import numpy as np
import pytest
import torch

from vissl_like.clustering.nearest import nearest_neighbours
from vissl_like.clustering.power_iteration import clusters_of_graph, power_iteration_clusters
from vissl_like.utils.errors import UserError


def plain(places, distances, sigma, alpha, iterations):
    """With a full matrix, row by row."""
    count = len(places)
    graph = np.zeros((count, count))
    for i in range(count):
        for j, d in zip(places[i], distances[i]):
            graph[i, j] += math.exp(-d / sigma**2)
    graph = graph + graph.T
    v = np.full(count, 1 / count)
    for _ in range(iterations):
        v = alpha * graph.T @ v + (1 - alpha) / count
        v = v / np.abs(v).sum()
    parent = []
    for i in range(count):
        gains = [graph[i, j] * (v[j] - v[i]) for j in range(count)]
        best = int(np.argmax(gains))
        parent.append(best if gains[best] > 0 else i)

    def root(i):
        return i if parent[i] == i else root(parent[i])

    roots = [root(i) for i in range(count)]
    sizes = {r: roots.count(r) for r in roots}
    merged = list(roots)
    for i in range(count):
        if sizes[roots[i]] == 1:
            merged[i] = next((roots[j] for j in places[i] if sizes[roots[j]] > 1), roots[i])
    names = {}
    return [names.setdefault(r, len(names)) for r in merged]


def test_hand_worked():
    # Two chains, 0-1-2 and 3-4, one neighbour each: 0 -> 1, 1 -> 2, 2 -> 1, 3 -> 4, 4 -> 3, all at squared distance 0,
    # so weights are 1: W_01 = 1, W_12 = 2, W_34 = 2. After one iteration from 1/5 with alpha 1/2, before scaling:
    # v_0 = .1 + .1 = .2, v_1 = .1 * 3 + .1 = .4, v_2 = .1 * 2 + .1 = .3, v_3 = v_4 = .3. So 0 and 2 point to 1; 3 and 4
    # are equal: both are roots, alone, and neither has a neighbour in company.
    places, distances = torch.tensor([[1], [2], [1], [4], [3]]), torch.zeros(5, 1)
    labels = clusters_of_graph(places, distances, sigma=0.2, alpha=0.5, iterations=1)
    assert labels.tolist() == [0, 0, 0, 1, 2]


def test_one_that_is_alone_joins_its_nearest_company():
    # Nobody is near 3. At a distance where the weight underflows to 0 there is nothing to gain by pointing to 0: it is
    # a root of its own, and joins by being alone.
    places = torch.tensor([[1, 2], [0, 2], [0, 1], [0, 1]])
    distances = torch.tensor([[0.0, 0.01], [0, 0], [0.01, 0], [1e4, 1e4]])
    labels = clusters_of_graph(places, distances, sigma=0.2, alpha=0.001, iterations=50)
    assert labels.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_form(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(8, 6, generator=generator)[torch.arange(120) % 8]
    rows = torch.nn.functional.normalize(rows + 0.3 * torch.randn(120, 6, generator=generator), dim=1)
    places, distances = nearest_neighbours(rows, 5)
    expected = plain(places.tolist(), distances.tolist(), 0.2, 0.001, 200)
    labels = power_iteration_clusters(rows)
    assert labels.tolist() == expected and 5 < len(set(expected)) < 60


def test_no_row_is_its_own_neighbour():
    rows = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    rows[10:20] = rows[10]  # ten equal rows: which of them faiss names first is its choice
    places, distances = nearest_neighbours(rows, 4)
    assert (places != torch.arange(30)[:, None]).all()
    exact = torch.cdist(rows.double(), rows.double()).square().fill_diagonal_(math.inf).sort(1).values[:, :4]
    torch.testing.assert_close(distances.double(), exact, rtol=1e-4, atol=1e-5)


def test_few_rows_are_refused():
    with pytest.raises(UserError, match="5 neighbours were asked for of 5 rows"):
        power_iteration_clusters(torch.eye(5))
