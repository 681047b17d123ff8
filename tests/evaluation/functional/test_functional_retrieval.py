"""Retrieval protocols against whole rankings that are sorted, filtered and summed in plain loops."""

import math

import pytest
import torch

from vissl_like.evaluation.functional import retrieval
from vissl_like.evaluation.functional.retrieval import (
    QueryTruth,
    precision_at,
    ranks_of,
    score_copies,
    score_protocols,
    trapezoid_average_precision,
    without_junk,
)
from vissl_like.utils.errors import UserError


def random_case(seed, queries=7, gallery=40):
    """Features of few whole numbers: products are exact in float32, and many are equal."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randint(-2, 3, (queries + gallery, 4), generator=random).float()
    truths = []
    for number in range(queries):
        order = torch.randperm(gallery, generator=random).tolist()
        easy, hard, junk = (int(torch.randint(0, 5, (), generator=random)) for _ in range(3))
        easy = 0 if number == 0 else easy  # one query without easy positives, at least
        truths.append(QueryTruth(order[:easy], order[easy : easy + hard], order[easy + hard : easy + hard + junk]))
    return features[:queries], features[queries:], truths


def ranking(query, gallery):
    similarity = (gallery.double() @ query.double()).tolist()
    return sorted(range(len(gallery)), key=lambda image: (-similarity[image], image))


def plain_trapezoid(ranked, positives, total):
    """Walks down a list of images: precision before and after each hit."""
    value, hits, before = 0.0, 0, 1.0
    for seen, image in enumerate(ranked, 1):
        if image in positives:
            hits += 1
            value += (before + hits / seen) / 2 / total
        before = hits / seen
    return value


def plain_scores(queries, gallery, lists, k):
    """Average precisions, precision@k and recall@1 for (positives, junk) of each query."""
    values, precisions, firsts = [], [], []
    for query, (positives, junk) in zip(queries, lists):
        if not positives:
            values.append(None)
            continue
        ranked = [image for image in ranking(query, gallery) if image not in junk]
        values.append(plain_trapezoid(ranked, positives, len(positives)))
        last = max(ranked.index(image) for image in positives) + 1
        head = ranked[: min(k, last)]
        precisions.append(sum(image in positives for image in head) / len(head))
        firsts.append(ranked[0] in positives)
    return values, precisions, firsts


def groups(truth, protocol):
    if protocol == "easy":
        return truth.easy, [*truth.junk, *truth.hard]
    if protocol == "medium":
        return [*truth.easy, *truth.hard], truth.junk
    return truth.hard, [*truth.junk, *truth.easy]


def mean(values):
    return sum(values) / len(values)


def test_average_precision_by_hand():
    # ranking: positive, junk, negative, positive, junk -> ranks 0 and 3, of which one junk lies before the second: 0, 2
    ranks = without_junk(torch.tensor([3, 0]), torch.tensor([4, 1]))
    assert ranks.tolist() == [0, 2]
    # (1 + 1) / 4 + (1/2 + 2/3) / 4
    assert trapezoid_average_precision(ranks, 2) == pytest.approx(19 / 24)
    # a third positive that was not found adds nothing but its share: 2/6 + (1/2 + 2/3) / 6
    assert trapezoid_average_precision(ranks, 3) == pytest.approx(19 / 36)
    # first positive at rank 1: (0/1 + 1/2) / 2
    assert trapezoid_average_precision(torch.tensor([1]), 1) == 0.25
    assert trapezoid_average_precision(torch.tensor([], dtype=torch.int64), 2) == 0


def test_precision_stops_at_the_last_positive():
    ranks = torch.tensor([0, 2])
    assert precision_at(ranks, 1) == 1
    assert precision_at(ranks, 2) == 0.5
    assert precision_at(ranks, 10) == pytest.approx(2 / 3)


def test_protocols_split_the_ground_truth():
    truth = QueryTruth(easy=[1, 2], hard=[3], junk=[4, 5])
    assert truth.split("easy") == ([1, 2], [4, 5, 3])
    assert truth.split("medium") == ([1, 2, 3], [4, 5])
    assert truth.split("hard") == ([3], [4, 5, 1, 2])
    with pytest.raises(UserError, match=r"unknown retrieval protocol 'heard'.*Did you mean 'hard'"):
        truth.split("heard")


@pytest.mark.parametrize("bound", [1, 100, 2**20])
def test_ranks_equal_a_sorted_gallery_with_ties_in_gallery_order(bound, monkeypatch):
    monkeypatch.setattr(retrieval, "GALLERY_ROWS", 7)
    queries, gallery, truths = random_case(1)
    wanted = [[*truth.junk, *truth.easy] for truth in truths]
    for query, images, ranks in zip(queries, wanted, ranks_of(queries, gallery, wanted, max_similarities=bound)):
        order = ranking(query, gallery)
        assert ranks.tolist() == [order.index(image) for image in images]
    everything = ranks_of(queries[:1], gallery, [range(len(gallery))])[0]
    assert everything.argsort().tolist() == ranking(queries[0], gallery)


def test_similarities_in_memory_are_bounded(monkeypatch):
    sizes, original = [], retrieval._similarities

    def recorded(*arguments):
        sizes.append(original(*arguments).numel())
        return original(*arguments)

    monkeypatch.setattr(retrieval, "_similarities", recorded)
    queries, gallery, truths = random_case(2)
    ranks_of(queries, gallery, [truth.easy for truth in truths], max_similarities=100)
    assert sizes == [80, 80, 80, 40]  # two queries of 40 at a time


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("protocol", ["easy", "medium", "hard"])
def test_protocols_equal_plain_loops(seed, protocol):
    queries, gallery, truths = random_case(seed)
    scores = score_protocols(queries, gallery, truths, protocols=[protocol], ks=[1, 3], max_similarities=90)[protocol]
    values, precisions, firsts = plain_scores(queries, gallery, [groups(truth, protocol) for truth in truths], 3)
    assert scores.skipped == values.count(None) and scores.counted == len(queries) - scores.skipped
    for ours, theirs in zip(scores.average_precision.tolist(), values):
        assert math.isnan(ours) if theirs is None else ours == pytest.approx(theirs, abs=1e-12)
    assert scores.mean_average_precision == pytest.approx(mean([value for value in values if value is not None]))
    assert scores.precision[3] == pytest.approx(mean(precisions))
    assert scores.recall_at_1 == scores.precision[1] == pytest.approx(mean(firsts))


def test_all_protocols_come_from_one_call():
    queries, gallery, truths = random_case(3)
    assert list(score_protocols(queries, gallery, truths)) == ["easy", "medium", "hard"]
    assert score_protocols(queries, gallery, truths)["easy"].skipped >= 1


@pytest.mark.parametrize("seed", range(6))
def test_copies_are_looked_for_among_the_first_images_only(seed):
    queries, gallery, truths = random_case(seed)
    positives = [[*truth.easy, *truth.hard] for truth in truths]
    scores = score_copies(queries, gallery, positives, limit=9)
    values = [plain_trapezoid(ranking(q, gallery)[:9], own, len(own)) for q, own in zip(queries, positives) if own]
    kept = scores.average_precision[~scores.average_precision.isnan()]
    assert kept.tolist() == pytest.approx(values, abs=1e-12)
    assert scores.mean_average_precision == pytest.approx(mean(values)) and scores.counted == len(values)


def test_the_twentieth_image_counts_and_the_next_does_not():
    database = torch.arange(30, 0, -1).float()[:, None]  # image i has rank i
    scores = score_copies(torch.ones(3, 1), database, [[19], [20], [0, 20]])
    # rank 19: (0/19 + 1/20) / 2; rank 20: out of sight; rank 0 of two positives: 1/2
    assert scores.average_precision.tolist() == pytest.approx([0.025, 0, 0.5])
    assert scores.recall_at_1 == pytest.approx(1 / 3) and scores.precision == {}


def test_no_query_with_positives_gives_no_number():
    scores = score_copies(torch.ones(2, 1), torch.ones(3, 1), [[], []])
    assert math.isnan(scores.mean_average_precision) and (scores.counted, scores.skipped) == (0, 2)


def test_ground_truth_that_cannot_be_right_is_refused():
    queries, gallery = torch.ones(1, 2), torch.ones(5, 2)
    with pytest.raises(UserError, match="names image 5, but the gallery has 5"):
        score_protocols(queries, gallery, [QueryTruth([0], [5], [])])
    with pytest.raises(UserError, match="names image 2 more than once"):
        score_protocols(queries, gallery, [QueryTruth([2], [], [2])])
    with pytest.raises(UserError, match="NaN"):
        score_copies(queries, gallery.fill_(torch.nan), [[0]])
    with pytest.raises(ValueError, match="not 2"):
        ranks_of(queries, gallery, [[0], [1]])
