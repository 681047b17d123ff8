"""The only place where numbers of a run are derived from its settings; each comes with its rule, for printing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vissl_like.utils.duration import parse_duration
from vissl_like.utils.errors import SettingsError

Row = tuple[str, str, str]
"""What was given, the rule, what follows from it."""


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a training run. ``global_batch = per_rank_batch * accumulation * world_size``.

    Attributes:
        global_batch: images per update over all processes.
        per_rank_batch: images that a process takes in one forward (micro-batch).
        accumulation: forwards per update.
        world_size: processes.
        dataset_size: training images.
        steps_per_epoch: updates in one pass; the last, incomplete batch of a pass is dropped.
        total_steps: updates of the whole run.
        epochs: passes of the whole run, fractional.
        images_total: images that the run takes in, repeats counted.
        base_lr: rate as given.
        peak_lr: rate for this batch, which schedules start from.
        lr_rule: how it follows.
        precision: fp32, bf16 or fp16.
        channels_last: memory order of images.
        threads: torch threads per process.
        checkpoint_every_steps: distance between checkpoints.
        keep_every_steps: distance between checkpoints that are kept for good, None for no such.
        rows: given, rule and result of each number.
    """

    global_batch: int
    per_rank_batch: int
    accumulation: int
    world_size: int
    dataset_size: int
    steps_per_epoch: int
    total_steps: int
    epochs: float
    images_total: int
    base_lr: float
    peak_lr: float
    lr_rule: str
    precision: str
    channels_last: bool
    threads: int
    checkpoint_every_steps: int
    keep_every_steps: int | None
    rows: list[Row] = field(default_factory=list, repr=False)

    def format_table(self) -> str:
        """The rows as aligned text."""
        widths = [max(len(row[column]) for row in self.rows) for column in range(2)]
        return "\n".join(f"{given:<{widths[0]}}  {rule:<{widths[1]}}  {result}" for given, rule, result in self.rows)


def make_plan(
    settings: Any, dataset_size: int, world_size: int, device_type: str, bf16_supported: bool, cpu_count: int
) -> Plan:
    """Derives everything from checked settings.

    Args:
        settings: resolved settings (attribute access).
        dataset_size: training images.
        world_size: processes.
        device_type: ``cpu`` or ``cuda``.
        bf16_supported: whether the device computes in bf16 natively (avx512_bf16 or AMX on a CPU).
        cpu_count: cores that the processes of this machine share.

    Raises:
        SettingsError: the batch cannot be divided, or the data are fewer than one batch, or the run has no step.
    """
    train, checkpoint, batch = settings.TRAIN, settings.CHECKPOINT, settings.TRAIN.global_batch
    per_rank, accumulation = split_batch(batch, world_size, train.accumulation, train.max_per_rank_batch)
    steps_per_epoch, total = _length(train.length, dataset_size, batch)
    peak, lr_rule = settings.OPTIMIZER.base_lr, "as given"
    if settings.OPTIMIZER.base_batch is not None:
        peak, lr_rule = peak * batch / settings.OPTIMIZER.base_batch, f"* {batch} / {settings.OPTIMIZER.base_batch}"
    precision, why = _precision(train.precision, device_type, bf16_supported)

    def distance(text: str) -> int:
        return max(1, parse_duration(text).steps(steps_per_epoch, total))

    plan = Plan(
        global_batch=batch,
        per_rank_batch=per_rank,
        accumulation=accumulation,
        world_size=world_size,
        dataset_size=dataset_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        epochs=total / steps_per_epoch,
        images_total=total * batch,
        base_lr=settings.OPTIMIZER.base_lr,
        peak_lr=peak,
        lr_rule=lr_rule,
        precision=precision,
        channels_last=train.channels_last is True or train.channels_last == "auto",
        threads=train.threads or max(1, cpu_count // world_size),
        checkpoint_every_steps=distance(checkpoint.every),
        keep_every_steps=None if checkpoint.keep_every is None else distance(checkpoint.keep_every),
    )
    plan.rows.extend(_rows(plan, settings, why, cpu_count))
    return plan


def _rows(plan: Plan, settings: Any, precision_rule: str, cpu_count: int) -> list[Row]:
    train, batch = settings.TRAIN, plan.global_batch
    processes = f"{plan.world_size} process{'es' * (plan.world_size > 1)}"
    forwards = f"{plan.accumulation} forward{'s' * (plan.accumulation > 1)}"
    micro_batch = f"{plan.per_rank_batch} images per process and forward"
    total = f"{plan.total_steps} steps, {plan.images_total} images"
    left_over = plan.dataset_size - plan.steps_per_epoch * batch
    rows = [
        (f"global batch {batch}", f"/ {processes} / {forwards}", micro_batch),
        (
            f"{plan.dataset_size} images",
            f"/ {batch}, {left_over} left over in each epoch",
            f"{plan.steps_per_epoch} steps per epoch",
        ),
        (f"length {train.length}", f"{plan.epochs:.4g} epochs", total),
        (f"base lr {plan.base_lr:g}", plan.lr_rule, f"peak lr {plan.peak_lr:g}"),
        (f"precision {train.precision}", precision_rule, plan.precision),
        (
            f"threads {train.threads or 'not given'}",
            "as given" if train.threads else f"{cpu_count} cores / {processes}",
            f"{plan.threads} per process",
        ),
        (f"checkpoint every {settings.CHECKPOINT.every}", "at least 1 step", _steps(plan.checkpoint_every_steps)),
    ]
    if plan.keep_every_steps is not None:
        rows.append((f"keep every {settings.CHECKPOINT.keep_every}", "at least 1 step", _steps(plan.keep_every_steps)))
    return rows


def split_batch(
    global_batch: int, world_size: int, accumulation: int | str, max_per_rank_batch: int | None
) -> tuple[int, int]:
    """Images per process and forward, and forwards per update.

    ``auto`` takes the fewest equal forwards that respect the limit, but none of less than half of it: a batch that can
    only be cut into crumbs would change what BatchNorm and the loss see.

    Raises:
        SettingsError: the batch does not divide; the nearest that do are named.
    """
    if accumulation != "auto":
        unit = world_size * int(accumulation)
        if global_batch % unit:
            parts = f"{world_size} process(es) x {accumulation} forward(s)"
            raise SettingsError([_indivisible(global_batch, unit, parts)])
        per_rank = global_batch // unit
        if max_per_rank_batch is not None and per_rank > max_per_rank_batch:
            raise SettingsError(
                [
                    f"TRAIN.accumulation = {accumulation}: {per_rank} images per process and forward are more than "
                    f"max_per_rank_batch, {max_per_rank_batch}. Use accumulation=auto, or a larger one."
                ]
            )
        return per_rank, int(accumulation)
    if global_batch % world_size:
        raise SettingsError([_indivisible(global_batch, world_size, f"{world_size} processes")])
    per_process = global_batch // world_size
    if max_per_rank_batch is None or per_process <= max_per_rank_batch:
        return per_process, 1
    fewest = -(-per_process // max_per_rank_batch)
    for forwards in range(fewest, 2 * fewest + 1):
        if per_process % forwards == 0:
            return per_process // forwards, forwards
    parts = f"{world_size} process(es) x {fewest} forwards of at most {max_per_rank_batch}"
    raise SettingsError([_indivisible(global_batch, world_size * fewest, parts)])


def _indivisible(global_batch: int, unit: int, parts: str) -> str:
    lower = global_batch // unit * unit
    workable = [str(value) for value in (lower, lower + unit) if value > 0]
    return (
        f"TRAIN.global_batch = {global_batch} cannot be divided equally into {parts}. Nearest that can: "
        f"{' or '.join(workable)}."
    )


def _length(text: str, dataset_size: int, batch: int) -> tuple[int, int]:
    steps_per_epoch = dataset_size // batch
    if steps_per_epoch == 0:
        raise SettingsError(
            [
                f"TRAIN.global_batch = {batch} is more than the {dataset_size} training images: an epoch would have no "
                f"step. Use a batch of at most {dataset_size}, or more images."
            ]
        )
    try:
        total = parse_duration(text).steps(steps_per_epoch)
    except ValueError as error:
        raise SettingsError([f"TRAIN.length = {text!r}: {error}"]) from None
    if total < 1:
        raise SettingsError(
            [f"TRAIN.length = {text!r} is less than one step ({steps_per_epoch} steps per epoch). Make it longer."]
        )
    return steps_per_epoch, total


def _steps(count: int) -> str:
    return "every step" if count == 1 else f"every {count} steps"


def _precision(wanted: str, device_type: str, bf16_supported: bool) -> tuple[str, str]:
    if wanted != "auto":
        return wanted, "as given"
    if bf16_supported:
        return "bf16", f"{device_type} computes in bf16"
    if device_type == "cuda":
        return "fp16", "this GPU does not compute in bf16"
    return "fp32", "this CPU does not compute in bf16"


@dataclass(frozen=True)
class JobPlan:
    """What a job of a cluster is made of. ``processes = nodes * tasks_per_node``.

    Attributes:
        nodes: machines.
        tasks_per_node: processes on each.
        processes: of the whole job.
        minutes: time limit, rounded up.
        text: all of it for the eye, with the rule that gave the number of processes.
    """

    nodes: int
    tasks_per_node: int
    processes: int
    minutes: int
    text: str


_WORDS = {
    "name": r"[\w.+-]{1,100}",
    "partition": r"[\w.,+-]{1,200}",
    "account": r"[\w.@+-]{1,100}",
    "qos": r"[\w.+-]{1,100}",
    "constraint": r"[\w.,&|*()\[\]:+-]{1,300}",
    "exclude": r"[\w.,\[\]-]{1,1000}",
    "comment": r"[\w .,:;@=+/()-]{1,300}",
}
"""What Slurm's texts are made of; anything else (quotes, line breaks, ``$``) is refused before submission."""


def plan_job(slurm: Mapping[str, Any], processes: int) -> JobPlan:
    """Derives a job from the SLURM settings.

    Args:
        slurm: values of the section.
        processes: ``DISTRIBUTED.processes``; 1 counts as not given.

    Raises:
        SettingsError: they contradict each other, or a text could not safely be handed to Slurm; all are listed.
    """
    problems = [
        f"SLURM.{key} = {str(slurm[key])!r}: holds characters that job files do not take; it must match {pattern}"
        for key, pattern in _WORDS.items()
        if slurm[key] is not None and not re.fullmatch(pattern, str(slurm[key]), re.ASCII)
    ]
    nodes, tasks, gpus = slurm["nodes"], slurm["tasks_per_node"], slurm["gpus_per_node"]
    rule = "nodes * tasks_per_node"
    if tasks is None and gpus:
        tasks, rule = gpus, "nodes * gpus_per_node"
    elif tasks is None:
        tasks, rule = processes // nodes, "DISTRIBUTED.processes"
        if processes % nodes:
            problems.append(
                f"DISTRIBUTED.processes = {processes} cannot be divided equally among SLURM.nodes = {nodes}. Give "
                "SLURM.tasks_per_node."
            )
            tasks = 1
    if gpus and tasks != gpus:
        problems.append(
            f"SLURM.tasks_per_node = {tasks} and SLURM.gpus_per_node = {gpus}: each process takes one GPU. Make them "
            "equal, or leave tasks_per_node out."
        )
    total = nodes * tasks
    if processes not in (1, total):
        problems.append(
            f"DISTRIBUTED.processes = {processes}, but the job has {total} ({rule}). Leave it out under Slurm."
        )
    if slurm["cluster"] == "local" and nodes > 1:
        problems.append(f"SLURM.nodes = {nodes}: SLURM.cluster=local has one machine, this one.")
    minutes = math.ceil(slurm["time_hours"] * 60)
    if slurm["signal_seconds"] >= minutes * 60:
        problems.append(
            f"SLURM.signal_seconds = {slurm['signal_seconds']} is not less than the time limit, {minutes * 60} s: the "
            "run would be told to save before it begins."
        )
    if problems:
        raise SettingsError(problems)
    text = (
        f"{total} process{'es' * (total > 1)} ({rule}) on {nodes} node{'s' * (nodes > 1)}, {slurm['cpus_per_task']} "
        f"core{'s' * (slurm['cpus_per_task'] > 1)} each, {gpus or 'no'} GPU{'s' * (gpus != 1)} per node, "
        f"at most {minutes // 60} h {minutes % 60} min"
    )
    return JobPlan(nodes, tasks, total, minutes, text)
