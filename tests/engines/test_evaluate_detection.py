"""Detection from the command line's settings to the record: boxes of a VOCdevkit, masks of COCO instances."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import checkpoint, settings

from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.utils.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))  # for tiny_objects.py
from tiny_objects import coco_tree, voc_tree

SMALL = (
    *("train_sizes=[32]", "test_size=32", "longest=80", "steps=4", "batch_size=2", "anchors=[8, 16, 32]", "rois=8"),
    *("train_proposals=20", "test_proposals=5", "width=8", "hidden=16", "pictures=1", "batch_norm=trained"),
)


def evaluate(place, layer, *options):
    given = [f"config=benchmark/detection/{layer}", *(f"config.EVALUATION.{option}" for option in (*SMALL, *options))]
    assert EvaluateEngine(settings(place / "run", *given)).run() == 0
    record = json.loads((place / "run/evaluation_detection.json").read_text())
    with np.load(place / "run/evaluation_detection.npz", allow_pickle=False) as arrays:
        return record, dict(arrays)


def test_masks_of_a_grey_network_and_its_floor(tmp_path):
    checkpoint(tmp_path / "run")
    root = coco_tree(tmp_path / "data")
    record, _ = evaluate(tmp_path, "small", f"path={root}")
    assert list(record["subjects"]) == ["trained", "random init"]
    for subject in record["subjects"].values():
        assert set(subject["metrics"]) == {"AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75"}
        assert subject["details"]["training"]["steps"] == 4
    assert record["differences"].keys() == {"random init"}
    for folder in ("trained", "random_init"):
        assert len(list((tmp_path / "run/detection" / folder).glob("*.png"))) == 1


def test_a_published_layer_in_miniature(tmp_path):
    checkpoint(tmp_path / "run")
    root = voc_tree(tmp_path)
    options = ["train=[2007/trainval]", "roi_size=4", "milestones=[3]", "warmup_steps=2", "precise_batch_norm=1"]
    record, _ = evaluate(tmp_path, "voc_c4_swav", f"path={root}", "lr=0.001", *options)
    trained = record["subjects"]["trained"]
    assert "AP50_voc07" in trained["metrics"] and trained["details"]["detector"] == "faster_rcnn_c4"


def test_mistakes_are_told(tmp_path):
    checkpoint(tmp_path / "run")
    with pytest.raises(UserError, match="does not exist"):
        evaluate(tmp_path, "small", f"path={tmp_path / 'nowhere'}")
