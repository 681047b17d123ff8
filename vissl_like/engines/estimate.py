"""``--estimate``: the memory that each process of a run will need, before anything is started or allocated."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.config import Plan, make_plan
from vissl_like.config.load import LoadedSettings
from vissl_like.config.resolve import plan_job
from vissl_like.engines.held_memory import Held, Row, bytes_of, optimizer_rules, state_of
from vissl_like.engines.kept_memory import Imitation, Kept, cast_as_there, count_kept, put_on
from vissl_like.losses.base import Loss
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.registry import DATASETS, TEACHERS, TRANSFORMS
from vissl_like.trainer.build import build_loss
from vissl_like.trainer.components import build, build_dataset
from vissl_like.trainer.network import build_model
from vissl_like.trainer.precision import Precision, bf16_supported
from vissl_like.utils.errors import UserError

WIDTH = 120
MANY = 2**30
"""Images of a training set that is not looked at; no figure depends on it."""
SUPPOSED = 1_281_167
"""Images of a training set that is not there, where a figure depends on their number: those of ImageNet."""


@dataclass
class Estimate:
    """What a process needs.

    Attributes:
        processes: of the run.
        facts: rows ``(label, text)`` on what the figures hold for.
        parameters: number of parameters by part.
        rows: what adds up.
        files: rows ``(label, bytes)`` of a checkpoint.
        remarks: what is assumed, and what is left out.
    """

    processes: int
    facts: list[tuple[str, str]]
    parameters: dict[str, int]
    rows: list[Row]
    files: list[tuple[str, int]]
    remarks: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table."""
        counts = [(f"parameters, {name}", f"{count:,}") for name, count in self.parameters.items()]
        total = Row("sum", sum(row.whole for row in self.rows), sum(row.sharded for row in self.rows))
        sizes = [(row.label, *map(readable, (row.whole, row.sharded))) for row in [*self.rows, total]]
        files = [(label, readable(size)) for label, size in self.files]
        wide = max(len(label) for label, *_ in [*self.facts, *counts, *sizes, *files])
        several = self.processes > 1
        lines = [f"{label:<{wide}}  {text}" for label, text in [*self.facts, *counts]]
        heading = f"{'every process, sharding:':<{wide}}  {'none':>9}" + f"  {'full':>9}" * several
        lines += ["", heading]
        for label, whole, sharded in sizes:
            lines.append(f"{label:<{wide}}  {whole:>9}" + f"  {sharded:>9}" * several)
        lines += ["", "a checkpoint, on disk:", *(f"{label:<{wide}}  {size:>9}" for label, size in files), ""]
        return "\n".join([*lines, *(textwrap.fill(text, WIDTH) for text in self.remarks)])


def readable(count: int) -> str:
    """Bytes in powers of 1000 with three digits: ``5.72 GB``."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {unit}"
    return f"{count} B" if count else "-"


def estimate(loaded: LoadedSettings) -> Estimate:
    """Builds the run's network on the meta device and adds up.

    Args:
        loaded: checked settings of a training run.

    Raises:
        UserError: the engine does not train, or the network or the loss cannot be built without memory.
    """
    settings = loaded.resolved
    if settings.LOSS is None or settings.MODEL.TRUNK is None or settings.DATA.TRANSFORM is None:
        raise UserError("--estimate is about training, and these settings name no network or no loss to train.")
    processes, rule = processes_of(settings)
    device, device_rule, bf16 = device_of(settings)
    channels = channels_of(settings.DATA.TRAIN)
    transform = build(TRANSFORMS, settings.DATA.TRANSFORM, channels)

    def plan_for(images: int) -> Plan:
        return make_plan(settings, images, processes, device.type, bf16, 1)

    plan = plan_for(MANY)
    with _told("MODEL"), torch.device("meta"):
        model, _ = build_model(settings, channels, torch.device("meta"), plan, load=False)
        teacher = None if settings.MODEL.TEACHER is None else build(TEACHERS, settings.MODEL.TEACHER, model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    held = Held(model, teacher, processes, plan.accumulation, optimizer_rules(settings.OPTIMIZER, plan.peak_lr, named))

    imitation = Imitation()

    def loss_for(images: int) -> Loss:
        with _told("LOSS"), imitation:
            return build_loss(settings, plan_for(images), model, transform.num_views, device)

    loss, remarks = _loss_of_the_data(loss_for, settings)
    views = " + ".join(f"{transform.sizes.count(size)} x {size} px" for size in dict.fromkeys(transform.sizes))
    facts = [
        ("processes", f"{processes} ({rule})"),
        ("device", f"{device.type} ({device_rule})"),
        ("micro-batch", f"{plan.per_rank_batch} images, {plan.accumulation} a step; views {views}"),
        ("arithmetic", plan.precision + (" under autocast, weights in float32" if plan.precision != "fp32" else "")),
    ]
    counts = {"trunk": _count(model.trunk), "head": _count(model.head)}
    if teacher is not None:
        counts["teacher"] = _count(teacher)
    rows, files = held.rows(settings.OPTIMIZER.name), held.files(loss)
    more, problem = _rows_of_pass(
        _Pass(imitation, model, teacher, loss, plan, (channels, transform.sizes), device), processes > 1
    )
    rows.append(Row("loss state", state_of(loss), state_of(loss)))
    if processes > 1:
        start = readable(held.at_the_start())
        remarks.append(f"With sharding, every process holds the whole network ({start}) for a moment at the start.")
    return Estimate(processes, facts, counts, [*rows, *more], files, [*problem, *remarks, _LEFT_OUT])


@contextmanager
def _told(section: str) -> Iterator[None]:
    """Errors of a component that needs values while it is built, in words."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--estimate cannot build {section}, because there are no values on torch's meta device: {reason}. A "
            "component must not read numbers out of its weights while it is built."
        ) from error


_LEFT_OUT = (
    "Counted at the end of a forward pass, when most is kept. Left out: what kernels need for a moment, gradients of "
    "activations, what CUDA and its libraries take, memory that is free but scattered, and the loading processes."
)


def processes_of(settings: Any) -> tuple[int, str]:
    """Processes that a run with these settings has, and the rule that gives them."""
    if settings.SLURM.USE_SLURM:
        job = plan_job(settings.SLURM, settings.DISTRIBUTED.processes)
        return job.processes, f"SLURM: {job.nodes} nodes x {job.tasks_per_node}"
    return settings.DISTRIBUTED.processes, "DISTRIBUTED.processes"


def device_of(settings: Any) -> tuple[torch.device, str, bool]:
    """Device of the run, the rule that gives it, and whether it computes in bf16."""
    wanted, here = settings.DISTRIBUTED.device, torch.cuda.is_available()
    in_job = settings.SLURM.USE_SLURM and settings.SLURM.gpus_per_node > 0
    if wanted == "cpu" or (wanted == "auto" and not in_job and not here):
        rule = (
            "as given" if wanted == "cpu" else "no GPU is seen here; for a run on GPUs: config.DISTRIBUTED.device=cuda"
        )
        return torch.device("cpu"), rule, bf16_supported("cpu")
    if here:
        return torch.device("cuda", 0), "as here", bf16_supported("cuda")
    rule = "as given" if wanted == "cuda" else "SLURM.gpus_per_node"
    return torch.device("cuda", 0), f"{rule}; none is seen here, one that computes in bf16 is assumed", True


def channels_of(section: Any) -> int:
    """Channels of the training images, from the settings alone."""
    option = DATASETS.describe(section.name).options.get("channels")
    default = option.default if option is not None and isinstance(option.default, int) else 3
    return int(section.get("channels") or default)


def _loss_of_the_data(loss_for: Callable[[int], Loss], settings: Any) -> tuple[Loss, list[str]]:
    """The loss for the data that there are; they are looked at only where it keeps something for every image."""
    loss, twice = loss_for(MANY), loss_for(2 * MANY)
    each = (state_of(twice) - state_of(loss)) / MANY
    if not each:
        return loss, []
    text = f"The loss keeps {each:.3g} bytes for every image of DATA.TRAIN"
    try:
        if settings.DATA.TRAIN.get("download"):
            raise UserError("they may have to be fetched first")
        images = len(build_dataset(settings.DATA.TRAIN))
        return loss_for(images), [f"{text}; there are {images:,}."]
    except (UserError, OSError) as error:
        images = max(SUPPOSED, settings.TRAIN.global_batch)
        reason = str(error).partition("\n")[0]
        return loss_for(images), [f"{text}; {images:,} are supposed, because they cannot be counted: {reason}"]


class _Pass:
    """One micro-batch's forward pass on imitations, as a training step does it.

    Args:
        imitation: of all tensors here.
        model, teacher: on the meta device; they become imitations.
        loss: an imitation already.
        plan: of the run.
        images: their channels, and the sizes of their views.
        device: of the run.
    """

    def __init__(
        self,
        imitation: Imitation,
        model: SSLModel,
        teacher: Teacher | None,
        loss: Loss,
        plan: Plan,
        images: tuple[int, tuple[int, ...]],
        device: torch.device,
    ):
        self.imitation, self.model, self.teacher, self.loss = imitation, model, teacher, loss
        self.plan, self.device = plan, device
        channels, sizes = images
        self.dtype = Precision(plan.precision, "cpu").dtype
        whole = nn.ModuleList([model, *([teacher] if teacher is not None else [])])
        memory_format = torch.channels_last if plan.channels_last else torch.contiguous_format
        with self.imitation:
            put_on(whole, device)
            empty = [torch.empty(plan.per_rank_batch, channels, size, size, device=device) for size in sizes]
            views = [view.to(memory_format=memory_format) for view in empty]
            self.batch = Batch(views, torch.empty(plan.per_rank_batch, dtype=torch.int64))
        self.parameters = [*whole.parameters(), *whole.buffers(), *loss.buffers()]

    def count(self, keep_casts: bool) -> Kept:
        """What it keeps; ``keep_casts`` as for ``Precision``."""
        with self.imitation:
            return count_kept(
                lambda: self._forward(keep_casts), self.parameters, self.batch.views, self.device.type, keep_casts
            )

    def _forward(self, keep_casts: bool) -> list[Tensor]:
        plan, views = self.plan, self.batch.views
        progress = Progress(plan.total_steps - 1, plan.total_steps, plan.steps_per_epoch)
        with cast_as_there(self.device.type, self.dtype, keep_casts):
            taught = None if self.teacher is None else self.teacher([views[v] for v in self.loss.teacher_views])
            output = self.model(views)
        output.teacher = taught
        return [*self.loss(output, self.batch, progress).values(), *_tensors(output)]


def _rows_of_pass(forward: _Pass, several: bool) -> tuple[list[Row], list[str]]:
    """What a forward pass adds, and a remark if it could not be run.

    Nothing of it is divided. But a sharded run does not keep casts of weights from one use to the next.
    """
    try:
        kept = forward.count(keep_casts=True)
        sharded = forward.count(keep_casts=False) if several and forward.dtype is not None else kept
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        size = bytes_of(forward.batch.views)
        text = f"Left out: activations. The network or the loss cannot be run without memory: {reason}"
        return [Row("input batch", size, size)], [text]
    rows = [
        Row(f"weights in {forward.plan.precision}, for the pass", kept.casts, sharded.casts),
        Row("activations", kept.activations, sharded.activations),
        Row("one block's activations, computed again", kept.recomputed, sharded.recomputed),
        Row("outputs", kept.outputs, sharded.outputs),
        Row("input batch", kept.inputs, sharded.inputs),
    ]
    return [row for row in rows if row.whole or row.sharded], []


def _tensors(output: ModelOutput) -> list[Tensor]:
    head = output.head
    own = [output.features, head.embedding, *head.logits, *head.prototypes]
    return own if output.teacher is None else [*own, *_tensors(output.teacher)]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
