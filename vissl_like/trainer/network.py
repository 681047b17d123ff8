"""The network of a run: trunk and head, on their device, with weights, wrapped for several processes."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vissl_like.config import Plan
from vissl_like.distributed import comm
from vissl_like.models.batch_norm import AllReduceBatchNorm, synchronise_batch_norm
from vissl_like.models.recompute import recompute_blocks
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher
from vissl_like.models.weights import fitting_names, load_weights
from vissl_like.registry import HEADS
from vissl_like.trainer.components import build, build_trunk
from vissl_like.trainer.sharded_state import load_into
from vissl_like.trainer.sharding import FullySharded, shard
from vissl_like.utils.errors import UserError


def build_model(
    settings: Any, channels: int, device: torch.device, plan: Plan, load: bool = True
) -> tuple[SSLModel, str]:
    """Trunk and head on the device, with weights where the settings name a file; and what was loaded, in words."""
    trunk = build_trunk(settings.MODEL.TRUNK, channels)
    head = build(HEADS, settings.MODEL.HEAD, trunk.feature_dim)
    model = SSLModel(trunk, head, settings.TRAIN.grouped_forward)
    weights, text = settings.MODEL.WEIGHTS, "from scratch" if load else "from the checkpoint"
    if load and weights.path is not None:
        trunk_only = fitting_names(trunk, weights.path) >= fitting_names(model, weights.path)
        report = load_weights(
            trunk if trunk_only else model,
            weights.path,
            prefix=weights.prefix,
            allow_missing=list(weights.allow_missing),
            allow_unused=list(weights.allow_unused),
        )
        text = f"{report} ({'trunk' if trunk_only else 'trunk and head'})"
    group_size = _norm_group(settings)
    if settings.MODEL.SYNC_BATCH_NORM and comm.active():
        model = synchronise_batch_norm(model, device.type, group_size)  # type: ignore[assignment]
    if settings.MODEL.ACTIVATION_CHECKPOINTING:
        recompute_blocks(model.trunk)
    memory_format = torch.channels_last if plan.channels_last else torch.contiguous_format
    return model.to(device).to(memory_format=memory_format), text


def _norm_group(settings: Any) -> int | None:
    """Processes that share BatchNorm statistics, None for all; their groups are made here, by all processes.

    Raises:
        UserError: the setting contradicts another one or the number of processes.
    """
    size, world = settings.MODEL.SYNC_BATCH_NORM_GROUP, comm.world_size()
    if size is None or not comm.active():
        return None
    if not settings.MODEL.SYNC_BATCH_NORM:
        raise UserError(
            f"MODEL.SYNC_BATCH_NORM_GROUP = {size} and MODEL.SYNC_BATCH_NORM = false: statistics are either shared in "
            "groups or not at all. Leave one of the two out."
        )
    if world % size:
        fitting = [number for number in range(1, world + 1) if world % number == 0]
        raise UserError(
            f"MODEL.SYNC_BATCH_NORM_GROUP = {size} does not divide the {world} processes: some would be left over. "
            f"Allowed are {', '.join(map(str, fitting))}, or null for all."
        )
    comm.subgroup(size)
    return size


def wrap(model: SSLModel, teacher: Teacher | None, device: torch.device, sharding: str, precision: str) -> nn.Module:
    """The model as it is in one process, in several data-parallel or divided (gradients averaged over processes).

    Args:
        model: on its device; divided in place.
        teacher: divided like the model.
        device: where both are.
        sharding: DISTRIBUTED.sharding; without effect in one process.
        precision: fp32, bf16 or fp16.

    Raises:
        UserError: the precision does not go with sharding.
    """
    if not comm.active():
        return model
    if sharding == "full":
        if precision == "fp16":
            raise UserError(
                "DISTRIBUTED.sharding = full with TRAIN.precision = fp16: the scale of the loss would differ between "
                "processes. Allowed are bf16 and fp32, or sharding none."
            )
        for network in () if teacher is None else teacher.children():
            shard(network, device)  # type: ignore[arg-type]
        return FullySharded(model, device, same_buffers=_has_local_norm(model))
    devices = [device.index] if device.type == "cuda" else None
    # Gradients lie in the buckets that are averaged: no copy, and no second set of them.
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=devices,
        gradient_as_bucket_view=True,
        **_buffer_sync(model),  # type: ignore[arg-type]
    )


def compiled(wrapped: nn.Module, mode: str) -> nn.Module:
    """The model's forward (and backward) translated by torch.compile; weights and names stay those of ``wrapped``.

    Only training steps use it: whoever measures the trunk calls it as it is, at any size.

    Args:
        wrapped: what ``wrap`` gave.
        mode: TRAIN.compile.

    Raises:
        UserError: there is no C++ compiler to translate with.
    """
    if mode == "none":
        return wrapped
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"TRAIN.compile = {mode} needs a C++ compiler, and there is no {compiler!r} here. Install one (package "
            "g++), name one in the environment variable CXX, or leave TRAIN.compile at none."
        )
    return torch.compile(wrapped, mode=mode, dynamic=False)  # type: ignore[return-value]


def _buffer_sync(model: SSLModel) -> dict[str, bool]:
    """Whether the main process's buffers go to all before each forward, under the keyword's old or new name.

    Where BatchNorm statistics span the processes, buffers are equal already.
    """
    parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    keyword = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    return {keyword: _has_local_norm(model)}


def check_teacher(model: SSLModel, teacher: Teacher | None) -> None:
    """A teacher's BatchNorm must have the same running statistics on all processes.

    Raises:
        UserError: several processes, a teacher, and BatchNorm that each process does by itself.
    """
    if teacher is not None and comm.active() and _has_local_norm(model):
        raise UserError(
            "MODEL.SYNC_BATCH_NORM = false or a SYNC_BATCH_NORM_GROUP smaller than all processes, with a teacher: it "
            "would have other statistics on every process. Leave them at auto and null."
        )


def _has_local_norm(model: SSLModel) -> bool:
    """Whether some BatchNorm takes statistics of the images of some processes only."""
    spanning = (AllReduceBatchNorm, nn.SyncBatchNorm)
    return any(
        not isinstance(norm, spanning) or getattr(norm, "group_size", None) not in (None, comm.world_size())
        for norm in model.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
    )


def resume_teacher(teacher: Teacher, student: SSLModel, state: dict[str, Any], say: Callable[[str, str], None]) -> None:
    """Puts the saved state into the teacher; where none was saved (said), the teacher starts from the student.

    Raises:
        UserError: what was saved is of another kind of teacher.
    """
    if not state:
        teacher.start_from(student)
        say("the checkpoint has no teacher: it starts as a copy of the student", "warning")
        return
    if state.keys() != teacher.state_dict().keys():
        raise UserError(
            "the checkpoint's teacher is of another kind than MODEL.TEACHER: name the one that the run was begun with, "
            "or begin a new run"
        )
    load_into(teacher, state)


def backbone_of(settings: Any, model: SSLModel, teacher: Teacher | None) -> SSLModel:
    """The network whose trunk is measured and kept: the teacher's where there is one, unless settings say otherwise.

    Raises:
        UserError: the teacher's is wanted and there is none.
    """
    wanted = settings.CHECKPOINT.backbone
    if teacher is None and wanted == "teacher":
        raise UserError("CHECKPOINT.backbone = teacher: this run has none. Set MODEL.TEACHER, or backbone to student.")
    return model if teacher is None or wanted == "student" else teacher.network
