import math

import pytest
import torch

from vissl_like.evaluation import knn
from vissl_like.evaluation.base import Features
from vissl_like.evaluation.knn import KnnEvaluation, knn_votes, nearest_rows, weighted_knn
from vissl_like.utils.errors import UserError

BANK = torch.tensor([[2.0, 0.0], [0.8, 0.6], [6.0, 8.0], [-1.0, 0.0]])  # cosines with (1, 0): 1, .8, .6, -1
LABELS = torch.tensor([0, 1, 1, 2])
QUERY = torch.tensor([[5.0, 0.0]])


def features(rows, labels):
    return Features(rows, None if labels is None else torch.as_tensor(labels), torch.arange(len(rows)))


def test_votes_by_hand():
    # T = 0.5: weights relative to the nearest are 1, exp(-.4), exp(-.8), exp(-4).
    votes = next(knn_votes(BANK, LABELS, QUERY, k=[1, 2, 3, 4], temperature=0.5, num_classes=3))
    expected = {
        1: [1, 0, 0],
        2: [1, math.exp(-0.4), 0],
        3: [1, math.exp(-0.4) + math.exp(-0.8), 0],
        4: [1, math.exp(-0.4) + math.exp(-0.8), math.exp(-4)],
    }
    for k, row in expected.items():
        torch.testing.assert_close(votes[k], torch.tensor([row], dtype=torch.float32), atol=1e-6, rtol=1e-5)


def test_the_majority_beats_the_nearest_when_the_temperature_allows():
    predictions = weighted_knn(BANK, LABELS, QUERY, k=[1, 2, 3], temperature=0.5, num_classes=3)
    assert [int(predictions[k]) for k in (1, 2, 3)] == [0, 0, 1]
    # At T = 0.1 two neighbours at .8 and .6 weigh exp(-2) + exp(-4) < 1.
    assert int(weighted_knn(BANK, LABELS, QUERY, k=[3], temperature=0.1, num_classes=3)[3]) == 0


def test_k_beyond_the_bank_takes_all_of_it_and_says_so():
    with pytest.warns(UserWarning, match="k=9 uses all 4 images"):
        found = weighted_knn(BANK, LABELS, QUERY, k=[9], temperature=0.5, num_classes=3)
    assert torch.equal(found[9], weighted_knn(BANK, LABELS, QUERY, k=[4], temperature=0.5, num_classes=3)[4])
    result = KnnEvaluation(k=[9])(features(BANK, LABELS), features(QUERY, [1]), 3)
    assert result.details["notices"] == ["k=9 uses all 4 training images"]


def test_parts_give_what_a_whole_comparison_gives(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(53, 6, generator=generator), torch.randn(17, 6, generator=generator)
    labels = torch.randint(0, 5, (53,), generator=generator)
    expected = []
    for query in queries:  # the definition, one query at a time
        cosines = torch.nn.functional.cosine_similarity(query[None], bank)
        order = cosines.argsort(descending=True)[:7]
        votes = [sum(math.exp(float(cosines[i]) / 0.2) for i in order if labels[i] == c) for c in range(5)]
        expected.append(max(range(5), key=votes.__getitem__))
    monkeypatch.setattr(knn, "BANK_ROWS", 5)
    monkeypatch.setattr(knn, "QUERY_ROWS", 4)
    found = weighted_knn(bank, labels, queries, k=[7], temperature=0.2, num_classes=5)
    assert found[7].tolist() == expected


def test_only_parts_of_the_similarities_exist_at_a_time(monkeypatch):
    monkeypatch.setattr(knn, "BANK_ROWS", 10)
    largest = []
    original = torch.Tensor.topk

    def spy(self, *arguments, **options):
        largest.append(self.shape[1])
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "topk", spy)
    nearest_rows(torch.randn(95, 3), torch.randn(4, 3), 6)
    assert max(largest) <= 10 + 6


def test_a_tiny_temperature_neither_overflows_nor_ties():
    predictions = weighted_knn(BANK, LABELS, QUERY, k=[4], temperature=0.001, num_classes=3)
    assert int(predictions[4]) == 0


def test_evaluation_metrics():
    bank = features(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [0, 1])
    test = features(torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.2], [0.2, 1.0]]), [0, 1, 1, 1])
    result = KnnEvaluation(k=[1])(bank, test, 2)
    assert result.predictions.tolist() == [0, 1, 0, 1]
    # 3 of 4 right; class 0: 1 of 1, class 1: 2 of 3.
    assert result.metrics == {"top1": 75.0, "mean_per_class": pytest.approx(100 * (1 + 2 / 3) / 2)}
    several = KnnEvaluation(k=[2, 1])(bank, test, 2)
    assert several.metrics["top1_k1"] == 75.0
    assert several.metrics["top1"] == several.metrics["top1_k2"]


def test_missing_labels_are_explained():
    with pytest.raises(UserError, match="one sub-folder per class"):
        KnnEvaluation()(features(BANK, None), features(QUERY, [0]), 3)


def test_a_large_bank_gives_the_same_neighbours_as_a_plain_search(monkeypatch):
    """Above FAISS_ROWS the CPU search is faiss's; below it is torch's."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(700, 16, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(9, 16, generator=generator), dim=1)
    plain = (queries @ bank.T).topk(5)
    for rows in (100, 1000):
        monkeypatch.setattr(knn, "FAISS_ROWS", rows)
        similarity, position = nearest_rows(bank, queries, 5)
        assert torch.equal(position, plain.indices)
        torch.testing.assert_close(similarity, plain.values)


def cosine_order(bank, queries, k):
    """The definition, in float64: cosines and positions of the k nearest."""
    bank, queries = bank.double(), queries.double()
    cosines = (queries @ bank.T) / (queries.norm(dim=1)[:, None] * bank.norm(dim=1))
    found = cosines.sort(dim=1, descending=True)
    return found.values[:, :k], found.indices[:, :k]


@pytest.mark.parametrize("faiss_rows", [100, 1000])
@pytest.mark.parametrize("bank_rows", [13, 64, 1000])
def test_rows_of_any_length_are_ranked_by_cosine(monkeypatch, faiss_rows, bank_rows):
    generator = torch.Generator().manual_seed(1)
    bank = torch.randn(300, 12, generator=generator) * torch.rand(300, 1, generator=generator).mul(9).exp()
    queries = torch.randn(8, 12, generator=generator) * 50
    monkeypatch.setattr(knn, "FAISS_ROWS", faiss_rows)
    monkeypatch.setattr(knn, "BANK_ROWS", bank_rows)
    similarity, position = nearest_rows(bank, queries, 20, cosine=True)  # more than the 13 rows of a part
    expected = cosine_order(bank, queries, 20)
    assert torch.equal(position, expected[1])
    torch.testing.assert_close(similarity.double(), expected[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("faiss_rows", [100, 1000])
def test_only_parts_of_the_bank_are_copied(monkeypatch, faiss_rows):
    """Wide rows too: a limit in rows alone would copy all of a small bank of pixels."""
    monkeypatch.setattr(knn, "FAISS_ROWS", faiss_rows)
    monkeypatch.setattr(knn, "BANK_BYTES", 4 * 32 * 40)
    monkeypatch.setattr(knn, "QUERY_BYTES", 4 * 32 * 25)
    normalised = []
    original = torch.nn.functional.normalize

    def spy(rows, **options):
        normalised.append(rows)
        return original(rows, **options)

    monkeypatch.setattr(knn.functional, "normalize", spy)
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(500, 32, generator=generator), torch.randn(60, 32, generator=generator)
    labels = torch.randint(0, 3, (500,), generator=generator)
    found = weighted_knn(bank, labels, queries, k=[5], temperature=0.1, num_classes=3)[5]
    assert max(len(rows) for rows in normalised) == 40
    assert sum(len(rows) for rows in normalised) == 3 * 500 + 60  # once for each 25 queries
    cosines, order = cosine_order(bank, queries, 5)
    votes = torch.zeros(60, 3, dtype=torch.float64).scatter_add_(1, labels[order], (cosines / 0.1).exp())
    assert torch.equal(found, votes.argmax(dim=1))


@pytest.mark.parametrize("faiss_rows", [1, 100])
def test_rows_of_zeros_and_no_queries(monkeypatch, faiss_rows):
    monkeypatch.setattr(knn, "FAISS_ROWS", faiss_rows)
    bank = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
    similarity, position = nearest_rows(bank, torch.tensor([[2.0, 0.0]]), 3, cosine=True)
    assert similarity.tolist() == [[1.0, 0.0, -1.0]] and position.tolist() == [[2, 0, 1]]
    assert nearest_rows(bank, torch.empty(0, 2), 2)[1].shape == (0, 2)


def test_half_precision_banks_are_compared_in_float32():
    bank = BANK.half()
    similarity, position = nearest_rows(bank, QUERY.half(), 4, cosine=True)
    assert similarity.dtype == torch.float32 and position.tolist() == [[0, 1, 2, 3]]
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.8, 0.6, -1.0]]), atol=1e-3, rtol=0)
