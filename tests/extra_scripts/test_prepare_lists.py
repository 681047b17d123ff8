"""On trees written by hand in the forms that the sets are published in; what is written is read by the dataset."""

import json

import pytest
from PIL import Image
from prepare_lists import main

from vissl_like.data.datasets.file_list import ListedImages

NATURALIST = {
    "images": [{"id": 5, "file_name": "train/b/2.jpg"}, {"id": 2, "file_name": "train/a/1.jpg"}],
    "annotations": [{"image_id": 2, "category_id": 40}, {"image_id": 5, "category_id": 8}],
    "categories": [{"id": 40, "name": "Bee"}, {"id": 8, "name": "Ant"}, {"id": 50, "name": "Cow"}],
}


@pytest.fixture
def place(tmp_path):
    images = ("train/b/2.jpg", "train/a/1.jpg", "b/barn/1.jpg", "a/air field/2.jpg", "in/n02/n02_7.JPEG")
    for name in (*images, "in/n11/n11_3.JPEG", "in/n05/n05_1.JPEG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "train2018.json").write_text(json.dumps(NATURALIST))
    (tmp_path / "places.txt").write_text("/b/barn/1.jpg 1\n/a/air field/2.jpg 0\n")
    (tmp_path / "categories.txt").write_text("/a/airfield 0\n/b/barn 1\n")
    (tmp_path / "1percent.txt").write_text("n11_3.JPEG\nn02_7.JPEG\n")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "listed", "root", "more", "files", "labels", "said"),
    [
        ("inaturalist", "train2018.json", ".", [], ["train/b/2.jpg", "train/a/1.jpg"], [0, 1], " (1 more have none)"),
        ("places", "places.txt", ".", ["categories.txt"], ["b/barn/1.jpg", "a/air field/2.jpg"], [1, 0], ""),
        ("places", "places.txt", ".", [], ["b/barn/1.jpg", "a/air field/2.jpg"], [1, 0], ""),
        ("imagenet", "1percent.txt", "in", [], ["n11/n11_3.JPEG", "n02/n02_7.JPEG"], [2, 0], " (1 more have none)"),
    ],
)
def test_a_dataset_takes_what_is_written(place, capsys, kind, listed, root, more, files, labels, said):
    out = place / "lists/made.csv"
    command = [kind, "--list", str(place / listed), "--root", str(place / root), "--out", str(out)]
    assert main([*command, *(part for name in more for part in ("--categories", str(place / name)))]) == 0
    assert f"made.csv: 2 images of 2 classes{said}\n" in capsys.readouterr().out
    dataset = ListedImages(path=str(out))
    assert [dataset.path(index) for index in range(2)] == [str(place / root / name) for name in files]
    assert list(dataset.labels) == labels
    assert main(command) == 2 and "exists already" in capsys.readouterr().err
    assert main([*command, "--replace"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["places", "--list", "place.txt", "--out", "a.csv"], "Did you mean 'places.txt'?"),
        (["places", "--list", "places.txt", "--out", "a.txt"], "must end in .csv"),
        (["places", "--list", "1percent.txt", "--out", "a.csv"], "line 1 of"),
        (["imagenet", "--list", "1percent.txt", "--out", "a.csv"], "no class folder 'n11'"),
        (["inaturalist", "--list", "places.txt", "--out", "a.csv"], "is not JSON"),
        (["imagenet", "--list", "1percent.txt", "--out", "a.csv", "--categories", "categories.txt"], "Leave it out"),
        (["places", "--list", "places.txt", "--out", "places.txt/a.csv"], "cannot be written"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(place, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert main([*arguments, "--root", "."]) == 2
    assert said in capsys.readouterr().err and sorted(place.rglob("*")) == before
