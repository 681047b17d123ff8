"""Average precision against numbers worked by hand, and against pycocotools used as its authors do."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vissl_like.evaluation.functional.detection import Detections, TrueObjects, average_precisions


def truth(boxes, labels, crowd=(), difficult=(), masks=None):
    boxes, labels = np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64)
    flags = [np.isin(np.arange(len(labels)), list(rows)) for rows in (crowd, difficult)]
    return TrueObjects(boxes, labels, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), *flags, masks, (100, 100))


def found(boxes, labels, scores, masks=None):
    return Detections(
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64), np.array(scores), masks
    )


A, B, AWAY = [10, 10, 30, 30], [50, 50, 70, 70], [80, 0, 99, 20]
HALF = [10, 10, 30, 22]  # overlaps A by 0.6


def test_by_hand():
    """Class 0: right, wrong, right of two objects; class 1: one object, overlap 0.6; class 2: nothing to find."""
    images = [truth([A, B], [0, 0]), truth([A], [1])]
    answers = [found([A, AWAY, B], [0, 0, 0], [0.9, 0.8, 0.7]), found([HALF, AWAY], [1, 2], [0.9, 0.9])]
    result = average_precisions(images, answers, 3)
    # Precision 1 up to recall 0.5 (51 of 101 recalls), then 2 / 3.
    first = 100 * (51 + 50 * 2 / 3) / 101
    # 0.6 is enough for the overlaps 0.5, 0.55 and 0.6, of ten.
    assert result.classes.tolist() == [0, 1]
    assert result.by_class == pytest.approx([first, 30.0], abs=1e-6)
    assert result.ap == pytest.approx((first + 30) / 2, abs=1e-6)
    assert result.ap50 == pytest.approx((first + 100) / 2, abs=1e-6)
    assert result.ap75 == pytest.approx(first / 2, abs=1e-6)
    # Recalls 0, 0.1, ..., 0.5 have precision 1, the other five 2 / 3.
    assert result.ap50_eleven == pytest.approx((100 * (6 + 5 * 2 / 3) / 11 + 100) / 2, abs=1e-6)


def test_nothing_found_and_nothing_there():
    nothing = found([], [], [])
    assert average_precisions([truth([A], [0])], [nothing], 2).ap == 0
    empty = average_precisions([truth([], [])], [found([A], [0], [0.5])], 2)
    assert empty.ap == 0 and len(empty.classes) == 0


@pytest.mark.parametrize(("kind", "expected"), [("plain", 50.0), ("difficult", 100.0), ("crowd", 100.0)])
def test_detections_on_difficult_objects_do_not_count(kind, expected):
    """Two surer detections lie on B, which is not to be found; the third is right."""
    marks = {} if kind == "plain" else {kind: [1]}
    answers = found([B, [50, 50, 70, 69], A], [0, 0, 0], [0.9, 0.8, 0.7])
    result = average_precisions([truth([A, B], [0, 0], **marks)], [answers], 1)
    if kind == "plain":  # recall 0.5 at precision 1, recall 1 at 2 / 3: B, its repetition, A
        expected = 100 * (51 + 50 * 2 / 3) / 101
    assert result.ap50 == pytest.approx(expected)


def test_a_part_of_a_difficult_object_is_wrong_but_a_part_of_a_crowd_is_not():
    part = [50, 50, 58, 58]  # inside B, but an overlap of 0.16
    answers = found([part, A], [0, 0], [0.9, 0.7])
    difficult = average_precisions([truth([A, B], [0, 0], difficult=[1])], [answers], 1)
    crowd = average_precisions([truth([A, B], [0, 0], crowd=[1])], [answers], 1)
    assert difficult.ap50 == pytest.approx(50.0) and crowd.ap50 == pytest.approx(100.0)


def random_case(seed, images=12, classes=3):
    """Objects, and detections that are their boxes moved a little, some missed, some invented."""
    draws = np.random.default_rng(seed)
    objects, answers = [], []
    for _ in range(images):
        count = draws.integers(0, 5)
        corner, side = draws.integers(0, 60, (count, 2)), draws.integers(8, 40, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        labels = draws.integers(0, classes, count)
        crowd = [row for row in range(count) if draws.random() < 0.15]
        objects.append(truth(boxes, labels, crowd=crowd))
        guesses = np.concatenate([boxes + draws.normal(0, 2.5, boxes.shape), [[1, 2, 30, 40]]])
        answers.append(found(guesses, [*labels, draws.integers(0, classes)], draws.random(count + 1)))
    return objects, answers


def reference(objects, answers, classes):
    """COCOeval on files as its authors use it, and its printed summary."""
    entries, results = [], []
    for image, (one, other) in enumerate(zip(objects, answers)):
        for box, label, area, crowd in zip(one.boxes, one.labels, one.areas, one.crowd):
            size = [*map(float, box[:2]), float(box[2] - box[0]), float(box[3] - box[1])]
            entry = {"id": len(entries) + 1, "image_id": image, "category_id": int(label) + 1, "bbox": size}
            entries.append({**entry, "area": float(area), "iscrowd": int(crowd)})
        for box, label, score in zip(other.boxes, other.labels, other.scores):
            size = [*map(float, box[:2]), float(box[2] - box[0]), float(box[3] - box[1])]
            results.append({"image_id": image, "category_id": int(label) + 1, "bbox": size, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": number} for number in range(len(objects))],
            "annotations": entries,
            "categories": [{"id": number + 1} for number in range(classes)],
        }
        coco.createIndex()
        scoring = COCOeval(coco, coco.loadRes(results), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return scoring.stats


@pytest.mark.parametrize("seed", [0, 1])
def test_against_pycocotools(seed):
    objects, answers = random_case(seed)
    result = average_precisions(objects, answers, 3)
    assert 10 < result.ap < 90
    assert np.array([result.ap, result.ap50, result.ap75]) == pytest.approx(100 * reference(objects, answers, 3)[:3])
    assert result.by_class.mean() == pytest.approx(result.ap)


def test_masks():
    """The box is right, and the mask fills its left half: its overlap is 0.5."""
    whole, half = np.zeros((2, 100, 100), dtype=np.uint8)
    whole[10:30, 10:30], half[10:30, 10:20] = 1, 1
    outlined = truth([A], [0], masks=[run_lengths.encode(np.asfortranarray(whole))])
    answer = found([A], [0], [0.9], [run_lengths.encode(np.asfortranarray(half))])
    assert average_precisions([outlined], [answer], 1).ap == pytest.approx(100)
    masks = average_precisions([outlined], [answer], 1, "segm")
    assert masks.ap == pytest.approx(10.0) and masks.ap50 == pytest.approx(100) and masks.ap75 == 0
