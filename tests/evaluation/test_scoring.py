import numpy as np
import pytest
import torch
from tiny_data import ArrayDataset, random_images

from vissl_like.evaluation.base import EvaluationResult, Features, majority_result, stratified_split
from vissl_like.evaluation.bench import Bench, Probe
from vissl_like.evaluation.knn import KnnEvaluation
from vissl_like.evaluation.record import make_record, summary, write_results
from vissl_like.evaluation.scoring import (
    Scored,
    align_classes,
    compare_with,
    count_classes,
    format_table,
    score,
    train_and_test,
)
from vissl_like.evaluation.subjects import Look, Protocol, Source, Subject
from vissl_like.utils.errors import UserError

PROTOCOL = Protocol(image_size=8)


def features(rows, labels):
    return Features(torch.as_tensor(rows, dtype=torch.float32), torch.as_tensor(labels), torch.arange(len(rows)))


def scored(name, predictions, labels, indices=None):
    predictions, labels = torch.as_tensor(predictions), torch.as_tensor(labels)
    indices = torch.arange(len(labels)) if indices is None else torch.as_tensor(indices)
    items = 100 * (predictions == labels).double()
    result = EvaluationResult("knn", {"top1": float(items.mean())}, predictions, {"k": [20]}, labels=labels)
    result.items, result.item_ids = items.numpy(), indices.numpy()
    result.train_images = result.test_images = len(labels)
    return Scored(name, result)


def test_split_holds_out_every_class_in_proportion():
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 2 + [3])
    kept, held, single = stratified_split(labels, 0.25, 0)
    assert labels[held].bincount(minlength=4).tolist() == [10, 5, 1, 0]
    assert single == [3]
    assert sorted(kept.tolist() + held.tolist()) == list(range(63))
    again = stratified_split(labels, 0.25, 0)
    assert torch.equal(held, again[1]) and not torch.equal(held, stratified_split(labels, 0.25, 1)[1])


def test_hold_out_is_the_same_for_every_subject():
    labels = torch.arange(40) % 4
    first = train_and_test(features(torch.rand(40, 3), labels), None, 0.25, 5)
    second = train_and_test(features(torch.rand(40, 9), labels), None, 0.25, 5)
    assert torch.equal(first[1].indices, second[1].indices)
    assert not set(first[0].indices.tolist()) & set(first[1].indices.tolist())
    assert len(first[1]) == 8  # round(.25 * 10) = 2 of each class
    given = features(torch.rand(2, 3), [0, 1])
    assert train_and_test(first[0], given, 0.25, 5) == (first[0], given)
    with pytest.raises(UserError, match="single image"):
        train_and_test(features(torch.rand(2, 3), [0, 1]), None, 0.5, 0)


def test_classes_are_matched_by_name():
    train = ArrayDataset(random_images(3), labels=[0, 1, 2], classes=["cat", "dog", "owl"])
    test = ArrayDataset(random_images(3), labels=[0, 1, 1], classes=["owl", "cat"])
    assert align_classes(train, test).labels.tolist() == [2, 0, 0]
    strange = ArrayDataset(random_images(1), labels=[0], classes=["cow"])
    with pytest.raises(UserError, match=r"not among those of DATA.PROBE_TRAIN: cow"):
        align_classes(train, strange)


def test_number_of_classes():
    train = ArrayDataset(random_images(2), labels=[0, 3])
    assert count_classes(train, None) == 4
    assert count_classes(train, ArrayDataset(random_images(1), labels=[6])) == 7
    assert count_classes(ArrayDataset(random_images(2), labels=[0, 1], classes=["a", "b", "c"]), None) == 3
    with pytest.raises(UserError, match=r"DATA.PROBE_TRAIN have no labels"):
        count_classes(ArrayDataset(random_images(2)), None)
    with pytest.raises(UserError, match=r"DATA.PROBE_TEST have no labels"):
        count_classes(train, ArrayDataset(random_images(2)))


def test_majority():
    found = majority_result(torch.tensor([1, 1, 0, 2, 1]), torch.tensor([1, 0, 1, 2]), 3)
    assert found.metrics == {"top1": 50.0, "mean_per_class": pytest.approx(100 / 3)}
    assert found.predictions.tolist() == [1, 1, 1, 1]


def test_only_pixels_are_centred():
    # With the mean (10, 10) taken off, the query is nearest to class 1; without, the cosines barely differ.
    rows = {3: [[11.0, 10.0], [9.0, 10.0]], 1: [[9.5, 9.9]]}
    given = {"train": features(rows[3], [0, 1]), "test": features(rows[1], [1])}
    images = {
        "train": Source(ArrayDataset(random_images(2), labels=[0, 1])),
        "test": Source(ArrayDataset(random_images(1), labels=[1])),
    }
    found = {}
    for name, network in (("raw pixels", None), ("net", torch.nn.Flatten)):
        subject = Subject(name, name, lambda dataset, *_: given["train" if len(dataset) == 2 else "test"], network)
        bench = Bench(subject, PROTOCOL, Look(1, (0.5,), (0.5,)), Probe(images["train"], images["test"], 2))
        found[name] = score(bench, KnnEvaluation(k=[1])).result
    assert found["raw pixels"].metrics["top1"] == 100.0
    cosines = [np.dot([9.5, 9.9], row) / np.linalg.norm(row) for row in ([11, 10], [9, 10])]
    assert found["net"].predictions.tolist() == [int(np.argmax(cosines))]
    assert found["net"].chance.metrics["top1"] == 0.0 and found["net"].train_images == 2
    assert given["train"].features.tolist() == [[11.0, 10.0], [9.0, 10.0]]


def test_what_is_no_mean_over_items_has_no_interval():
    first, other = scored("a", [0, 1], [0, 1]), scored("b", [0, 0], [0, 1])
    other.result.items = None
    assert compare_with(first, other) is None
    assert format_table([first, other]).splitlines()[2].split() == ["b", "50.0"]


def test_other_labels_or_images_are_another_identity():
    def identity(labels, test=None, holdout=0.25):
        train = Source(ArrayDataset(random_images(3), labels=labels))
        return Bench(None, PROTOCOL, None, Probe(train, test, 2), None, holdout).probe_identity()

    plain = identity([0, 1, 1])
    assert identity([0, 1, 1]) == plain
    assert len({plain, identity([0, 0, 1]), identity([0, 1, 1], holdout=0.5)}) == 3
    assert identity([0, 1, 1], Source(ArrayDataset(random_images(2), labels=[0, 1]))) != plain


def test_comparison_is_over_common_images():
    first = scored("a", [0, 1, 1], [0, 1, 1], indices=[2, 5, 9])
    other = scored("b", [0, 0, 0], [1, 0, 1], indices=[9, 5, 7])
    # Common images: 5 (a right, b right), 9 (a right, b wrong).
    assert compare_with(first, other).mean == 50.0


def test_table_is_aligned():
    table = format_table([scored("trained", [0, 1], [0, 1]), scored("raw pixels", [0, 0], [0, 1])])
    lines = table.splitlines()
    assert lines[0].split() == ["top1", "trained", "-", "this", "[95", "%]"]
    assert lines[1].split() == ["trained", "100.0"]
    assert lines[2].startswith("raw pixels   50.0") and "+50.0 [" in lines[2]


def test_files_hold_everything(tmp_path):
    import json

    rows = [scored("trained", [0, 1, 1], [0, 1, 0]), scored("raw pixels", [1, 1, 0], [0, 1, 0])]
    record = make_record(
        rows,
        name="knn",
        weights={"path": "w.safetensors", "sha256": "0", "backbone": {"step": 7}},
        data={"train": {}, "test": None, "held_out_of_train": True, "num_classes": 2, "classes": None},
        settings={"EVALUATION": {"name": "knn"}, "EVALUATE": {"image_size": 8}, "SEED": 0},
        notices=["look out"],
    )
    write_results(tmp_path, "my.module:Knn", record, rows)
    found = json.loads((tmp_path / "evaluation_my.module_Knn.json").read_text())
    assert found["subjects"]["trained"]["metrics"]["top1"] == pytest.approx(200 / 3)
    assert found["step"] == 7 and found["differences"]["raw pixels"]["difference"] == pytest.approx(0.0)
    assert "torch" in found["versions"]
    with np.load(tmp_path / "evaluation_my.module_Knn.npz", allow_pickle=False) as arrays:
        assert arrays["correct_raw_pixels"].tolist() == [False, True, True]
        assert arrays["predictions_trained"].tolist() == [0, 1, 1]
        assert arrays["indices_trained"].tolist() == [0, 1, 2] and arrays["labels"].tolist() == [0, 1, 0]
    text = summary(record, rows)
    assert "held out of the training images" in text and "note: look out" in text and "step 7" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation_my.module_Knn.json",
        "evaluation_my.module_Knn.npz",
    ]
