import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from tiny_voc import CLASSES, voc_tree, write_split
from torch import nn

from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.functional.low_shot import multi_label_shots
from vissl_like.evaluation.machines import unit_rows
from vissl_like.evaluation.subjects import Look, Protocol, network_subject, pixel_subject
from vissl_like.evaluation.svm import SvmEvaluation
from vissl_like.utils.errors import UserError

SMALL = {"image_size": 8, "resize": 12}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Shrunk(nn.Module):
    """Mean colours of four quarters, ``[n, 12]``; notes the sizes that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, images):
        self.seen.add(tuple(images.shape[1:]))
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def bench(trunk=None, **changes):
    protocol = Protocol(image_size=32, **changes)
    subject = pixel_subject() if trunk is None else network_subject("net", "net", trunk, protocol)
    return Bench(subject, protocol, Look(3, MEAN, STD))


def shrunk(root, indices):
    """What ``Shrunk`` makes of the images, by hand: shorter side 12, then 8 x 8, normalised, of length 1."""
    rows = []
    for index in indices:
        image = Image.open(root / f"VOCdevkit/VOC2007/JPEGImages/{index:06d}.png")
        image = image.resize((19, 12), Image.Resampling.BILINEAR).resize((8, 8), Image.Resampling.BILINEAR)
        pixels = (np.asarray(image, dtype=np.float64) / 255 - MEAN) / STD
        quarters = [pixels[a : a + 4, b : b + 4].mean(axis=(0, 1)) for a in (0, 4) for b in (0, 4)]
        row = np.stack(quarters, axis=1).ravel()
        rows.append(row / (np.sqrt((row**2).sum()) + 1e-5))
    return np.array(rows)


def envelope(scores, positive):
    """Average precision by the devkit's formula for 2010: recalls and precisions with sentinels."""
    hits = positive[np.argsort(-scores, kind="stable")]
    recall = np.concatenate([[0], np.cumsum(hits) / hits.sum(), [1]])
    precision = np.concatenate([[0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0]])
    for index in range(len(precision) - 1, 0, -1):
        precision[index - 1] = max(precision[index - 1], precision[index])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return ((recall[steps] - recall[steps - 1]) * precision[steps]).sum()


def machine(inputs, targets, others, cost):
    model = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, max_iter=20000, tol=1e-6, dual=True, random_state=3)
    return model.fit(inputs, targets).decision_function(others)


COSTS = [0.01, 1.0, 20.0]


def test_protocol_by_hand(tmp_path):
    train_labels, test_labels = voc_tree(tmp_path)
    trunk = Shrunk()
    result = SvmEvaluation(path=str(tmp_path), costs=COSTS, max_iterations=20000, **SMALL).run(bench(trunk))
    assert trunk.seen == {(3, 8, 8)}
    inputs, others = shrunk(tmp_path, range(30)), shrunk(tmp_path, range(30, 54))
    expected = []
    for column, name in enumerate(CLASSES):
        targets = np.where(train_labels[:, column] == 1, 1, -1)
        means = []
        for cost in COSTS:
            folds = StratifiedKFold(3).split(inputs, targets)
            means.append(
                np.mean([envelope(machine(inputs[a], targets[a], inputs[b], cost), targets[b] == 1) for a, b in folds])
            )
        found = result.details["fold_averages"][name]
        np.testing.assert_allclose(list(found.values()), 100 * np.array(means), atol=1e-6)
        cost = COSTS[int(np.argmax(means))]
        assert result.details["cost_per_class"][name] == cost
        counts = test_labels[:, column] != 0
        expected.append(
            100 * envelope(machine(inputs, targets, others, cost)[counts], test_labels[counts, column] == 1)
        )
    assert (test_labels == 0).any() and (train_labels == 0).any()  # difficult ones are there
    np.testing.assert_allclose(result.items, expected, atol=1e-6)
    assert result.item_ids.tolist() == [0, 1, 2] and list(result.details["ap_per_class"]) == list(CLASSES)
    assert result.metrics["map"] == pytest.approx(np.mean(expected)) and result.main == "map"
    assert 40 < result.metrics["map"] < 99.9
    assert (result.train_images, result.test_images) == (30, 24)
    json.dumps(result.details)


def test_unit_rows_by_hand():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [3e-5, 4e-5], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[3 / 5.00001, 4 / 5.00001], [0.5, 4 / 6], [0, 0]], rtol=1e-5)


def test_test_labels_choose_nothing(tmp_path):
    _, test = voc_tree(tmp_path, noise=150)
    run = lambda: SvmEvaluation(path=str(tmp_path), costs=COSTS, **SMALL).run(bench(Shrunk())).details  # noqa: E731
    first = run()
    write_split(tmp_path / "VOCdevkit/VOC2007", "test", [f"{n:06d}" for n in range(30, 54)], -test)
    second = run()
    assert first["ap_per_class"] != second["ap_per_class"]
    assert (first["cost_per_class"], first["fold_averages"]) == (second["cost_per_class"], second["fold_averages"])


def test_eleven_points(tmp_path):
    voc_tree(tmp_path)
    result = SvmEvaluation(path=str(tmp_path), costs=[1.0], eleven_point=True, **SMALL).run(bench(Shrunk()))
    area = SvmEvaluation(path=str(tmp_path), costs=[1.0], **SMALL).run(bench(Shrunk()))
    assert result.details["fold_averages"] == {name: {} for name in CLASSES}  # one cost: nothing to choose
    assert result.metrics["map"] != pytest.approx(area.metrics["map"]) == pytest.approx(area.items.mean())
    assert result.details["eleven_point"] and abs(result.metrics["map"] - area.metrics["map"]) < 15


def test_low_shot_by_hand(tmp_path):
    train, test = voc_tree(tmp_path, noise=120, difficult=0.3)
    options = {"costs": [0.01, 5.0], "shots": [3, 2], "draws": 2, "seed": 7, "max_iterations": 20000}
    result = SvmEvaluation(path=str(tmp_path), **options, **SMALL).run(bench(Shrunk()))
    inputs, others = shrunk(tmp_path, range(30)), shrunk(tmp_path, range(30, 54))
    ours = torch.tensor([[{1: 1, -1: 0, 0: -1}[int(value)] for value in row] for row in train])
    for k in (2, 3):
        table = np.empty((2, 2, 3))
        for draw in range(2):
            targets = multi_label_shots(ours, k, seed=7, draw=draw, negatives="each class").targets.numpy()
            for column in range(3):
                rows = targets[:, column] >= 0
                assert (targets[:, column] == 1).sum() == k and (train[rows, column] != 0).all()
                counts = test[:, column] != 0
                for position, cost in enumerate([0.01, 5.0]):
                    scores = machine(inputs[rows], 2 * targets[rows, column] - 1, others, cost)
                    table[position, draw, column] = 100 * envelope(scores[counts], test[counts, column] == 1)
        per_cost = table.mean(axis=(1, 2))
        assert result.metrics[f"map_k{k}"] == pytest.approx(per_cost.max(), abs=1e-4)
        facts = result.details["per_k"][f"k{k}"]
        np.testing.assert_allclose(list(facts["per_cost"].values()), per_cost, atol=1e-4)
        assert facts["sd"] == pytest.approx(table[per_cost.argmax()].mean(axis=1).std(ddof=1), abs=1e-4)
    assert result.main == "map_k3" and result.items.mean() == pytest.approx(result.metrics["map_k3"])
    np.testing.assert_allclose(result.items, table[per_cost.argmax()].mean(axis=0), atol=1e-4)
    assert any("optimistic: for each k the best of 2 costs" in text for text in result.details["notices"])
    json.dumps(result.details)


def test_low_shot_says_what_is_missing(tmp_path):
    voc_tree(tmp_path)
    options = {"costs": [1.0], "shots": [25], "draws": 1, "negatives": "all"}
    notices = SvmEvaluation(path=str(tmp_path), **options, **SMALL).run(bench(Shrunk())).details["notices"]
    assert any("k=25: 3 class(es) with fewer positives than asked for: cat (has" in text for text in notices)
    assert any("fewer negatives" in text for text in notices) and not any("optimistic" in text for text in notices)


def test_pixels_are_wide_and_come_without_their_mean(tmp_path):
    train, test = voc_tree(tmp_path)
    result = SvmEvaluation(path=str(tmp_path), costs=[5.0], max_iterations=20000, **SMALL).run(bench())
    rows = []
    for index in range(54):
        image = Image.open(tmp_path / f"VOCdevkit/VOC2007/JPEGImages/{index:06d}.png")
        image = image.resize((19, 12), Image.Resampling.BILINEAR).resize((8, 8), Image.Resampling.BILINEAR)
        rows.append(np.asarray(image, dtype=np.float64).ravel() / 255)
    rows = np.array(rows) - np.mean(rows[:30], axis=0)  # 192 pixels, more than the 30 training images
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-5
    for column in range(3):
        scores = machine(rows[:30], np.where(train[:, column] == 1, 1, -1), rows[30:], 5.0)
        counts = test[:, column] != 0
        expected = 100 * envelope(scores[counts], test[counts, column] == 1)
        assert result.items[column] == pytest.approx(expected, abs=1e-4)


def test_unreadable_images_shift_no_labels(tmp_path):
    train, test = voc_tree(tmp_path)
    place = tmp_path / "VOCdevkit/VOC2007"
    for number in (0, 31):
        file = place / f"JPEGImages/{number:06d}.png"
        file.write_bytes(file.read_bytes()[:60])
    found = SvmEvaluation(path=str(tmp_path), costs=[1.0], **SMALL).run(bench(Shrunk()))
    assert (found.train_images, found.test_images, len(found.skipped)) == (29, 23, 2)
    names = [[f"{n:06d}" for n in range(1, 30)], [f"{n:06d}" for n in range(30, 54) if n != 31]]
    write_split(place, "trainval", names[0], train[1:])
    write_split(place, "test", names[1], np.delete(test, 1, axis=0))
    without = SvmEvaluation(path=str(tmp_path), costs=[1.0], **SMALL).run(bench(Shrunk()))
    np.testing.assert_allclose(found.items, without.items)


def test_a_class_without_test_images_does_not_count(tmp_path):
    _, test = voc_tree(tmp_path)
    test[:, 1] = np.where(test[:, 1] == 1, 0, test[:, 1])
    write_split(tmp_path / "VOCdevkit/VOC2007", "test", [f"{n:06d}" for n in range(30, 54)], test)
    for more in ({}, {"shots": [2], "draws": 2}):
        result = SvmEvaluation(path=str(tmp_path), costs=[1.0], **more, **SMALL).run(bench(Shrunk()))
        assert result.item_ids.tolist() == [0, 2]
        assert result.metrics[result.main] == pytest.approx(result.items.mean())
        assert "1 class(es) have no test image and do not count: dog" in result.details["notices"]


def test_too_few_images_of_a_class(tmp_path):
    train, _ = voc_tree(tmp_path)
    train[2:, 0] = -1
    train[:2, 0] = 1
    write_split(tmp_path / "VOCdevkit/VOC2007", "trainval", [f"{n:06d}" for n in range(30)], train)
    with pytest.raises(UserError, match=r"class 'cat' has 2 training images .* 3 of each are needed.*costs=\[1\]"):
        SvmEvaluation(path=str(tmp_path), costs=COSTS, **SMALL).run(bench(Shrunk()))
    assert SvmEvaluation(path=str(tmp_path), costs=[1.0], **SMALL).run(bench(Shrunk())).metrics["map"] > 0
    train[:, 0] = -1
    write_split(tmp_path / "VOCdevkit/VOC2007", "trainval", [f"{n:06d}" for n in range(30)], train)
    with pytest.raises(UserError, match=r"class 'cat' has 0 training images .* 1 of each are needed"):
        SvmEvaluation(path=str(tmp_path), costs=COSTS, shots=[1], **SMALL).run(bench(Shrunk()))


def test_remarks(tmp_path):
    voc_tree(tmp_path, noise=150)
    evaluation = SvmEvaluation(path=str(tmp_path), costs=[50.0, 1000.0], max_iterations=5, **SMALL)
    notices = evaluation.run(bench(Shrunk())).details["notices"]
    assert any("fits stopped after 5 iterations" in text for text in notices)
    assert any("3 class(es) take a cost at an end of EVALUATION.costs" in text for text in notices)


def test_identity_follows_images_and_labels(tmp_path):
    train, _ = voc_tree(tmp_path)
    evaluation = SvmEvaluation(path=str(tmp_path), **SMALL)
    first = evaluation.identity(bench(Shrunk()))
    assert first == evaluation.identity(bench())
    train[0, 0] = -train[0, 0] or 1
    names = [f"{n:06d}" for n in range(30)]
    write_split(tmp_path / "VOCdevkit/VOC2007", "trainval", names, train)
    second = evaluation.identity(bench())
    write_split(tmp_path / "VOCdevkit/VOC2007", "trainval", names[:-1], train[:-1])
    assert len({first, second, evaluation.identity(bench())}) == 3


def test_senseless_requests(tmp_path):
    with pytest.raises(UserError, match="costs is empty"):
        SvmEvaluation(path="x", costs=[])
    with pytest.raises(UserError, match="shots is empty"):
        SvmEvaluation(path="x", shots=[])
    with pytest.raises(UserError, match=r"VOC: the folder .* does not exist"):
        SvmEvaluation(path=str(tmp_path / "nowhere")).run(bench(Shrunk()))
