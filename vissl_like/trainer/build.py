"""From settings to built objects: the only place where settings meet constructors."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import torch

from vissl_like.config import Plan, make_plan
from vissl_like.config.schema import defaults
from vissl_like.data.datasets.base import ImageDataset
from vissl_like.data.loader import TrainLoader, count_workers
from vissl_like.data.normalise import Normalise
from vissl_like.distributed import comm
from vissl_like.losses.base import Loss, LossContext
from vissl_like.models.ssl_model import SSLModel
from vissl_like.records import Progress
from vissl_like.registry import (
    HOOKS,
    LOSSES,
    OPTIMIZERS,
    SAMPLERS,
    SCHEDULES,
    TEACHERS,
    TRANSFORMS,
)
from vissl_like.trainer.banner import banner
from vissl_like.trainer.checkpoint import CheckpointStore
from vissl_like.trainer.clipping import Clipping
from vissl_like.trainer.components import build, build_dataset, plain_values
from vissl_like.trainer.network import backbone_of, build_model, check_teacher, compiled, wrap
from vissl_like.trainer.non_finite import NonFinitePolicy
from vissl_like.trainer.parts import Parts
from vissl_like.trainer.precision import Precision, bf16_supported
from vissl_like.trainer.rng import seed_everything
from vissl_like.trainer.run import Run
from vissl_like.trainer.sharding import FullySharded
from vissl_like.trainer.signals import StopSignals
from vissl_like.trainer.step import TrainStep
from vissl_like.utils.allocator import keep_freed_memory
from vissl_like.utils.environment import available_cores
from vissl_like.utils.errors import UserError

MAY_CHANGE_ON_RESUME = (
    "OUTPUT_DIR",
    "ENGINE*",
    "HOOKS*",
    "CHECKPOINT.every",
    "CHECKPOINT.keep*",
    "CHECKPOINT.resume",
    "CHECKPOINT.best_metric",
    "EVALUAT*",
    "REPORT*",
    "DISTRIBUTED*",
    "SLURM*",
    "DATA.PROBE*",
    "DATA.WORKERS",
    "DATA.PREFETCH",
    "DATA.START_METHOD",
    "DATA.MAX_SKIPPED",
    "TRAIN.threads",
    "TRAIN.non_finite",
    "TRAIN.max_skipped_updates",
    "MODEL.WEIGHTS*",
    "MODEL.ACTIVATION_CHECKPOINTING",
    "MODEL.TRUNK.attention",
    "TRAIN.compile",
)
"""Settings that a resumed run may have different without changing what it computes."""


def choose_device(settings: Any) -> torch.device:
    """``DISTRIBUTED.device``, the GPU of this process's place on its machine where there is one."""
    wanted = settings.DISTRIBUTED.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def build_run(loaded: Any, output_dir: Path, signals: StopSignals, resuming: bool) -> Run:
    """Everything a training run needs, from checked settings.

    Args:
        loaded: ``LoadedSettings``.
        output_dir: where the run writes.
        signals: notes Ctrl-C and termination.
        resuming: a checkpoint will be loaded, so that weights need not be read from their file.
    """
    settings = loaded.resolved
    device = choose_device(settings)
    if device.type == "cpu":
        keep_freed_memory()
    seed_everything(settings.SEED, 0)  # the same initial weights on every process
    dataset = build_dataset(settings.DATA.TRAIN)
    plan = make_plan(
        settings, len(dataset), comm.world_size(), device.type, bf16_supported(device.type), available_cores()
    )
    transform = build(TRANSFORMS, settings.DATA.TRANSFORM, dataset.channels)
    model, weights_text = build_model(settings, dataset.channels, device, plan, load=not resuming)
    loss = build_loss(settings, plan, model, transform.num_views, device)
    teacher = None if settings.MODEL.TEACHER is None else build(TEACHERS, settings.MODEL.TEACHER, model)
    check_teacher(model, teacher)
    wrapped = wrap(model, teacher, device, settings.DISTRIBUTED.sharding, plan.precision)
    backbone = backbone_of(settings, model, teacher)
    sharded = isinstance(wrapped, FullySharded)
    named_parameters = wrapped.own_parameters() if sharded else list(model.named_parameters())  # type: ignore[operator]
    optimizer = build(OPTIMIZERS, settings.OPTIMIZER, named_parameters, plan.peak_lr)
    if sharded:
        check_optimizer(optimizer, settings.OPTIMIZER.name)
    schedules = build_schedules(settings, plan, optimizer)
    normalise = Normalise(dataset.mean, dataset.std, device, plan.channels_last)
    precision = Precision(plan.precision, device.type, keep_casts=not sharded)  # kept casts would be whole weights
    limit = settings.TRAIN.clip_norm
    clip = None if limit is None else Clipping(limit, each_tensor=settings.TRAIN.clip == "tensor")
    forward = compiled(wrapped, settings.TRAIN.compile)
    step = TrainStep(model, forward, loss, optimizer, schedules, precision, normalise, clip, teacher)
    store = CheckpointStore(
        output_dir / "checkpoints",
        settings.CHECKPOINT.keep,
        plan.keep_every_steps,
        settings.CHECKPOINT.best_metric,
        say=lambda text, level: run.say(text, level),
    )
    parts = Parts(
        settings=settings,
        plan=plan,
        model=model,
        wrapped=wrapped,
        backbone=backbone,
        teacher=teacher,
        loss=loss,
        optimizer=optimizer,
        step=step,
        hooks={name: build(HOOKS, {"name": name, **options}) for name, options in active_hooks(settings).items()},
        dataset=dataset,
        make_loader=_loader_maker(loaded, plan, dataset, transform, device),
        build_dataset=build_dataset,
        store=store,
        output_dir=output_dir,
        device=device,
        plugins=list(loaded.plugins),
        record=_backbone_record(settings, dataset, model, transform, backbone),
        banner=banner(settings, plan, dataset, transform, loss, weights_text, device, taught=backbone is not model),
        settings_record=loaded.record(),
        policy=NonFinitePolicy(settings.TRAIN.non_finite, settings.TRAIN.max_skipped_updates),
        signals=signals,
    )
    seed_everything(settings.SEED, 1 + comm.rank())
    run = Run(parts)
    return run


def build_loss(settings: Any, plan: Plan, model: SSLModel, num_views: int, device: torch.device) -> Loss:
    """The objective, told the facts of the run."""
    context = LossContext(
        num_views=num_views,
        embedding_dim=model.head.embedding_dim,
        num_prototypes=tuple(model.head.num_prototypes),
        per_rank_batch=plan.per_rank_batch,
        global_batch=plan.global_batch,
        world_size=plan.world_size,
        dataset_size=plan.dataset_size,
        steps_per_epoch=plan.steps_per_epoch,
        total_steps=plan.total_steps,
        seed=settings.SEED,
    )
    return build(LOSSES, settings.LOSS, context).to(device)


def check_optimizer(optimizer: torch.optim.Optimizer, name: str) -> None:
    """An optimizer of a sharded run has some rows of each tensor only.

    Raises:
        UserError: it does not say that this is all it needs.
    """
    if type(optimizer) is not torch.optim.AdamW and not getattr(optimizer, "works_on_shards", False):
        raise UserError(
            f"DISTRIBUTED.sharding = full: the optimizer {name!r} does not say that it is right on some rows of a "
            "tensor. Allowed are adamw, sgd, larc, lars, and classes with works_on_shards = True: all they do is "
            "element by element, or takes norms from distributed.sharding.whole_norms. Or set sharding to none."
        )


def build_schedules(settings: Any, plan: Plan, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Functions of progress: ``lr`` and, if asked for, ``weight_decay``.

    Raises:
        UserError: one does not fit the length of the run.
    """
    schedules = {"lr": build(SCHEDULES, settings.SCHEDULES.lr, plan.peak_lr)}
    if settings.SCHEDULES.weight_decay is not None:
        decay = max(group["weight_decay"] for group in optimizer.param_groups)
        schedules["weight_decay"] = build(SCHEDULES, settings.SCHEDULES.weight_decay, decay)
    for schedule in schedules.values():
        schedule(Progress(0, plan.total_steps, plan.steps_per_epoch))  # one that does not fit the run says so now
    return schedules


def active_hooks(settings: Any) -> dict[str, dict[str, Any]]:
    """Options of each hook that was not removed, in the order of the settings."""
    return {str(name): options for name, options in plain_values(settings.HOOKS).items() if options is not None}


def changed_settings(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines ``key: saved -> now`` for settings that change what a run computes.

    A setting that did not exist when the run was saved had the value that is its default now.
    """
    before, after, default = dict(_flat(saved)), dict(_flat(now)), dict(_flat(defaults()))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old = before.get(key, default.get(key))
        if old != after.get(key) and not any(fnmatch.fnmatch(key, p) for p in MAY_CHANGE_ON_RESUME):
            lines.append(f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}")
    return lines


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]


def _loader_maker(loaded: Any, plan: Plan, dataset: ImageDataset, transform: Any, device: torch.device) -> Any:
    settings = loaded.resolved
    sampler = build(
        SAMPLERS,
        settings.DATA.SAMPLER,
        plan.dataset_size,
        plan.per_rank_batch,
        plan.accumulation,
        comm.rank(),
        plan.world_size,
        settings.SEED,
    )
    return lambda start_step, stop_step=plan.total_steps: TrainLoader(
        dataset,
        transform,
        sampler,
        workers=count_workers(settings.DATA.WORKERS, comm.local_world_size()),
        prefetch=settings.DATA.PREFETCH,
        seed=settings.SEED,
        plugins=loaded.plugins,
        max_skipped=settings.DATA.MAX_SKIPPED,
        start_step=start_step,
        total_steps=stop_step,
        pin_memory=device.type == "cuda",
        start_method=settings.DATA.START_METHOD,
    )


def _backbone_record(
    settings: Any, dataset: ImageDataset, model: SSLModel, transform: Any, backbone: SSLModel
) -> dict[str, Any]:
    trunk = plain_values(settings.MODEL.TRUNK)
    return {
        "arch": trunk.pop("name"),
        "arch_options": trunk,
        "channels": dataset.channels,
        "feature_dim": model.trunk.feature_dim,
        "view_sizes": list(transform.sizes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "method": settings.LOSS.name,
        "source": "trained network" if backbone is model else "teacher of the trained network",
    }
