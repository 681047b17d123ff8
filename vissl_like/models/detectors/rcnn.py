"""Faster R-CNN and Mask R-CNN (arXiv:1506.01497, 1703.06870) of torchvision around a trunk.

RoI align is torchvision's (corners not shifted by half a pixel), the box loss is smooth L1 with beta 1/9.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from vissl_like.models.detectors.base import DetectorPlan, Joined
from vissl_like.models.detectors.maps import Pyramid, StageMaps
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.utils.errors import UserError

RATIOS = (0.5, 1.0, 2.0)
"""Height to width of anchors."""
CONVOLUTIONS = 4
"""Of the mask head, and of the box head where that has BatchNorm."""
MASK_SIZE = 14


class SingleMap(nn.Module):
    """The trunk up to its third stage: ``[n, C, H, W] -> [n, D, H / 16, W / 16]``."""

    def __init__(self, trunk: ResNet, channels: int):
        super().__init__()
        self.maps = StageMaps(trunk, [3], channels)
        self.out_channels = self.maps.widths[0]

    def forward(self, images: Tensor) -> Tensor:
        """The one map."""
        found: Tensor = self.maps(images)[0]
        return found


class LastStageHead(nn.Module):
    """The last stage of a ResNet on every region, an extra BatchNorm after it (He et al. 2020, arXiv:1911.05722)."""

    def __init__(self, stage: nn.Module, width: int, batch_norm: bool):
        super().__init__()
        self.stage = stage
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()

    def forward(self, regions: Tensor) -> Tensor:
        """``[r, D, size, size] -> [r, F]``, averaged over the places."""
        found: Tensor = self.norm(self.stage(regions)).mean(dim=(2, 3))
        return found


def build_rcnn(trunk: nn.Module, plan: DetectorPlan) -> GeneralizedRCNN:
    """An R-CNN around a trunk, whose tensors it takes over; new parts are drawn from torch's generator.

    In training it takes images and targets and gives losses, else it gives detections.

    Raises:
        UserError: the trunk does not fit, or the number of anchors.
    """
    build = _c4 if plan.kind == "faster_rcnn_c4" else _fpn
    model = build(trunk, plan)
    model.transform = Joined(plan.mean, plan.std)
    predictor = model.roi_heads.box_predictor
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):  # as detectron2 begins
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return model


def _c4(trunk: nn.Module, plan: DetectorPlan) -> GeneralizedRCNN:
    """Stages 1 to 3 see the image, stage 4 the regions."""
    if not isinstance(trunk, ResNet):
        raise UserError(
            f"faster_rcnn_c4 divides a ResNet into three stages and one; {type(trunk).__name__} is none. Use "
            "EVALUATION.detector=faster_rcnn_fpn"
        )
    width, last = trunk.feature_dim, trunk.get_submodule("layer4")
    del trunk.layer4  # it moves into the head: every tensor has one place
    backbone = SingleMap(trunk, len(plan.mean))
    return FasterRCNN(
        backbone,
        box_roi_pool=MultiScaleRoIAlign(["0"], plan.roi_size, sampling_ratio=-1),
        box_head=LastStageHead(last, width, plan.head_batch_norm),
        box_predictor=FastRCNNPredictor(width, plan.num_classes + 1),
        rpn_anchor_generator=AnchorGenerator((plan.anchors,), (RATIOS,)),
        **_sampling(plan, before_train=12000, before_test=6000),
    )


def _fpn(trunk: nn.Module, plan: DetectorPlan) -> GeneralizedRCNN:
    norm = nn.BatchNorm2d if plan.head_batch_norm else None
    backbone = Pyramid(trunk, len(plan.mean), plan.width, norm)
    names, maps = backbone.names, len(backbone.names) + 1
    if len(plan.anchors) != maps:
        raise UserError(
            f"EVALUATION.anchors has {len(plan.anchors)} sides, and this network's pyramid {maps} maps; give one for "
            "each, from small to large"
        )
    side, classes = plan.roi_size, plan.num_classes + 1
    box_head: nn.Module
    if norm is None:
        box_head = TwoMLPHead(plan.width * side**2, plan.hidden)
    else:
        box_head = FastRCNNConvFCHead(
            (plan.width, side, side), [plan.width] * CONVOLUTIONS, [plan.hidden], norm_layer=norm
        )
    common = {
        "box_roi_pool": MultiScaleRoIAlign(names, side, sampling_ratio=2),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(plan.hidden, classes),
        "rpn_anchor_generator": AnchorGenerator(tuple((size,) for size in plan.anchors), (RATIOS,) * maps),
        **_sampling(plan, before_train=2000, before_test=1000),
    }
    if plan.kind == "faster_rcnn_fpn":
        return FasterRCNN(backbone, **common)
    return MaskRCNN(
        backbone,
        mask_roi_pool=MultiScaleRoIAlign(names, MASK_SIZE, sampling_ratio=2),
        mask_head=MaskRCNNHeads(plan.width, [plan.width] * CONVOLUTIONS, 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(plan.width, plan.width, classes),
        **common,
    )


def _sampling(plan: DetectorPlan, before_train: int, before_test: int) -> dict[str, float]:
    """How many regions are looked at; ``before_...`` are those kept before overlapping ones are dropped."""
    return {
        "rpn_pre_nms_top_n_train": max(before_train, plan.train_proposals),
        "rpn_pre_nms_top_n_test": max(before_test, plan.test_proposals),
        "rpn_post_nms_top_n_train": plan.train_proposals,
        "rpn_post_nms_top_n_test": plan.test_proposals,
        "box_batch_size_per_image": plan.rois,
        "box_score_thresh": plan.score_threshold,
    }


def region_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks of regions laid on the image: ``[M, 1, h, w]`` probabilities -> ``[M, height, width]`` bool.

    Args:
        masks: of the head.
        boxes: ``[M, 4]`` in pixels of the image.
        height, width: of the image.
    """
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    if not len(masks):
        return torch.zeros(0, height, width, dtype=torch.bool)
    pasted: Tensor = paste_masks_in_image(masks, boxes, (height, width))
    return pasted[:, 0] > 0.5
