import json
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vissl_like.evaluation.base import Features
from vissl_like.evaluation.functional.low_shot import k_shot
from vissl_like.evaluation.low_shot import LowShotEvaluation
from vissl_like.utils.errors import UserError


def blobs(count, width=12, classes=3, seed=0, spread=1.5, labels=None):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.arange(count) % classes if labels is None else np.asarray(labels)
    rows = centres[labels] + spread * generator.normal(size=(count, width))
    return Features(torch.tensor(rows, dtype=torch.float32), torch.tensor(labels), torch.arange(count))


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("width", [4, 40])  # fewer and more features than labelled images
def test_equals_scikit_learn_on_the_same_images(width, standardise):
    train, test = blobs(60, width), blobs(45, width, seed=1)
    train.features[:, 0] *= 50  # so that standardising changes something
    test.features[:, 0] *= 50
    evaluation = LowShotEvaluation(shots=[5, 2], draws=3, cost=0.5, standardise=standardise, seed=4)
    result = evaluation(train, test, 3)
    own, other = train.features.double().numpy(), test.features.double().numpy()
    mean, scale = own.mean(axis=0), own.std(axis=0) if standardise else 1.0  # over all images, not over the few
    correct = {}
    for k in (2, 5):
        rows = [k_shot(train.labels, k, num_classes=3, seed=4, draw=draw).indices.numpy() for draw in range(3)]
        assert all(len(chosen) == 3 * k for chosen in rows)
        answers = []
        for chosen in rows:
            reference = LogisticRegression(C=0.5, tol=1e-8, max_iter=10000)
            reference.fit((own[chosen] - mean) / scale, train.labels.numpy()[chosen])
            answers.append(reference.predict((other - mean) / scale) == test.labels.numpy())
        correct[k] = np.array(answers)
        assert result.metrics[f"top1_k{k}"] == pytest.approx(100 * correct[k].mean(), abs=1.5)
        assert result.details["sd"][f"k{k}"] == pytest.approx(np.std(100 * correct[k].mean(axis=1), ddof=1), abs=2.5)
    assert (np.abs(result.items - 100 * correct[5].mean(axis=0)) < 1e-9).mean() > 0.95
    assert list(result.metrics) == ["top1_k2", "top1_k5"]


def test_the_largest_k_counts_and_items_are_its_mean():
    result = LowShotEvaluation(shots=[8, 1], draws=4)(blobs(60, spread=3.0), blobs(30, seed=1, spread=3.0), 3)
    assert result.main == "top1_k8" and result.predictions is None
    assert result.items.mean() == pytest.approx(result.metrics["top1_k8"])
    assert set(np.round(result.items, 6)) <= {0, 25, 50, 75, 100}
    assert result.metrics["top1_k8"] > result.metrics["top1_k1"] > 30
    assert len(result.details["per_draw"]["k1"]) == 4 and result.details["notices"] == []
    json.dumps(result.details)


def test_one_draw_has_no_deviation():
    assert LowShotEvaluation(shots=[2], draws=1)(blobs(30), blobs(9), 3).details["sd"] == {}


def test_test_labels_change_no_answer():
    train, test = blobs(60, spread=2.0), blobs(30, seed=1, spread=2.0)
    evaluation = LowShotEvaluation(shots=[4], draws=1)
    right = evaluation(train, test, 3).items == 100
    turned = Features(test.features, (test.labels + 1) % 3, test.indices)
    assert not (right & (evaluation(train, turned, 3).items == 100)).any()  # the same answers fit one of the two only


def test_short_classes_are_named_and_absent_ones_never_answered():
    train = blobs(21, classes=4, labels=[*([0, 1] * 10), 3], spread=0.1)
    test = blobs(4, classes=4, labels=[0, 1, 2, 3], seed=1, spread=0.1)
    result = LowShotEvaluation(shots=[1, 3], draws=2, cost=10.0)(train, test, 4)
    assert result.items.tolist() == [100, 100, 0, 100]
    assert result.details["notices"] == [
        "k=1: 1 class(es) with fewer training images give all they have: numbers 2 (has 0)",
        "k=3: 2 class(es) with fewer training images give all they have: numbers 2 (has 0), 3 (has 1)",
    ]


def test_fits_that_stop_early_are_counted():
    result = LowShotEvaluation(shots=[8], draws=2, cost=100.0, max_iterations=2)(blobs(60, 30), blobs(9, 30), 3)
    assert result.details["notices"] == ["2 of 2 fits stopped after 2 iterations"]


def test_senseless_requests():
    with pytest.raises(UserError, match="shots is empty"):
        LowShotEvaluation(shots=[])
    with pytest.raises(UserError, match="one class only"):
        LowShotEvaluation()(blobs(9, labels=[1] * 9), blobs(3), 3)
    with pytest.raises(UserError, match="training images have no labels"):
        LowShotEvaluation()(Features(torch.ones(2, 2), None, torch.arange(2)), blobs(3, 2), 3)


def test_one_image_a_class_is_nothing_to_warn_of():
    labels = torch.arange(30)
    features = Features(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), labels, torch.arange(30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LowShotEvaluation(shots=[1], draws=1)(features, features, 30)
