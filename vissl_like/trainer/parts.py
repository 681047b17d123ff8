"""What a run is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vissl_like.config import Plan
from vissl_like.data.datasets.base import ImageDataset
from vissl_like.hooks.base import Hook
from vissl_like.losses.base import Loss
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher
from vissl_like.trainer.checkpoint import CheckpointStore
from vissl_like.trainer.non_finite import NonFinitePolicy
from vissl_like.trainer.signals import StopSignals
from vissl_like.trainer.step import TrainStep


@dataclass
class Parts:
    """Built objects that a run needs; nothing here is a setting except what hooks may show.

    Attributes:
        hooks: by their names in the settings; called in this order, those that say ``runs_last`` at the end.
        backbone: the network whose trunk is measured and kept: ``model``, or the teacher's.
        make_loader: start step (and stop step, if not the last) -> iterable of micro-batches, with a ``skipped`` list.
        build_dataset: dataset section of the settings -> dataset (for hooks that measure on other data).
        record: facts written beside the backbone (architecture, input sizes, mean and std, method).
        banner: rows ``(label, text)`` known when the run was built.
        settings_record: the settings as plain values, saved in every checkpoint.
    """

    settings: Any
    plan: Plan
    model: SSLModel
    wrapped: nn.Module
    backbone: SSLModel
    teacher: Teacher | None
    loss: Loss
    optimizer: torch.optim.Optimizer
    step: TrainStep
    hooks: dict[str, Hook]
    dataset: ImageDataset
    make_loader: Callable[..., Any]
    build_dataset: Callable[[Any], ImageDataset]
    store: CheckpointStore
    output_dir: Path
    device: torch.device
    plugins: list[str]
    record: dict[str, Any]
    banner: list[tuple[str, str]]
    settings_record: dict[str, Any]
    policy: NonFinitePolicy
    signals: StopSignals
