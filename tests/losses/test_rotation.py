"""Rotation prediction against explicit softmaxes, and what does not fit it."""

import math

import pytest
import torch

from vissl_like.config import load_settings
from vissl_like.losses.base import LossContext
from vissl_like.losses.rotation import RotationLoss
from vissl_like.models.heads.classifier import ClassifierHead
from vissl_like.records import Batch, HeadOutput, ModelOutput, Progress
from vissl_like.utils.errors import SettingsError, UserError


def context(views=4, classes=(4,)):
    return LossContext(views, 8, classes, 3, 3, 1, 12)


def output_of(scores):
    return ModelOutput(4, scores, HeadOutput(scores, (scores,)))


def test_value_gradient_and_accuracy_by_hand():
    """Three images: rows 0-2 are view 0 (upright), 3-5 view 1, 6-8 view 2, 9-11 view 3."""
    scores = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float()
    scores.requires_grad_()
    parts = RotationLoss(context())(output_of(scores), Batch([], torch.arange(3)), Progress(0, 9, 3))
    parts["loss"].backward()
    rows = scores.detach().double()
    chances = [[math.exp(float(x)) / sum(math.exp(float(y)) for y in row) for x in row] for row in rows]
    expected = -sum(math.log(chances[row][row // 3]) for row in range(12)) / 12
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-6)
    right = sum(max(range(4), key=lambda k, row=row: chances[row][k]) == row // 3 for row in range(12))
    assert float(parts["accuracy"]) == pytest.approx(right / 12)
    for row in range(12):
        for k in range(4):
            assert float(scores.grad[row, k]) == pytest.approx((chances[row][k] - (k == row // 3)) / 12, abs=1e-7)


def test_uniform_scores_give_the_trivial_value():
    loss = RotationLoss(context())
    parts = loss(output_of(torch.zeros(8, 4)), Batch([], torch.arange(2)), Progress(0, 9, 3))
    assert float(parts["loss"]) == pytest.approx(loss.trivial_value()) == pytest.approx(math.log(4))


@pytest.mark.parametrize(("views", "classes"), [(4, (5,)), (8, (4,)), (4, (4, 4))])
def test_other_heads_and_views_are_refused(views, classes):
    with pytest.raises(UserError, match="rotation tells 4 orientations apart"):
        RotationLoss(context(views, classes))


def test_other_transforms_are_refused_by_the_settings():
    changes = ["config.LOSS={name: rotation}", "config.MODEL.HEAD={name: classifier, classes: 4}"]
    with pytest.raises(SettingsError, match="orientations"):
        load_settings(["config=quick/synthetic", *changes])


def test_the_head_is_a_linear_layer_on_the_features():
    torch.manual_seed(0)
    head = ClassifierHead(6, classes=3)
    assert set(head.state_dict()) == {"classifier.weight", "classifier.bias"} and head.num_prototypes == (3,)
    features = torch.randn(5, 6)
    found = head(features)
    assert found.embedding is features and head.embedding_dim == 6
    torch.testing.assert_close(found.logits[0], features @ head.classifier.weight.T + head.classifier.bias)
