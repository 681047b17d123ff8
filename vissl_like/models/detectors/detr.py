"""DETR (Carion et al. 2020, arXiv:2005.12872) of the transformers package around a trunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from vissl_like.distributed import comm
from vissl_like.models.detectors.base import DetectorPlan, Joined, Target
from vissl_like.models.detectors.maps import StageMaps, strides_of
from vissl_like.utils.errors import UserError

HEADS = 8
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


class Detr(nn.Module):
    """A transformer on the last map of a trunk that answers with a set of objects.

    transformers puts a ResNet of its own under it, frozen and with frozen norms; it is replaced by the trunk, which
    trains as it is. The transformer begins as published (Xavier-uniform; queries N(0, 1)).

    Args:
        trunk: see ``StageMaps``.
        plan: see ``DetectorPlan``.

    Raises:
        UserError: transformers is not installed, the trunk gives no maps, or the width is no multiple of 8.
    """

    def __init__(self, trunk: nn.Module, plan: DetectorPlan):
        super().__init__()
        if plan.width % HEADS:
            raise UserError(
                f"EVALUATION.width={plan.width}: DETR has {HEADS} heads, so it must be a multiple of {HEADS}"
            )
        maps = StageMaps(trunk, [len(strides_of(trunk))], len(plan.mean))
        self.transform = Joined(plan.mean, plan.std)
        self.net = _network(plan)
        self.net.model.backbone.model = maps
        self.net.model.input_projection = nn.Conv2d(maps.widths[0], plan.width, 1)
        self._initialise()

    def _initialise(self) -> None:
        model = self.net.model
        for part in (model.encoder, model.decoder):
            for value in part.parameters():
                if value.dim() > 1:
                    nn.init.xavier_uniform_(value)
        model.query_position_embeddings.reset_parameters()
        for head in (self.net.class_labels_classifier, self.net.bbox_predictor):
            for layer in head.modules():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """In training the losses, summed over the decoder's layers; else a detection for every query.

        Args:
            images: ``[C, H, W]`` in 0..1.
            targets: of each, in training.
        """
        batch, _ = self.transform(images, None)
        pixels, sizes = batch.tensors, batch.image_sizes
        seen = torch.zeros(len(pixels), *pixels.shape[-2:], device=pixels.device)
        for row, (height, width) in enumerate(sizes):
            seen[row, :height, :width] = 1
        scale = torch.tensor([(width, height, width, height) for height, width in sizes], device=pixels.device)
        if not self.training:
            return _detections(self.net(pixels, seen), scale)
        assert targets is not None
        labels = [
            {"class_labels": target["labels"] - 1, "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / size}
            for target, size in zip(targets, scale, strict=True)
        ]
        found = self.net(pixels, seen, labels=labels).loss_dict
        # Sums over boxes are divided by the mean number of boxes over the processes, as published.
        boxes = torch.tensor(float(sum(len(target["labels"]) for target in targets)), device=pixels.device)
        mean = (comm.all_reduce(boxes) / comm.world_size()).clamp(min=1)
        losses = {}
        for name, weight in WEIGHTS.items():
            parts = [value for key, value in found.items() if key.startswith(name)]
            share = 1.0 if name == "loss_ce" else boxes.clamp(min=1) / mean
            losses[name] = weight * share * torch.stack(parts).sum()
        return losses


def _network(plan: DetectorPlan) -> Any:
    """transformers' network with a small trunk of its own, soon replaced."""
    try:
        from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
    except ImportError as error:
        raise UserError(
            f'EVALUATION.detector=detr needs the transformers package ({error}): pip install "vissl_like[detr]"'
        ) from error
    make: Any = ResNetConfig
    small = make(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=["stage4"])
    make = DetrConfig
    config = make(
        backbone_config=small,
        num_labels=plan.num_classes,
        num_queries=plan.queries,
        d_model=plan.width,
        encoder_layers=plan.layers,
        decoder_layers=plan.layers,
        encoder_ffn_dim=plan.hidden,
        decoder_ffn_dim=plan.hidden,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        auxiliary_loss=True,
    )
    return DetrForObjectDetection(config)


def _detections(output: Any, scale: Tensor) -> list[Target]:
    scores, labels = output.logits.softmax(-1)[..., :-1].max(-1)
    boxes = box_convert(output.pred_boxes, "cxcywh", "xyxy").clamp(0, 1) * scale[:, None]
    return [
        {"boxes": box, "labels": label + 1, "scores": score}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
