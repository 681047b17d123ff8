import copy

import pytest

from vissl_like.data.datasets.file_list import ListedImages
from vissl_like.data.readers.lists import read_imagenet_part, read_inaturalist, read_places, write_list
from vissl_like.utils.errors import UserError

TRUTH = {
    "images": [{"id": 5, "file_name": "train/b/2.jpg"}, {"id": 2, "file_name": "train/a/1.jpg"}],
    "annotations": [{"id": 1, "image_id": 2, "category_id": 40}, {"id": 2, "image_id": 5, "category_id": 8}],
    "categories": [{"id": 40, "name": "Bee"}, {"id": 8, "name": "Ant"}, {"id": 50, "name": "Cow"}],
}


@pytest.fixture
def naturalist(tmp_path, put):
    put("train2018.json", TRUTH)
    put("train/a/1.jpg")
    put("train/b/2.jpg")
    return tmp_path


def test_inaturalist(naturalist):
    found = read_inaturalist(naturalist / "train2018.json", naturalist)
    assert found.files == [str(naturalist / "train/b/2.jpg"), str(naturalist / "train/a/1.jpg")]
    assert found.labels.tolist() == [0, 1] and found.classes == ["Ant", "Bee", "Cow"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("annotations"), "has no 'annotations'"),
        (lambda t: t["annotations"].pop(), "1 of 2 images of .* have no annotation, first 5"),
        (lambda t: t.update(annotations=[]), "'annotations' of .* is not a list with entries"),
        (lambda t: t["annotations"][1].update(category_id=9), r"annotations\[1\] .* category_id 9; one is not in"),
        (lambda t: t["annotations"][1].update(image_id=9), "image_id 9"),
        (lambda t: t["annotations"][1].update(image_id=2), "the image 2 of .* has several categories"),
        (lambda t: t["images"][1].update(id=5), "ids are whole numbers, each used once"),
        (lambda t: t["images"][1].pop("file_name"), "the image 2 of .* has no 'file_name'"),
        (
            lambda t: t["images"][1].update(file_name="train/a/3.jpg"),
            r"1 of 2 images do not exist.*:\n  train/a/3\.jpg",
        ),
    ],
)
def test_wrong_inaturalist(naturalist, put, change, message):
    truth = copy.deepcopy(TRUTH)
    change(truth)
    put("train2018.json", truth)
    with pytest.raises(UserError, match=message):
        read_inaturalist(naturalist / "train2018.json", naturalist)


@pytest.fixture
def places(tmp_path, put):
    put("train.txt", "/b/barn/1.jpg 1\na/air field/2.jpg 0\n")
    put("categories.txt", "/a/airfield 0\n/b/barn 1\n/c/cave 2\n")
    put("b/barn/1.jpg")
    put("a/air field/2.jpg")
    return tmp_path


def test_places(places):
    found = read_places(places / "train.txt", places)
    assert found.files == [str(places / "b/barn/1.jpg"), str(places / "a/air field/2.jpg")]
    assert found.labels.tolist() == [1, 0] and found.classes == ["0", "1"]
    named = read_places(places / "train.txt", places, places / "categories.txt")
    assert named.classes == ["/a/airfield", "/b/barn", "/c/cave"] and named.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.txt", "b/barn/1.jpg\n", "line 1 of .* is 'b/barn/1.jpg'"),
        ("train.txt", "b/barn/1.jpg -1\n", "line 1"),
        ("train.txt", "b/barn/1.jpg 3\n", "has the label 3, and .* names 3"),
        ("train.txt", "b/barn/9.jpg 0\n", "1 of 1 images do not exist"),
        ("train.txt", "b/../../x.jpg 0\n", "is not named relative to"),
        ("categories.txt", "/a 0\n/b 2\n", "are not 0 to 1, each once"),
    ],
)
def test_wrong_places(places, put, name, text, message):
    put(name, text)
    with pytest.raises(UserError, match=message):
        read_places(places / "train.txt", places, places / "categories.txt")


@pytest.fixture
def imagenet(tmp_path, put):
    for name in ("n02_10", "n02_7", "n05_1", "n11_3"):
        put(f"train/{name.split('_')[0]}/{name}.JPEG")
    put("10percent.txt", "n11_3.JPEG\nn02_7.JPEG\n")
    return tmp_path


def test_imagenet(imagenet):
    found = read_imagenet_part(imagenet / "10percent.txt", imagenet / "train")
    assert found.files == [str(imagenet / "train/n11/n11_3.JPEG"), str(imagenet / "train/n02/n02_7.JPEG")]
    # n05 is no class of the part, but keeps its number.
    assert found.classes == ["n02", "n05", "n11"] and found.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n02_7.JPEG\nn06_1.JPEG\n", r"line 2 of .* no class folder 'n06' in .*\. Did you mean"),
        ("7.JPEG\n", "no class folder ''"),
        ("n02_7.JPEG\nn02_7.JPEG\n", "line 2 of .* for the second time"),
        ("n02_8.JPEG\n", r"1 of 1 images do not exist in .*train':\n  n02/n02_8\.JPEG"),
        ("", "is empty"),
    ],
)
def test_wrong_imagenet(imagenet, put, text, message):
    put("10percent.txt", text)
    with pytest.raises(UserError, match=message):
        read_imagenet_part(imagenet / "10percent.txt", imagenet / "train")


def test_saved_list_is_read_by_the_dataset(imagenet, tmp_path):
    found = read_imagenet_part(imagenet / "10percent.txt", imagenet / "train")
    write_list(found, tmp_path / "part.csv")
    dataset = ListedImages(path=str(tmp_path / "part.csv"))
    assert [dataset.path(index) for index in range(2)] == found.files and dataset.labels.tolist() == [2, 0]
