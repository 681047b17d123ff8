"""What every detector is built from, and how images come to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

Target = dict[str, Tensor]
"""``boxes`` ``[M, 4]`` left, top, right, bottom in pixels, ``labels`` ``[M]`` from 1 on, ``masks`` ``[M, H, W]``."""


@dataclass(frozen=True)
class DetectorPlan:
    """What a detector is to be.

    Attributes:
        kind: ``faster_rcnn_c4``, ``faster_rcnn_fpn``, ``mask_rcnn_fpn`` or ``detr``.
        num_classes: C, without the background.
        mean, std: of the pixels, one value per channel, in units of the 0..1 range.
        head_batch_norm: whether the new parts of an R-CNN have BatchNorm.
        anchors: sides of the anchors in pixels: all on the one map (C4), or one for each map (FPN).
        roi_size: side of the grid that a region becomes, in places of the map.
        rois: regions of an image that the box head learns from in a step.
        train_proposals, test_proposals: best regions of an image that are kept.
        score_threshold: detections below it are left out.
        width: channels of the pyramid and the mask head, or of DETR's transformer.
        hidden: width of the box head's layers, or of the perceptrons in DETR's transformer.
        queries: of DETR, the most objects in an image.
        layers: of DETR's encoder, and of its decoder.
    """

    kind: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head_batch_norm: bool = True
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    roi_size: int = 7
    rois: int = 512
    train_proposals: int = 1000
    test_proposals: int = 1000
    score_threshold: float = 0.05
    width: int = 256
    hidden: int = 1024
    queries: int = 100
    layers: int = 6


class Joined(GeneralizedRCNNTransform):
    """Normalises images in 0..1 and pads them to a batch of whole 32 pixels; nothing is resized or pasted.

    Images come in the size wanted, and detections stay in their pixels, masks as the head gives them.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__(min_size=1, max_size=1, image_mean=list(mean), image_std=list(std))

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """Both as they are."""
        return image, target

    def postprocess(
        self, result: list[Target], image_shapes: list[tuple[int, int]], original_image_sizes: list[tuple[int, int]]
    ) -> list[Target]:
        """The detections as they are."""
        return result
