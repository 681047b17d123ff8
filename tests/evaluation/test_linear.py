import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vissl_like.evaluation.base import Features, stratified_split
from vissl_like.evaluation.linear import LinearEvaluation, class_scores, prepared, reduced
from vissl_like.utils.errors import UserError


def blobs(count, width, classes=3, seed=0, spread=1.5, labels=None):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.arange(count) % classes if labels is None else np.asarray(labels)
    rows = centres[labels] + spread * generator.normal(size=(count, width))
    return Features(torch.tensor(rows, dtype=torch.float32), torch.tensor(labels), torch.arange(count))


@pytest.mark.parametrize("width", [6, 90])  # fewer and more features than images
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_equals_scikit_learn_called_directly(width, standardise, classes):
    train, test = blobs(60, width, classes), blobs(45, width, classes, seed=1)
    result = LinearEvaluation(costs=[0.1], standardise=standardise)(train, test, classes)
    own, other = train.features.double().numpy(), test.features.double().numpy()
    mean, scale = own.mean(axis=0), own.std(axis=0) if standardise else 1.0
    reference = LogisticRegression(C=0.1, tol=1e-8, max_iter=10000)
    reference.fit((own - mean) / scale, train.labels.numpy())
    predicted = reference.predict((other - mean) / scale)
    assert (result.predictions.numpy() == predicted).mean() > 0.97
    assert result.metrics["top1"] == pytest.approx(100 * (predicted == test.labels.numpy()).mean(), abs=2.3)
    assert result.details["cost"] == 0.1 and result.details["trials"] == []


def test_log_probabilities_equal_scikit_learns():
    train, test = blobs(60, 90), blobs(30, 90, seed=1)
    model = LogisticRegression(C=0.01, tol=1e-10, max_iter=10000)
    wide, wide_test = prepared(train.features, test.features, True)
    small, small_test = reduced(wide, wide_test)
    assert small.shape == (60, 60) and small_test.shape == (30, 60)
    reference = model.fit(wide, train.labels).predict_log_proba(wide_test)
    found = class_scores(LogisticRegression(C=0.01, tol=1e-10, max_iter=10000).fit(small, train.labels), small_test, 3)
    np.testing.assert_allclose(found.numpy(), reference, atol=2e-4)


def test_the_strength_is_never_chosen_on_test_images():
    train = blobs(90, 20, spread=3.0)
    test = blobs(60, 20, seed=1, spread=3.0)
    costs = [1e-6, 0.001, 0.01, 0.1, 1.0]
    evaluation = LinearEvaluation(costs=costs)
    honest = evaluation(train, test, 3)
    # Labels under which the worst fit is the best on test: whatever it predicts.
    useless = LinearEvaluation(costs=[1e-6])(train, test, 3).predictions
    misleading = evaluation(train, Features(test.features, useless, test.indices), 3)
    accuracies = [
        LinearEvaluation(costs=[cost])(train, Features(test.features, useless, test.indices), 3).metrics["top1"]
        for cost in costs
    ]
    assert costs[int(np.argmax(accuracies))] == 1e-6 != honest.details["cost"]  # choosing on test would differ
    assert misleading.details["cost"] == honest.details["cost"]
    assert misleading.details["trials"] == honest.details["trials"]
    assert torch.equal(misleading.predictions, honest.predictions)


def test_the_choice_is_the_least_cross_entropy_on_the_held_out_part():
    train = blobs(120, 15, spread=3.0)
    evaluation = LinearEvaluation(costs=[0.0001, 0.01, 1.0, 100.0], standardise=False, seed=5)
    details = evaluation(train, blobs(30, 15, seed=1), 3).details
    kept, held, _ = stratified_split(train.labels, 0.2, 5)
    rows, labels = train.features.numpy() - train.features.numpy().mean(axis=0), train.labels.numpy()
    losses = []
    for cost in [0.0001, 0.01, 1.0, 100.0]:
        model = LogisticRegression(C=cost, tol=1e-8, max_iter=10000).fit(rows[kept], labels[kept])
        losses.append(-model.predict_log_proba(rows[held])[np.arange(len(held)), labels[held]].mean())
    found = [trial["log_loss"] for trial in details["trials"]]
    np.testing.assert_allclose(found, losses[: len(found)], rtol=0.01)
    assert details["cost"] == [0.0001, 0.01, 1.0, 100.0][int(np.argmin(losses))]


def test_costs_past_the_minimum_are_not_tried():
    details = LinearEvaluation(costs=[0.003, 0.03, 0.3, 3.0, 30.0, 300.0, 3000.0])(
        blobs(90, 20, spread=4.0), blobs(9, 20), 3
    ).details
    losses = [trial["log_loss"] for trial in details["trials"]]
    assert len(losses) < 7 and losses[-3] < losses[-2] < losses[-1]


def test_a_best_strength_at_the_end_of_the_list_is_said():
    result = LinearEvaluation(costs=[1e-7, 1e-6])(blobs(60, 5, spread=0.1), blobs(9, 5), 3)
    assert any(
        "at the end of EVALUATION.costs" in notice and "larger" in notice for notice in result.details["notices"]
    )


def test_a_fit_that_stops_early_is_said():
    result = LinearEvaluation(costs=[100.0], max_iterations=2)(blobs(60, 30, spread=3.0), blobs(9, 30), 3)
    assert result.details["notices"] == ["the fit with C=100 stopped after 2 iterations"]


def test_a_class_with_one_image_stays_in_training_and_is_said():
    train = blobs(31, 5, 4, spread=0.1, labels=[*([0, 1, 2] * 10), 3])
    test = blobs(4, 5, 4, seed=1, spread=0.1, labels=[0, 1, 2, 3])
    result = LinearEvaluation(costs=[10.0, 1000.0])(train, test, 4)
    assert result.predictions.tolist() == [0, 1, 2, 3]
    assert (
        "1 class(es) with a single training image have no part in the choice of C: numbers 3"
        in (result.details["notices"])
    )


def test_single_images_only_cannot_choose():
    train = blobs(3, 5)
    with pytest.raises(UserError, match=r"config\.EVALUATION\.costs=\[0\.01\]"):
        LinearEvaluation()(train, blobs(3, 5), 3)
    assert LinearEvaluation(costs=[1.0])(train, blobs(3, 5, spread=0.1), 3).metrics["top1"] >= 0


def test_one_class_is_refused():
    with pytest.raises(UserError, match="one class only"):
        LinearEvaluation()(blobs(9, 5, labels=[1] * 9), blobs(3, 5), 3)


def test_classes_absent_from_training_are_never_predicted():
    result = LinearEvaluation(costs=[1.0])(blobs(20, 5, 4, labels=[0, 2] * 10), blobs(8, 5, 4), 4)
    assert set(result.predictions.tolist()) <= {0, 2}


def test_constant_features_do_not_blow_up():
    train, test = blobs(60, 5, spread=0.1), blobs(30, 5, seed=1, spread=0.1)
    train.features[:, 0], test.features[:, 0] = 3.0, 1e6
    result = LinearEvaluation()(train, test, 3)
    assert result.metrics["top1"] == 100.0


@pytest.mark.parametrize(("options", "message"), [({"costs": []}, "costs is empty"), ({"split": 1.0}, "split is 1.0")])
def test_senseless_options(options, message):
    with pytest.raises(UserError, match=message):
        LinearEvaluation(**options)
