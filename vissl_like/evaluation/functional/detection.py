"""Average precision of detected boxes and masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

ELEVEN = slice(None, None, 10)
"""Of pycocotools' 101 recalls 0, 0.01, ..., 1 those eleven of VOC 2007."""


@dataclass(frozen=True)
class TrueObjects:
    """What an image really shows.

    Attributes:
        boxes: ``[M, 4]`` left, top, right, bottom in pixels.
        labels: ``[M]`` classes 0..C-1.
        areas: ``[M]`` in square pixels.
        crowd: ``[M]`` bool: regions of many objects, where detections are neither right nor wrong; the overlap is
            measured against the detection (COCO).
        difficult: ``[M]`` bool: single objects, where detections are neither right nor wrong (VOC).
        masks: pycocotools' run lengths or polygons of each; None where boxes are all.
        size: height and width of the image.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    masks: list[Any] | None = None
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Detections:
    """What was found in an image.

    Attributes:
        boxes, labels: as of ``TrueObjects``.
        scores: ``[K]``, larger is surer.
        masks: run lengths of each; None where boxes are all.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Precisions:
    """Average precisions in percent, each a mean over the classes that have objects.

    Attributes:
        ap: mean over the overlaps 0.5, 0.55, ..., 0.95.
        ap50, ap75: at the overlaps 0.5 and 0.75.
        ap50_eleven: at 0.5, by VOC 2007's eleven recalls.
        by_class: ``[C']`` of ``ap``.
        classes: ``[C']`` which classes those are.
    """

    ap: float
    ap50: float
    ap75: float
    ap50_eleven: float
    by_class: np.ndarray
    classes: np.ndarray


def average_precisions(
    truth: Sequence[TrueObjects],
    found: Sequence[Detections],
    num_classes: int,
    kind: Literal["bbox", "segm"] = "bbox",
) -> Precisions:
    """COCO's average precision, of at most 100 detections in an image.

    The precision is the largest at no smaller recall, averaged over 101 recalls. Areas are of boxes or masks, all sizes
    count. Without any object all is 0.

    Args:
        truth: of N images.
        found: of the same.
        num_classes: C.
        kind: whether the overlap of boxes or that of masks counts.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = _scoring(kind)(_coco_truth(truth, num_classes), _coco_found(found, truth, num_classes, kind), kind)
        scoring.evaluate()
        scoring.accumulate()
    precision = 100.0 * scoring.eval["precision"][..., 0, -1]  # [overlaps, recalls, classes]: all areas, 100 detections
    classes = np.flatnonzero(precision[0, 0] >= 0)
    precision = precision[..., classes]
    if not len(classes):
        return Precisions(0.0, 0.0, 0.0, 0.0, np.zeros(0), classes)
    return Precisions(
        float(precision.mean()),
        float(precision[0].mean()),
        float(precision[5].mean()),
        float(precision[0, ELEVEN].mean()),
        precision.mean(axis=(0, 1)),
        classes,
    )


def _scoring(kind: str) -> Any:
    """pycocotools' evaluation, to which VOC's difficult objects are known."""
    from pycocotools import mask as masks
    from pycocotools.cocoeval import COCOeval

    class Scoring(COCOeval):  # type: ignore[misc]
        """Detections on difficult objects are ignored by ordinary overlap; those on crowds as COCO does."""

        def computeIoU(self, imgId: int, catId: int) -> Any:
            """As pycocotools, but for difficult objects, which it has among the crowds."""
            truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
            if not truth and not found:
                return []
            order = np.argsort([-entry["score"] for entry in found], kind="mergesort")[: self.params.maxDets[-1]]
            field = "bbox" if kind == "bbox" else "segmentation"
            crowd = [int(entry["crowd"]) for entry in truth]
            return masks.iou([found[place][field] for place in order], [entry[field] for entry in truth], crowd)

    return Scoring


def _coco_truth(truth: Sequence[TrueObjects], num_classes: int) -> Any:
    entries: list[dict[str, Any]] = []
    for image, objects in enumerate(truth):
        for row in range(len(objects.labels)):
            crowd, difficult = bool(objects.crowd[row]), bool(objects.difficult[row])
            entry = {
                "id": len(entries) + 1,  # pycocotools takes an object 0 for none
                "image_id": image,
                "category_id": int(objects.labels[row]),
                "bbox": _box(objects.boxes[row]),
                "area": float(objects.areas[row]),
                "iscrowd": int(crowd or difficult),
                "crowd": crowd,
            }
            if objects.masks is not None:
                entry["segmentation"] = objects.masks[row]
            entries.append(entry)
    return _coco(truth, entries, num_classes)


def _coco_found(found: Sequence[Detections], truth: Sequence[TrueObjects], num_classes: int, kind: str) -> Any:
    from pycocotools import mask as masks

    entries: list[dict[str, Any]] = []
    for image, detections in enumerate(found):
        areas = (detections.boxes[:, 2:] - detections.boxes[:, :2]).prod(axis=1)
        for row in range(len(detections.labels)):
            entry = {
                "id": len(entries) + 1,
                "image_id": image,
                "category_id": int(detections.labels[row]),
                "bbox": _box(detections.boxes[row]),
                "area": float(areas[row]),
                "score": float(detections.scores[row]),
            }
            if kind == "segm":
                assert detections.masks is not None
                entry["segmentation"] = detections.masks[row]
                entry["area"] = float(masks.area(detections.masks[row]))
            entries.append(entry)
    return _coco(truth, entries, num_classes)


def _coco(truth: Sequence[TrueObjects], entries: list[dict[str, Any]], num_classes: int) -> Any:
    from pycocotools.coco import COCO

    images = [{"id": number, "height": one.size[0], "width": one.size[1]} for number, one in enumerate(truth)]
    coco = COCO()
    coco.dataset = {"images": images, "annotations": entries, "categories": [{"id": n} for n in range(num_classes)]}
    coco.createIndex()
    return coco


def _box(corners: np.ndarray) -> list[float]:
    left, top, right, bottom = (float(value) for value in corners)
    return [left, top, right - left, bottom - top]
