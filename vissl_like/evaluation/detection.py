"""Detection transfer: a detector around the network, all of it trained with boxes, scored by COCO's AP."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
from typing import Any, Literal

import numpy as np
import torch

from vissl_like.data.datasets.base import UnreadableImage, evenly_spread
from vissl_like.data.samplers.shuffled import ShuffledSampler
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Evaluation, EvaluationResult
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.detection_data import (
    ObjectImages,
    Samples,
    digest_of,
    joined,
    mask_digest_of,
    read_objects,
)
from vissl_like.evaluation.detection_pictures import draw_pictures
from vissl_like.evaluation.detection_training import (
    Recipe,
    detect,
    losses_of,
    settle_norms,
    training_draw,
    unused_options,
)
from vissl_like.evaluation.features import untouched_randomness
from vissl_like.evaluation.functional.detection import Detections, average_precisions
from vissl_like.evaluation.skipped import readable, skipped_by_all
from vissl_like.evaluation.store import cache_key
from vissl_like.evaluation.supervised import Training, keeper_of
from vissl_like.models.detectors.base import DetectorPlan
from vissl_like.models.detectors.build import build_detector
from vissl_like.records import Skipped
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction, Index, NonNegative, Positive

TRAIN, SIZES, MILESTONES = ["train2017"], [640, 672, 704, 736, 768, 800], [60000, 80000]
ANCHORS = [32, 64, 128, 256, 512]
"""COCO, its 1x schedule, and the anchors of feature pyramids."""


@EVALUATIONS.register("detection")
class DetectionEvaluation(Evaluation):
    """A detector around the network, all of it trained on VOC or COCO: AP, AP50 and AP75 of boxes, and of masks.

    AP is pycocotools' for both layouts: overlaps 0.5 to 0.95, 101 recalls, 100 detections an image, mean over classes.
    VOC's difficult objects are learnt from, and in the test detections on them are neither right nor wrong;
    ``AP50_voc07`` takes VOC 2007's eleven recalls, as detectron2's figures for VOC do. Images are mirrored at random
    and come in one of ``train_sizes``. One item of the result is one class. Every process of a run takes its share of
    each batch and of the test images.

    Options:
        detector: faster_rcnn_c4 (ResNets), faster_rcnn_fpn, mask_rcnn_fpn (with layout coco), or detr
        layout: voc is a VOCdevkit; coco has annotations/instances_<set>.json and the images in <set>/
        path: its folder
        train: sets to learn from: 2007/trainval (year and split), or train2017
        test: set to be scored on
        train_sizes: shorter sides of an image in pixels, one of which is drawn each time
        test_size: shorter side in the test
        longest: longer side at most
        steps: optimizer steps
        batch_size: images in a step, of all processes together
        optimizer: sgd (momentum 0.9) or adamw
        lr: peak learning rate
        trunk_rate: what it is multiplied by for the network itself
        weight_decay: on all weights but BatchNorm's
        schedule: steps (a tenth at each of the milestones), cosine, or one_cycle (rising for 30 % of the steps)
        milestones: steps at which the rate falls, with schedule steps
        warmup_steps: in which the rate rises linearly (not with one_cycle)
        warmup_factor: of the rate that it rises from
        clip: largest l2 norm of the gradient; null for any
        batch_norm: of the network: frozen (as it comes), trained in each process, or synced over all
        freeze_at: 0 trains everything; 1 keeps a ResNet's stem as it comes, k + 1 the first k stages
        precise_batch_norm: training batches of which BatchNorm takes the statistics at the end; 0 leaves the averages
        head_batch_norm: BatchNorm in the new parts of an R-CNN (after C4's last stage; in pyramid and heads)
        anchors: sides in pixels: all on C4's one map, or one for each map of a pyramid
        roi_size: side of the grid that a region becomes (published: 14 for C4, 7 for a pyramid)
        rois: regions of an image that a step learns from
        train_proposals: regions of an image kept in training
        test_proposals: regions of an image kept in the test
        score_threshold: R-CNNs leave detections below it out
        width: channels of the pyramid, or of DETR's transformer
        hidden: width of the box head's layers, or of DETR's perceptrons (2048 as published)
        queries: of DETR, the most objects in an image
        layers: of DETR's encoder, and of its decoder
        pictures: test images that are drawn with what was found, as PNG files in OUTPUT_DIR/detection
        seed: of new weights, order, sizes and mirrors
    """

    trains = True

    def __init__(
        self,
        *,
        path: str,
        detector: Literal["faster_rcnn_c4", "faster_rcnn_fpn", "mask_rcnn_fpn", "detr"] = "faster_rcnn_fpn",
        layout: Literal["voc", "coco"] = "coco",
        train: list[str] = TRAIN,
        test: str = "val2017",
        train_sizes: list[Count] = SIZES,
        test_size: Count = 800,
        longest: Count = 1333,
        steps: Count = 90000,
        batch_size: Count = 16,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: Positive = 0.02,
        trunk_rate: NonNegative = 1.0,
        weight_decay: NonNegative = 0.0001,
        schedule: Literal["steps", "cosine", "one_cycle"] = "steps",
        milestones: list[Count] = MILESTONES,
        warmup_steps: Index = 1000,
        warmup_factor: Fraction = 0.001,
        clip: Positive | None = None,
        batch_norm: Literal["frozen", "trained", "synced"] = "synced",
        freeze_at: Index = 0,
        precise_batch_norm: Index = 0,
        head_batch_norm: bool = True,
        anchors: list[Count] = ANCHORS,
        roi_size: Count = 7,
        rois: Count = 512,
        train_proposals: Count = 1000,
        test_proposals: Count = 1000,
        score_threshold: Fraction = 0.05,
        width: Count = 256,
        hidden: Count = 1024,
        queries: Count = 100,
        layers: Count = 6,
        pictures: Index = 8,
        seed: Index = 0,
    ):
        for name, values in (("train", train), ("train_sizes", train_sizes), ("anchors", anchors)):
            if not values:
                raise UserError(f"EVALUATION.{name} is empty; name at least one")
        if detector == "mask_rcnn_fpn" and layout == "voc":
            raise UserError(
                "EVALUATION.detector=mask_rcnn_fpn learns from masks, which the layout voc does not give: use layout "
                "coco, or the detector faster_rcnn_fpn"
            )
        self.layout, self.path, self.train, self.test = layout, path, list(train), test
        self.train_sizes, self.test_size, self.longest = list(train_sizes), test_size, longest
        self.batch_norm, self.freeze_at, self.precise = batch_norm, freeze_at, precise_batch_norm
        self.pictures, self.seed, self.masks = pictures, seed, detector == "mask_rcnn_fpn"
        self._read: tuple[ObjectImages, ObjectImages] | None = None
        self._digests: list[list[str]] | None = None
        self.recipe = Recipe(
            steps, batch_size, optimizer, lr, trunk_rate, weight_decay, schedule, tuple(sorted(milestones)),
            warmup_steps, warmup_factor, clip,
        )  # fmt: skip
        self.plan = DetectorPlan(
            detector, 1, (0.0,), (1.0,), head_batch_norm, tuple(anchors), roi_size, rois, train_proposals,
            test_proposals, score_threshold, width, hidden, queries, layers,
        )  # fmt: skip
        self.recipe.check()
        defaults = {name: option.default for name, option in inspect.signature(DetectionEvaluation).parameters.items()}
        self.unused = unused_options(self.plan, self.recipe, defaults)

    def run(self, bench: Bench) -> EvaluationResult | None:
        """Trains a detector around a copy of the subject's network and scores it; see ``Evaluation``.

        Raises:
            UserError: the network does not fit the detector, the batch the processes, or the training diverges.
        """
        if bench.subject.network is None:
            raise UserError(f"{bench.subject.name} cannot be measured by detection: there is no network")
        sets = [self._limited(found, bench) for found in self._sets()]
        train, test = sets[0].with_objects(), sets[1]
        plan = dataclasses.replace(self.plan, num_classes=len(train.classes), mean=bench.look.mean, std=bench.look.std)
        device, world = bench.protocol.device, comm.world_size()
        if self.recipe.batch_size % world:
            raise UserError(
                f"EVALUATION.batch_size={self.recipe.batch_size} cannot be shared among {world} processes alike; "
                f"give a multiple of {world}"
            )
        trunk = copy.deepcopy(bench.subject.network())
        of_trunk = set(trunk.parameters())
        with untouched_randomness(device):
            torch.manual_seed(self.seed)
            model = build_detector(
                trunk, plan, batch_norm=self.batch_norm, freeze_at=self.freeze_at, device_type=device.type
            ).to(device)
        skipped: dict[str, Skipped] = {}
        training = self._training(bench, model, of_trunk, train, skipped)
        facts = training.run()
        settle_norms(model, self._draw(bench, train, skipped, self.precise), self.recipe.steps, self.precise, self.seed)
        shown = self._samples(test, bench, [self.test_size], learn=False)
        found = detect(model, shown, bench.protocol)
        unread = skipped_by_all(skipped.values())
        result = self._result(bench, test, found, facts) if comm.is_main() else None
        if result is not None:
            result.train_images, result.skipped = readable(train.files, unread), [*unread, *result.skipped]
        return result

    def identity(self, bench: Bench) -> str:
        """Images and objects of both sides, with their masks where the detector has them."""
        sets = self._sets()
        if self._digests is None:
            self._digests = [
                [digest_of(images.truth), mask_digest_of(images)] if self.masks else [digest_of(images.truth)]
                for images in sets
            ]
        facts = [
            [bench.images(images.files).identity, images.classes, *digests]
            for images, digests in zip(sets, self._digests, strict=True)
        ]
        return cache_key({"sets": facts})

    def typical_images(self) -> list[str]:
        """See ``Evaluation``: the images to learn from."""
        return self._sets()[0].files

    def _sets(self) -> tuple[ObjectImages, ObjectImages]:
        """Images to learn from, and to be scored on; read once."""
        if self._read is not None:
            return self._read
        if importlib.util.find_spec("pycocotools") is None:
            raise UserError("detection is scored by pycocotools, which is not installed: pip install pycocotools")
        first = read_objects(self.layout, self.path, self.train[0])
        more = [read_objects(self.layout, self.path, name, first.classes) for name in self.train[1:]]
        found = joined([first, *more]), read_objects(self.layout, self.path, self.test, first.classes)
        if self.masks:
            for images in found:
                images.require_masks()
        self._read = found
        return found

    def _limited(self, images: ObjectImages, bench: Bench) -> ObjectImages:
        total, most = len(images.files), bench.protocol.max_images
        return images if most is None else images.select(evenly_spread(total, most).tolist())

    def _samples(self, images: ObjectImages, bench: Bench, sizes: list[int], *, learn: bool) -> Samples:
        masks = self.masks and learn
        return Samples(images, sizes, self.longest, bench.look.channels, masks=masks, learn=learn, seed=self.seed)

    def _draw(self, bench: Bench, train: ObjectImages, skipped: dict[str, Skipped], beyond: int = 0) -> Any:
        """Batches by step, for so many steps beyond the last."""
        share = self.recipe.batch_size // comm.world_size()
        sampler = ShuffledSampler(len(train.files), share, 1, comm.rank(), comm.world_size(), self.seed)
        samples = self._samples(train, bench, self.train_sizes, learn=True)
        total = self.recipe.steps + beyond
        return training_draw(samples, lambda first: sampler.batches(first, total), bench.protocol, skipped)

    def _training(
        self, bench: Bench, model: Any, of_trunk: set[Any], train: ObjectImages, skipped: dict[str, Skipped]
    ) -> Training:
        options = {
            "detection": [self.layout, self.path, self.train, self.train_sizes, self.longest, self.seed],
            "norms": [self.batch_norm, self.freeze_at, comm.world_size()],
            "recipe": dataclasses.astuple(self.recipe),
            "plan": dataclasses.astuple(self.plan),
        }
        return Training(
            model,
            self.recipe.make_optimizer(model, of_trunk),
            self._draw(bench, train, skipped),
            losses_of,
            self.recipe.steps,
            self.recipe.rate,
            self.seed,
            f"{self.plan.kind}, {bench.subject.name}",
            clip=self.recipe.clip,
            keeper=keeper_of(bench, options, self.identity(bench)),
        )

    def _result(
        self, bench: Bench, test: ObjectImages, found: list[Detections | Skipped], facts: dict[str, Any]
    ) -> EvaluationResult:
        seen = [row for row, one in enumerate(found) if not isinstance(one, Skipped)]
        detections = [one for one in found if isinstance(one, Detections)]
        truth = [test.truth[row] for row in seen]
        boxes = average_precisions(truth, detections, len(test.classes))
        metrics = {"AP": boxes.ap, "AP50": boxes.ap50, "AP75": boxes.ap75}
        if self.layout == "voc":
            metrics["AP50_voc07"] = boxes.ap50_eleven
        if self.masks:
            outlined = [
                dataclasses.replace(one, masks=test.run_lengths(row)) for one, row in zip(truth, seen, strict=True)
            ]
            masks = average_precisions(outlined, detections, len(test.classes), "segm")
            metrics |= {"mask_AP": masks.ap, "mask_AP50": masks.ap50, "mask_AP75": masks.ap75}
        notices = list(self.unused)
        if len(boxes.classes) < len(test.classes):
            absent = [name for number, name in enumerate(test.classes) if number not in boxes.classes]
            notices.append(f"no object to find of: {', '.join(absent)}; they do not count")
        if self.pictures and bench.folder is not None:
            rows = evenly_spread(len(seen), self.pictures).tolist()
            chosen = [(test.files[seen[row]], truth[row], detections[row]) for row in rows]
            try:
                draw_pictures(bench.folder / "detection" / bench.subject.slug, chosen, test.classes)
            except (UserError, UnreadableImage, OSError) as error:  # no reason to lose what was measured
                notices.append(f"not all pictures are drawn: {error}")
        result = EvaluationResult(
            "detection", metrics, main="AP", items=boxes.by_class, item_ids=np.int64(boxes.classes)
        )
        result.test_images = len(seen)
        result.skipped = [one for one in found if isinstance(one, Skipped)]
        result.details = {
            "detector": self.plan.kind,
            "layout": self.layout,
            "AP_by_class": {test.classes[number]: float(ap) for number, ap in zip(boxes.classes, boxes.by_class)},
            "detections": sum(len(one.labels) for one in detections),
            "objects": sum(int((~one.crowd & ~one.difficult).sum()) for one in truth),
            "training": facts,
            "notices": notices,
        }
        return result
