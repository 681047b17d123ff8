"""From a trunk and a plan to a detector that is ready to train."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.models.detectors.base import DetectorPlan
from vissl_like.models.detectors.detr import Detr
from vissl_like.models.detectors.maps import freeze
from vissl_like.models.detectors.rcnn import build_rcnn

BatchNormMode = Literal["frozen", "trained", "synced"]


def build_detector(
    trunk: nn.Module, plan: DetectorPlan, *, batch_norm: BatchNormMode, freeze_at: int, device_type: str
) -> nn.Module:
    """A detector in training mode, on the CPU or where the trunk is; it takes the trunk's tensors over.

    Args:
        trunk: changed; give a copy.
        plan: what it is to be.
        batch_norm: of the trunk: ``frozen`` (statistics and weights), ``trained`` in each process, or ``synced``; of
            new parts: trained, or synced.
        freeze_at: see ``maps.freeze``.
        device_type: where it will run.

    Raises:
        UserError: the trunk does not fit the detector.
    """
    still = freeze(trunk, freeze_at, len(plan.mean))
    if batch_norm == "frozen":
        still |= {module for module in trunk.modules() if isinstance(module, _BatchNorm)}
    model = Detr(trunk, plan) if plan.kind == "detr" else build_rcnn(trunk, plan)
    model.train()
    for norm in still:
        norm.eval().requires_grad_(False)
    return synchronise_batch_norm(model, device_type) if batch_norm == "synced" else model
