"""Confusions and their measures by hand."""

import pytest
import torch

from vissl_like.evaluation.functional.segmentation import (
    class_accuracy,
    confusion,
    intersection_over_union,
    segmentation_metrics,
)

TRUTH = torch.tensor([[0, 0, 1, 255], [1, 2, 2, 255]], dtype=torch.uint8)
FOUND = torch.tensor([[0, 1, 1, 2], [1, 2, 0, 0]])


def test_confusions_leave_void_pixels_out():
    expected = [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert confusion(TRUTH, FOUND, 4).tolist() == expected


def test_overlap_by_hand_and_the_absent_class_has_none():
    table = confusion(TRUTH, FOUND, 4)
    # Class 0: one of {0: two true, two found}; 1: two of three; 2: one of two; 3 is nowhere.
    overlap = intersection_over_union(table).tolist()
    assert overlap[:3] == pytest.approx([1 / 3, 2 / 3, 1 / 2]) and overlap[3] != overlap[3]
    assert class_accuracy(table).tolist()[:3] == pytest.approx([1 / 2, 1, 1 / 2])
    metrics = segmentation_metrics(table)
    assert metrics["mIoU"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert metrics["pixel_accuracy"] == pytest.approx(100 * 4 / 6)
    assert metrics["mean_accuracy"] == pytest.approx(100 * (1 / 2 + 1 + 1 / 2) / 3)


def test_a_class_that_is_only_predicted_does_not_count():
    """Its pixels are wrong for the classes that they belong to."""
    table = confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), 3)
    overlap = intersection_over_union(table).tolist()
    assert overlap[:2] == [0.5, 1.0] and overlap[2] != overlap[2]
    assert segmentation_metrics(table)["mIoU"] == pytest.approx(75)


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="no pixel"):
        segmentation_metrics(confusion(torch.tensor([255]), torch.tensor([0]), 2))
