"""Principal components against scikit-learn, in one and two processes."""

import pytest
import torch
from processes import run_in_processes
from sklearn.decomposition import PCA

from vissl_like.clustering import nearest
from vissl_like.clustering.pca import Pca
from vissl_like.utils.errors import UserError


def cloud(count=400, dim=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator) @ torch.randn(dim, dim, generator=generator) + 5


@pytest.mark.parametrize("whiten", [True, False])
def test_equals_scikit_learn_up_to_sign(whiten, monkeypatch):
    rows = cloud()
    theirs = torch.from_numpy(PCA(7, whiten=whiten, svd_solver="full").fit(rows.numpy()).transform(rows.numpy()))
    if whiten:
        theirs *= (400 / 399) ** 0.5  # scikit-learn divides the variance by N - 1
    monkeypatch.setattr(nearest, "PIECE_NUMBERS", 120)
    ours = Pca.learn(rows, 7).apply(rows, whiten=whiten, unit=False)
    signs = (ours * theirs).sum(0).sign()
    torch.testing.assert_close(ours * signs, theirs.float(), rtol=1e-4, atol=1e-4)
    turned = Pca.learn(rows, 7).apply(rows, whiten=whiten)
    torch.testing.assert_close(turned, torch.nn.functional.normalize(ours, dim=1))


def test_whitened_rows_have_variance_one_in_all_directions():
    rows = cloud()
    white = Pca.learn(rows, 12).apply(rows, unit=False).double()
    torch.testing.assert_close(white.T @ white / 400, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-4)


def test_signs_are_chosen():
    directions = Pca.learn(cloud(), 5).directions
    assert (directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("count", "dims", "text"), [(9, 9, "1 to 8"), (50, 13, "1 to 12"), (50, 0, "1 to 12")])
def test_too_many_are_refused(count, dims, text):
    with pytest.raises(UserError, match=text):
        Pca.learn(cloud(count), dims)


def test_equal_rows_are_refused():
    with pytest.raises(UserError, match="all rows are the same"):
        Pca.learn(torch.ones(10, 4), 2)


def _learn(rank, world_size, rows):
    found = Pca.learn(rows[:100] if rank == 0 else rows[100:], 6)
    return [found.mean, found.directions, found.variances]


def test_two_processes_equal_one():
    rows = cloud()
    expected = Pca.learn(rows, 6)
    for found in run_in_processes(_learn, 2, rows):
        for one, other in zip(found, (expected.mean, expected.directions, expected.variances)):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
