import json
from pathlib import Path

import cutouts
import fake_packages as fake
import numpy as np
import prepare_voc as script
import pytest
from prepare_voc import main

from vissl_like.data.readers import masks
from vissl_like.data.readers.voc import read_voc_boxes, read_voc_labels, read_voc_masks

NAMES = ["mammal", "bird", "insect", "fruit", "flower", "vehicle", "garment", "shoe", "bag", "face"]


def garments(folder, prefix):
    labels = np.tile(np.array([0, 5, 8], dtype=np.uint8), 200)
    return np.full((600, 28, 28), 200, dtype=np.uint8), labels


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    fake.photos(folder)
    places = ["animals/mammals", "animals/birds", "animals/insects", "food/fruit", "plants/flowers", "vehicles/x"]
    fake.stamps(folder, [f"{place}/{number}" for place in places for number in range(12)], (90, 90))
    fake.emoji(folder, [fake.row("1F401", "face-smiling"), fake.row("1F410", "face-smiling")])
    return folder


def arguments(packages, out, *more):
    return ["--out", str(out), "--packages", str(packages), "--train", "25", "--val", "6", "--size", "96", *more]


@pytest.fixture(scope="module")
def made(packages, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutouts, "fashion_mnist", garments)
        assert main(arguments(packages, out)) == 0
    return out


def decoded(segmentation):
    """Mask of COCO's run lengths, column by column."""
    height, width = segmentation["size"]
    values = [number % 2 for number, length in enumerate(segmentation["counts"]) for _ in range(length)]
    return np.array(values, dtype=bool).reshape(width, height).T


@pytest.mark.parametrize(("split", "coco", "count"), [("trainval", "train", 25), ("test", "val", 6)])
def test_all_forms_say_the_same(made, split, coco, count):
    labels, boxes = read_voc_labels(made, split), read_voc_boxes(made, split, classes=NAMES)
    files = read_voc_masks(made, split, year="2007")
    content = json.loads((made / f"annotations/instances_{coco}.json").read_text())
    assert len(boxes.images) == len(files) == len(content["images"]) == count
    assert [entry["name"] for entry in content["categories"]] == NAMES and labels.classes == sorted(NAMES)
    for row, (image, mask) in enumerate(zip(boxes.images, files, strict=True)):
        objects, kinds = masks.read_mask(mask.object_mask), masks.read_mask(mask.class_mask)
        assert objects.shape == (96, 96) and 0 < len(image.boxes) <= 5
        entries = [entry for entry in content["annotations"] if entry["image_id"] == row + 1]
        assert len(entries) == len(image.boxes) == objects.max()
        expected = np.full(10, -1)
        for number, entry in enumerate(entries):
            seen = objects == number + 1
            y, x = np.nonzero(seen)
            assert image.boxes[number].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert entry["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert (decoded(entry["segmentation"]) == seen).all() and entry["area"] == seen.sum()
            name = NAMES[entry["category_id"] - 1]
            assert boxes.classes[image.labels[number]] == name
            assert (kinds[seen] == 1 + sorted(NAMES).index(name)).all()
            assert image.difficult[number] == (entry["visible"] < 0.6) and 0.4 <= entry["visible"] <= 1
            column = sorted(NAMES).index(name)
            expected[column] = max(expected[column], 0 if entry["visible"] < 0.6 else 1)
        assert (kinds[objects == 0] == 0).all() and labels.labels[row].tolist() == expected.tolist()
        jpeg = made / coco / content["images"][row]["file_name"]
        assert jpeg.read_bytes() == Path(image.image).read_bytes()
    ids = [entry["id"] for entry in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_licences(made):
    text = (made / "SOURCE.txt").read_text()
    assert text.startswith("Set: cut-outs on photographs size=96 train=25 val=6\n")
    assert all(word in text for word in ("all rights reserved", "GPL-2", "Fashion-MNIST: MIT", "CC BY-SA"))


def test_images_depend_on_their_number_only(packages, made, tmp_path, monkeypatch):
    monkeypatch.setattr(cutouts, "fashion_mnist", garments)
    assert main(arguments(packages, tmp_path / "out", "--train", "2", "--val", "1")) == 0
    first, second = fake.tree(made), fake.tree(tmp_path / "out")
    pictures = [name for name in second if name.endswith((".jpg", ".png", ".xml"))]
    assert len(pictures) == 3 + 3 * 4 and all(first[name] == second[name] for name in pictures)


def test_run_lengths():
    mask = np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)
    assert script.run_lengths(mask) == [0, 2, 2, 1, 1]  # down the columns: 11 00 10
    assert script.run_lengths(~mask) == [2, 2, 1, 1]
    for seed in range(20):
        mask = np.random.default_rng(seed).random((5, 7)) < 0.5
        assert (decoded({"size": [5, 7], "counts": script.run_lengths(mask)}) == mask).all()


def test_missing_parts(packages, tmp_path, capsys, monkeypatch):
    assert main(arguments(packages, tmp_path / "out", "--fashion", str(tmp_path))) == 1
    assert "python extra_scripts/prepare_fashion_mnist.py" in capsys.readouterr().err
    monkeypatch.setattr(cutouts, "fashion_mnist", lambda folder, prefix: (np.zeros((0, 28, 28), np.uint8), []))
    assert main(arguments(packages, tmp_path / "out")) == 1
    assert "there is no garment for train" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--train", "0"])
    assert not (tmp_path / "out").exists()
