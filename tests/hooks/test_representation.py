"""Hand-worked values, and numpy's as an independent reference."""

import math

import numpy as np
import pytest
import torch

from vissl_like.hooks.representation import (
    assignment_numbers,
    centred_directions,
    effective_rank,
    even_rows,
    spread,
)


def test_spread_of_an_even_sphere_is_one_and_of_equal_rows_zero():
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert spread(signs) == pytest.approx(1.0)
    assert spread(torch.ones(8, 16) * 3) == pytest.approx(0.0, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    assert spread(torch.randn(4096, 64, generator=generator)) == pytest.approx(1.0, abs=0.01)


def test_spread_does_not_depend_on_lengths():
    rows = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    lengths = torch.rand(32, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    assert spread(rows * lengths) == pytest.approx(spread(rows))


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([1.0, 1, 1, 1], 4.0),
        ([2.0, 0, 0, 0], 1.0),
        # shares 1/2, 1/4, 1/4: entropy ln 2 / 2 + 2 * ln 4 / 4 = 1.5 ln 2
        ([2.0, 1, 1, 0], 2**1.5),
        ([0.0, 0, 0, 0], 0.0),
    ],
)
def test_effective_rank_of_given_singular_values(values, rank):
    assert effective_rank(torch.diag(torch.tensor(values))) == pytest.approx(rank, abs=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_effective_rank_equals_an_svd(shape):
    rows = np.random.default_rng(0).standard_normal(shape)
    shares = np.linalg.svd(rows, compute_uv=False)
    shares /= shares.sum()
    assert effective_rank(torch.from_numpy(rows)) == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))


def test_centring_takes_the_common_direction_away():
    common = torch.zeros(64, 16)
    common[:, 0] = 100.0
    rows = common + torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert effective_rank(rows) < 3.0
    rank, first = centred_directions(rows)
    assert rank > 10.0 and first < 0.25


def test_first_direction_by_hand():
    # centred already; variances 2 along the first axis and 2 along the second, so shares of a half each
    cross = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert centred_directions(cross) == (pytest.approx(2.0), pytest.approx(0.5))
    assert centred_directions(cross[:2]) == (pytest.approx(1.0), pytest.approx(1.0))
    rank, first = centred_directions(torch.zeros(4, 3))
    assert rank == 0.0 and math.isnan(first)


def test_assignments_one_each_all_one_and_uniform():
    rows = 8
    one_each = torch.eye(rows) * 100
    assert assignment_numbers(one_each, 0.1) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-6), 1.0)
    all_one = torch.zeros(rows, 4)
    all_one[:, 2] = 100
    assert assignment_numbers(all_one, 0.1) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-6), 0.25)
    of_mean, of_each, _ = assignment_numbers(torch.zeros(rows, 4), 0.1)
    assert (of_mean, of_each) == (pytest.approx(1.0), pytest.approx(1.0))


def test_assignment_entropy_by_hand():
    # softmax of (ln 3, 0) is (3/4, 1/4) for every row; 2 prototypes
    logits = torch.tensor([[math.log(3), 0.0]]).repeat(5, 1) * 0.1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert assignment_numbers(logits, 0.1) == (pytest.approx(entropy), pytest.approx(entropy), 0.5)


def test_rows_are_taken_evenly():
    assert even_rows(torch.arange(1000), 256).tolist() == list(range(0, 1000, 4))
    assert even_rows(torch.arange(5), 256).tolist() == [0, 1, 2, 3, 4]
