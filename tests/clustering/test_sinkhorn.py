"""Sinkhorn against a hand-worked case and an independent float64 transcription of the published listing."""

import math

import numpy as np
import pytest
import torch
from processes import run_in_processes

from vissl_like.clustering import sinkhorn as module
from vissl_like.clustering.sinkhorn import _sinkhorn_log, sinkhorn


def listing(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """The published order: K x B, total mass 1, rows to 1/K, columns to 1/B, times B at the end."""
    q = np.exp(scores.astype(np.float64) / epsilon).T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= prototypes
        q /= q.sum(axis=0, keepdims=True)
        q /= samples
    return (q * samples).T


def test_hand_worked_two_by_two():
    # exp(s / 1) = [[2, 1], [1, 1]]; column sums 3, 2 -> [[2/3, 1/2], [1/3, 1/2]]; row sums 7/6, 5/6.
    scores = torch.tensor([[math.log(2.0), 0.0], [0.0, 0.0]])
    expected = torch.tensor([[4 / 7, 3 / 7], [2 / 5, 3 / 5]])
    torch.testing.assert_close(sinkhorn(scores, 1.0, 1), expected)


@pytest.mark.parametrize(
    ("rows", "columns", "epsilon", "iterations"), [(64, 30, 0.05, 3), (7, 11, 0.03, 10), (5, 3, 0.5, 1)]
)
def test_equals_the_published_listing(rows, columns, epsilon, iterations):
    scores = np.random.default_rng(0).uniform(-1, 1, (rows, columns))
    ours = sinkhorn(torch.from_numpy(scores), epsilon, iterations)
    np.testing.assert_allclose(ours.numpy(), listing(scores, epsilon, iterations), rtol=2e-5, atol=1e-8)


def test_marginals_after_many_iterations():
    q = sinkhorn(torch.rand(40, 10), 0.05, 200)
    torch.testing.assert_close(q.sum(1), torch.ones(40))
    torch.testing.assert_close(q.sum(0), torch.full((10,), 4.0), rtol=1e-3, atol=1e-3)


def test_one_iteration_is_softmax_over_the_batch_then_per_sample():
    scores = torch.rand(16, 5)
    expected = torch.softmax(scores / 0.1, dim=0)
    torch.testing.assert_close(sinkhorn(scores, 0.1, 1), expected / expected.sum(1, keepdim=True))


def test_invariant_to_a_constant_and_finite_where_plain_exp_overflows():
    scores = torch.rand(32, 8)
    torch.testing.assert_close(sinkhorn(scores + 10.0, 0.05, 3), sinkhorn(scores, 0.05, 3), rtol=1e-3, atol=1e-5)
    wide = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)) * 3
    result = sinkhorn(wide, 0.05, 3)  # exp(9 / 0.05) overflows float32
    assert torch.isfinite(result).all()
    np.testing.assert_allclose(result.numpy(), listing(wide.double().numpy(), 0.05, 3), rtol=1e-3, atol=1e-5)


def test_log_form_equals_plain_form():
    scores = torch.rand(20, 6)
    torch.testing.assert_close(_sinkhorn_log(scores / 0.05, 3), sinkhorn(scores, 0.05, 3), rtol=1e-4, atol=1e-6)


def test_half_precision_scores_are_computed_in_float32():
    scores = torch.rand(16, 4)
    assert sinkhorn(scores.bfloat16(), 0.05, 3).dtype == torch.float32


def _part(rank, world_size, scores, epsilon):
    return sinkhorn(scores.chunk(world_size)[rank], epsilon, 3)


@pytest.mark.parametrize("epsilon", [0.05, 0.005])
def test_two_processes_equal_one_on_the_joined_batch(epsilon):
    scores = torch.rand(12, 5, generator=torch.Generator().manual_seed(0))
    joined = torch.cat(run_in_processes(_part, 2, scores, epsilon))
    torch.testing.assert_close(joined, sinkhorn(scores, epsilon, 3), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("epsilon", [0.05, 0.005])  # the plain form, and the one on logarithms
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_the_last_rows_and_the_memory_of_the_scores(epsilon, iterations, monkeypatch):
    scores = torch.rand(30, 11, generator=torch.Generator().manual_seed(0))
    whole, kept = sinkhorn(scores, epsilon, iterations), scores.clone()
    assert torch.equal(scores, kept)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations, last=7), whole[-7:])
    assert torch.equal(scores, kept)
    monkeypatch.setattr(module, "_BLOCK", 4 * 11)  # four rows at a time, two at the end
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), whole)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations, last=7, overwrite=True), whole[-7:])


def test_autocast_does_not_reach_it():
    scores = torch.rand(64, 30)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(inside, sinkhorn(scores, 0.05, 3))
