"""VOC's average precisions against cases worked by hand and against loops over the curve in exact fractions."""

import math
from fractions import Fraction

import pytest
import torch
from sklearn.metrics import average_precision_score

from vissl_like.evaluation.functional.average_precision import (
    average_precision,
    eleven_point_average_precision,
    mean_average_precision,
)
from vissl_like.utils.errors import UserError


def ranked(*labels):
    """Scores that rank these labels in the order given."""
    return torch.arange(len(labels), 0, -1).float(), torch.tensor(labels)


def curve(scores, labels, ignore):
    """Recall and precision at every rank, in fractions; equal scores keep the order of their rows."""
    rows = [row for row in range(len(scores)) if not ignore[row]]
    rows.sort(key=lambda row: -scores[row])  # Python's sort is stable
    total, hits, points = sum(labels[row] for row in rows), 0, []
    for rank, row in enumerate(rows, 1):
        hits += labels[row]
        points.append((Fraction(hits, total), Fraction(hits, rank)))
    return points


def area(points):
    """Steps of the recall, each as high as the best precision from there on."""
    result, before = Fraction(0), Fraction(0)
    for place, (recall, _) in enumerate(points):
        result += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return float(result)


def eleven(points):
    return float(sum(max(p for r, p in points if r >= Fraction(t, 10)) for t in range(11)) / 11)


def random_case(seed):
    random = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(3, 60, (), generator=random))
    scores = torch.randint(0, 12, (rows,), generator=random).float()  # many ties
    labels = torch.randint(0, 2, (rows,), generator=random)
    ignore = torch.rand(rows, generator=random) < 0.2
    labels[0], ignore[0] = 1, False
    return scores, labels, ignore


def test_precision_envelope_by_hand():
    # precision 0, 1/2, 2/3; the envelope lifts the first positive to 2/3: AP = 2/3. Without envelope it is 7/12.
    assert average_precision(*ranked(0, 1, 1)) == pytest.approx(2 / 3)
    assert average_precision_score([0, 1, 1], [3, 2, 1]) == pytest.approx(7 / 12)
    # precision 1, 1/2, 2/3, 1/2, 2/5, 1/2 -> at the positives 1, 2/3, 1/2
    assert average_precision(*ranked(1, 0, 1, 0, 0, 1)) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)


def test_eleven_points_by_hand():
    # 3 of 10 positives first, 7 negatives, 7 positives: precision 1 up to recall 0.3, then at most 10/17.
    labels = [1] * 3 + [0] * 7 + [1] * 7
    assert eleven_point_average_precision(*ranked(*labels)) == pytest.approx((4 * 1 + 7 * 10 / 17) / 11)


@pytest.mark.parametrize("seed", range(30))
def test_both_measures_equal_loops_in_fractions(seed):
    scores, labels, ignore = random_case(seed)
    points = curve(scores.tolist(), labels.tolist(), ignore.tolist())
    assert average_precision(scores, labels, ignore) == pytest.approx(area(points), abs=1e-12)
    assert eleven_point_average_precision(scores, labels, ignore) == pytest.approx(eleven(points), abs=1e-12)


@pytest.mark.parametrize("measure", [average_precision, eleven_point_average_precision])
def test_equal_scores_keep_the_order_of_rows(measure):
    labels = torch.zeros(200)
    labels[-1] = 1
    assert measure(torch.ones(200), labels) == pytest.approx(1 / 200)
    assert measure(torch.ones(200), labels.flip(0)) == 1


def test_difficult_rows_leave_the_ranking():
    scores, labels = ranked(-1, 1, -1, 0, 1)
    # left: 1, 0, 1 -> (1 + 2/3) / 2; counted as negatives they would give (1/2 + 2/5) / 2
    assert average_precision(scores, labels, labels == -1) == pytest.approx(5 / 6)
    assert average_precision(scores, labels) == pytest.approx(0.45)


def test_plain_mean_over_classes_with_positives():
    scores = torch.tensor([[3.0, 1.0, 1.0], [2.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    labels = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 0]])
    ignore = torch.zeros(3, 3, dtype=torch.bool)
    result = mean_average_precision(scores, labels, ignore)
    # class 0 ranks 1 0 1: (1 + 2/3) / 2; class 1 has none; class 2 ranks 1 0 1 too
    assert result.per_class[[0, 2]].tolist() == pytest.approx([5 / 6, 5 / 6]) and math.isnan(result.per_class[1])
    assert result.mean == pytest.approx(5 / 6) and result.without_positives == [1]
    ignore[2, 0] = True  # class 0 is 1 0 now: 1
    assert mean_average_precision(scores, labels, ignore).mean == pytest.approx((1 + 5 / 6) / 2)
    # eleven points: 1 up to recall 0.5 (6 points), 2/3 beyond (5 points)
    eleven_points = mean_average_precision(scores, labels, measure=eleven_point_average_precision)
    assert eleven_points.mean == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_what_cannot_be_scored():
    assert math.isnan(average_precision(*ranked(0, 0)))
    assert math.isnan(eleven_point_average_precision(*ranked(0, 0)))
    with pytest.raises(UserError, match="1 of 2 scores are NaN"):
        average_precision(torch.tensor([1.0, torch.nan]), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="none of the 2 classes has a positive among the 4 images"):
        mean_average_precision(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="alike"):
        average_precision(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="alike"):
        mean_average_precision(torch.zeros(3, 2), torch.zeros(3, 3))
