"""A fully convolutional network (Long, Shelhamer and Darrell 2015, arXiv:1411.4038) on maps of any trunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vissl_like.evaluation.video import dense_features
from vissl_like.utils.errors import UserError

Take = Callable[[Tensor], Tensor]


class Fcn(nn.Module):
    """Classes of pixels from 1x1 convolutions on maps, enlarged bilinearly.

    With one map this is FCN-32s (of a trunk of stride 32). With several, the scores of the deepest are enlarged to the
    size of the next finer map and added to its scores, and so on (FCN-16s, FCN-8s). Convolutions begin at 0, as
    published, and maps are taken as the trunk in eval mode gives them: the statistics of its BatchNorm stay.

    Args:
        trunk: see ``chosen_maps``.
        stages: see ``chosen_maps``.
        num_classes: K, with the background.
        images: ``[1, C, S, S]`` zeros on the trunk's device, as large as those to come or smaller; tells the widths.
        trained: whether gradients reach the trunk.
        batch_norm: bring every channel of the maps to mean 0 and variance 1 by a BatchNorm without scale and shift.

    Raises:
        UserError: as ``chosen_maps`` does.
    """

    def __init__(
        self,
        trunk: nn.Module,
        stages: list[int] | None,
        num_classes: int,
        images: Tensor,
        *,
        trained: bool,
        batch_norm: bool,
    ):
        super().__init__()
        self.trunk, self.trained = trunk.requires_grad_(trained).eval(), trained
        self.maps = chosen_maps(trunk, stages)
        self.step = max(step for step, _ in self.maps)
        classifiers = []
        for _, take in self.maps:
            with torch.no_grad():
                width = take(self._whole_steps(images)).shape[1]
            conv = nn.Conv2d(width, num_classes, 1)
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            norm = nn.BatchNorm2d(width, affine=False) if batch_norm else nn.Identity()
            classifiers.append(nn.Sequential(norm, conv))
        self.classifiers = nn.ModuleList(classifiers).to(images.device)
        self.train()

    def train(self, mode: bool = True) -> Fcn:
        """The trunk stays in eval mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def _whole_steps(self, images: Tensor) -> Tensor:
        """Images with zeros (the mean colour) at the right and bottom, up to whole patches or strides."""
        height, width = images.shape[-2:]
        return functional.pad(images, (0, -width % self.step, 0, -height % self.step))

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes: ``[n, C, H, W] -> [n, K, H, W]``."""
        height, width = images.shape[-2:]
        images = self._whole_steps(images)
        scores: Tensor | None = None
        for (_, take), classify in zip(reversed(self.maps), reversed(self.classifiers), strict=True):
            with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
                found = take(images)
            own = classify(found)
            scores = own if scores is None else own + enlarged(scores, own.shape[-2], own.shape[-1])
        assert scores is not None
        return enlarged(scores, images.shape[-2], images.shape[-1])[..., :height, :width]


def enlarged(scores: Tensor, height: int, width: int) -> Tensor:
    """``[n, K, h, w] -> [n, K, height, width]``, bilinear between the middles of places."""
    return functional.interpolate(scores, (height, width), mode="bilinear", align_corners=False)


def chosen_maps(trunk: nn.Module, stages: list[int] | None) -> list[tuple[int, Take]]:
    """Pixels from one place to the next, and how the map is taken, finest first.

    Args:
        trunk: with ``stage_map`` and ``strides``, or a transformer with ``intermediate_layers``.
        stages: counted from 1; None for the last (of a transformer, its patch tokens).

    Raises:
        UserError: the network gives no maps, or not those.
    """
    strides = tuple(getattr(trunk, "strides", ()))
    if strides:
        wanted = sorted(set(stages or [len(strides)]))
        if wanted[-1] > len(strides):
            raise UserError(f"EVALUATION.stages asks for stage {wanted[-1]}; this network has {len(strides)}")
        return [(strides[stage - 1], _stage(trunk, stage)) for stage in wanted]
    if not callable(getattr(trunk, "intermediate_layers", None)):
        raise UserError(
            f"the network {type(trunk).__name__} gives no maps, which segmentation needs: take a vision transformer "
            "(vit, xcit), a resnet, regnet_y, alexnet or vgg, or a model of timm that gives maps"
        )
    if stages is not None:
        raise UserError(
            f"EVALUATION.stages is {stages}; a {type(trunk).__name__} has one map, that of its patch tokens. Give null."
        )
    return [dense_features(trunk, 1)]


def _stage(trunk: nn.Module, stage: int) -> Take:
    def take(images: Tensor) -> Tensor:
        found: Tensor = trunk.stage_map(images, stage)  # type: ignore[operator]
        return found

    return take
