import copy
import importlib.util

import numpy as np
import pytest

from vissl_like.data.readers.coco import read_coco
from vissl_like.utils.errors import UserError

TRUTH = {
    "images": [
        {"id": 9, "file_name": "b.jpg", "width": 6, "height": 4},
        {"id": 3, "file_name": "a/a.jpg", "width": 6, "height": 4},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 9,
            "category_id": 90,
            "bbox": [1, 1, 3, 2],
            "area": 6,
            "iscrowd": 0,
            "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]],
        },
        {
            "id": 2,
            "image_id": 9,
            "category_id": 7,
            "bbox": [0, 0, 6, 4],
            "area": 24,
            "iscrowd": 1,
            "segmentation": {"size": [4, 6], "counts": [0, 24]},
        },
        {"id": 5, "image_id": 9, "category_id": 7, "bbox": [0.5, 0, 2, 0], "area": 0, "iscrowd": 0, "segmentation": []},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}],
}


@pytest.fixture
def tree(tmp_path, put):
    put("instances.json", TRUTH)
    put("val/b.jpg")
    put("val/a/a.jpg")
    return tmp_path


def read(tree):
    return read_coco(tree / "instances.json", tree / "val")


def test_without_pycocotools(tree, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pycocotools" else find(name))
    with pytest.raises(UserError, match=r"not installed\. Install it:  pip install pycocotools"):
        read(tree)


class TestWithPycocotools:
    @pytest.fixture(autouse=True)
    def needed(self):
        pytest.importorskip("pycocotools")

    def test_reads(self, tree, capsys):
        found = read(tree)
        assert capsys.readouterr().out == ""
        assert found.images == [str(tree / "val/a/a.jpg"), str(tree / "val/b.jpg")]
        assert found.image_ids.tolist() == [3, 9] and found.sizes.tolist() == [[6, 4], [6, 4]]
        assert found.classes == ["train", "toothbrush"] and found.category_ids.tolist() == [7, 90]
        assert found.objects(0).boxes.shape == (0, 4) and found.masks(0).shape == (0, 4, 6)

    def test_objects(self, tree):
        found = read(tree)
        things = found.objects(1)
        assert things.boxes.tolist() == [[1, 1, 4, 3]] and things.labels.tolist() == [1] and things.ids.tolist() == [1]
        both = found.objects(1, crowds=True)
        assert both.ids.tolist() == [1, 2] and both.crowd.tolist() == [False, True] and both.labels.tolist() == [1, 0]
        assert both.areas.tolist() == [6, 24]
        expected = np.zeros((4, 6), dtype=bool)
        expected[1:3, 1:4] = True
        masks = found.masks(1, crowds=True)
        assert (masks[0] == expected).all() and masks[1].all() and masks.shape == (2, 4, 6)

    def test_truth_scores_itself(self, tree):
        from pycocotools.cocoeval import COCOeval

        found = read(tree)
        guess = found.truth.loadRes([{"image_id": 9, "category_id": 90, "bbox": [1, 1, 3, 2], "score": 0.5}])
        scored = COCOeval(found.truth, guess, "bbox")
        scored.params.catIds = [90]
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        assert scored.stats[0] == pytest.approx(1)

    def test_no_masks(self, tree, put):
        truth = copy.deepcopy(TRUTH)
        del truth["annotations"][0]["segmentation"], truth["annotations"][0]["area"]
        put("instances.json", truth)
        found = read(tree)
        assert found.objects(1).areas.tolist() == [6]
        with pytest.raises(UserError, match="annotation 1 has no 'segmentation'"):
            found.masks(1)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("categories"), "has no 'categories'"),
            (lambda t: t.update(images=[]), "'images' of .* is not a list with entries"),
            (lambda t: t["images"][0].pop("width"), r"images\[0\] of .* has no 'width'"),
            (lambda t: t["images"][1].update(id=9), "'images' of .* has the id 9 more than once"),
            (lambda t: t["images"][1].update(id="9"), "'id' of .* is '9', not a whole number"),
            (lambda t: t["images"][1].update(file_name=4), "'file_name' of .* is 4, not text"),
            (lambda t: t["images"][1].update(file_name="../b.jpg"), "is not named relative to"),
            (lambda t: t["images"][1].update(file_name="c.jpg"), r"1 of 2 images do not exist in .*val':\n  c\.jpg"),
            (lambda t: t["annotations"][0].update(image_id=4), "annotation 1 of .* has the image_id 4"),
            (lambda t: t["annotations"][0].update(category_id=1), "has the category_id 1"),
            (lambda t: t["annotations"][0].update(bbox=[1, 2, 3]), "'bbox' of the annotation 1"),
            (lambda t: t["annotations"][0].update(bbox=[1, 2, -3, 4]), "'bbox' of the annotation 1"),
        ],
    )
    def test_wrong_files(self, tree, put, change, message):
        truth = copy.deepcopy(TRUTH)
        change(truth)
        put("instances.json", truth)
        with pytest.raises(UserError, match=message):
            read(tree)
