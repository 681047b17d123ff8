import pytest
import torch

from vissl_like.meters.accuracy import AccuracyMeter
from vissl_like.registry import METERS

SCORES = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])
LABELS = torch.tensor([0, 0, 2, 1])


def test_by_hand():
    meter = AccuracyMeter(3, top=[1, 2])
    meter.update(SCORES, LABELS)
    # Right first: images 0 and 2. Among the two best: 0, 2, 3 (image 1 has label 0 in the last place).
    # Per class: 0 -> 1 of 2, 1 -> 0 of 1, 2 -> 1 of 1.
    assert meter.value() == {"top1": 50.0, "top2": 75.0, "mean_per_class": pytest.approx(50.0)}


def test_batches_add_up():
    whole, parts = AccuracyMeter(3), AccuracyMeter(3)
    whole.update(SCORES, LABELS)
    for row in range(4):
        parts.update(SCORES[row : row + 1], LABELS[row : row + 1])
    assert whole.value() == parts.value()
    parts.reset()
    with pytest.raises(ValueError, match="no samples"):
        parts.value()


def test_k_is_limited_by_the_classes():
    meter = AccuracyMeter(3, top=[1, 5])
    meter.update(SCORES, LABELS)
    assert set(meter.value()) == {"top1", "mean_per_class"} and meter.left_out == [5]
    assert AccuracyMeter(10).top == [1, 5]
    assert AccuracyMeter(1).top == [1]


def test_equal_scores_count_as_the_prediction_made_of_them():
    scores = torch.zeros(4, 3)
    meter = AccuracyMeter(3, top=[1, 2])
    labels = torch.tensor([0, 0, 1, 2])
    meter.update(scores, labels)
    assert meter.value()["top1"] == 100 * float((scores.argmax(dim=1) == labels).double().mean())
    assert meter.value()["top2"] >= meter.value()["top1"]


def test_wrong_input_is_refused():
    meter = AccuracyMeter(3)
    with pytest.raises(ValueError, match=r"scores \[n, 3\]"):
        meter.update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"0\.\.2"):
        meter.update(torch.zeros(1, 3), torch.tensor([3]))


def test_is_registered():
    assert METERS.get("accuracy") is AccuracyMeter
    assert METERS.describe("accuracy").options["top"].default == [1, 5]
