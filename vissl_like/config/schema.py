"""Every setting of a run with default, kind and help. The program reads each; components list their options themselves.

``kind`` is an annotation text in the words of ``vissl_like.utils.kinds``, checked by ``config.values`` exactly as the
options of components are. The types of the dataclasses themselves are the plain ones that OmegaConf understands.
"""

# ruff: noqa: RUF009  (the functions that declare fields return dataclasses.field)
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, fields
from typing import Any

from vissl_like.config.fields import component, components, section, setting
from vissl_like.config.launching import DistributedSettings, SlurmSettings

AUTO_BOOL = "bool | Literal['auto']"


Component = dict[str, Any]
"""``name`` and options of a registered class or function."""


@dataclass
class DataSettings:
    """Where images come from and how they reach the network. A path is enough: ``config.DATA.TRAIN=/photos``."""

    TRAIN: Component | None = component("datasets", "images to learn from; labels are never needed", short="path")
    PROBE_TRAIN: Component | None = component("datasets", "labelled images that evaluations learn from", short="path")
    PROBE_TEST: Component | None = component(
        "datasets",
        "labelled images that evaluations are scored on; null holds out a share of PROBE_TRAIN",
        short="path",
    )
    TRANSFORM: Component | None = component("transforms", "views made of each training image", "multi_crop")
    SAMPLER: Component | None = component("samplers", "order of the training images", "shuffled")
    WORKERS: int | str = setting(
        "auto", "Index | Literal['auto']", "loading workers per training process; 0: images are loaded when needed"
    )
    PREFETCH: int = setting(2, "Count", "batches each worker prepares ahead", unit="batches")
    START_METHOD: str | None = setting(
        None,
        "Literal['thread', 'fork', 'spawn', 'forkserver'] | None",
        "what workers are: threads, or processes that start so; null: threads on a CPU with the native kernel",
    )
    MAX_SKIPPED: int | str = setting(
        "5%", "Percent | Index", "unreadable images that are skipped before the run stops: share of the data, or number"
    )


@dataclass
class WeightsSettings:
    """Weights to start from. Loading is strict: what may be absent or left over is named."""

    path: str | None = setting(None, "str | None", "file to load, .safetensors or torch; null starts from scratch")
    prefix: str | None = setting(None, "str | None", "leading part of the file's tensor names to remove; null finds it")
    allow_missing: list[str] = setting(
        [], "list[str]", "patterns (head.*) of tensors that may be absent from the file; they stay as initialised"
    )
    allow_unused: list[str] = setting([], "list[str]", "patterns (fc.*) of the file's tensors that may go unused")


@dataclass
class ModelSettings:
    """The network: a trunk that gives features and a head that the loss works on."""

    TRUNK: Component | None = component("trunks", "network from images to features")
    HEAD: Component | None = component("heads", "from features to what the loss compares")
    TEACHER: Component | None = component(
        "teachers", "network that follows the trained one and gives it targets; null: none"
    )
    WEIGHTS: WeightsSettings = section(WeightsSettings)
    SYNC_BATCH_NORM: bool | str = setting(
        "auto", AUTO_BOOL, "share batch statistics between processes; auto: if there are several"
    )
    SYNC_BATCH_NORM_GROUP: int | None = setting(
        None, "Count | None", "neighbouring processes that share them, a divisor of all; null: all", unit="processes"
    )
    ACTIVATION_CHECKPOINTING: bool = setting(
        False, "bool", "compute the trunk's blocks again in the backward pass: less memory, more time"
    )


@dataclass
class OptimizerSettings:
    """What the program reads from OPTIMIZER; everything else there is an option of the named optimizer."""

    base_lr: float | None = setting(None, "Positive", "peak learning rate, for base_batch images per update")
    base_batch: int | None = setting(
        None,
        "Count | None",
        "lr = base_lr * global_batch / base_batch; null: lr = base_lr whatever the batch",
        unit="images",
    )


@dataclass
class SchedulesSettings:
    """How numbers change over the run, as functions of the step."""

    lr: Component | None = component("schedules", "learning rate, from the scaled base rate", "cosine")
    weight_decay: Component | None = component(
        "schedules", "weight decay of the decayed tensors, from OPTIMIZER.weight_decay; null: constant"
    )


@dataclass
class TrainSettings:
    """Length, batch and arithmetic of training. The batch is global; per-process numbers are derived and printed."""

    length: str | None = setting(None, "Duration", "length of the run, in epochs or steps")
    global_batch: int | None = setting(None, "Count", "images per update over all processes", unit="images")
    accumulation: int | str = setting(
        "auto", "Count | Literal['auto']", "forwards per update; auto: as many as max_per_rank_batch asks for"
    )
    max_per_rank_batch: int | None = setting(
        None, "Count | None", "most images a process takes in one forward; null: no limit", unit="images"
    )
    clip_norm: float | None = setting(None, "Positive | None", "largest norm of the gradient; null: no clipping")
    clip: str = setting(
        "whole",
        "Literal['whole', 'tensor']",
        "what clip_norm limits: the whole gradient, or that of each tensor by itself",
    )
    precision: str = setting(
        "auto",
        "Literal['auto', 'fp32', 'bf16', 'fp16']",
        "arithmetic of the network (losses stay in fp32); auto: bf16 where the hardware has it, else fp16 on a GPU, "
        "fp32 on a CPU",
    )
    channels_last: bool | str = setting("auto", AUTO_BOOL, "memory order of images; auto: true, which is faster")
    compile: str = setting(
        "none",
        "Literal['none', 'default', 'reduce-overhead', 'max-autotune']",
        "torch.compile of the forward and backward pass, in this mode; reduce-overhead uses CUDA graphs. The first "
        "steps take a minute or more, and a C++ compiler is needed",
    )
    grouped_forward: bool = setting(True, "bool", "views of one size go through the trunk together")
    non_finite: str = setting(
        "stop", "Literal['stop', 'skip']", "at a NaN or infinite loss or gradient: stop, or skip the update and say so"
    )
    max_skipped_updates: int = setting(10, "Count", "updates skipped in a row before the run stops")
    threads: int | None = setting(None, "Count | None", "torch threads per process; null: its share of the cores")
    deterministic: bool = setting(False, "bool", "only algorithms that repeat bit for bit (slower on a GPU)")


@dataclass
class CheckpointSettings:
    """What is kept of a run, and whether a run goes on where it stopped."""

    every: str = setting("10%", "Duration", "distance between checkpoints")
    keep: int = setting(2, "Count", "newest checkpoints that are kept")
    keep_every: str | None = setting(None, "Duration | None", "checkpoints at these distances are kept for good")
    resume: str = setting(
        "auto",
        "Literal['auto', 'never', 'force']",
        "auto: go on from the newest checkpoint of OUTPUT_DIR, if there is one and the settings agree; never: refuse a "
        "folder with checkpoints; force: go on even if settings changed",
    )
    backbone: str = setting(
        "auto",
        "Literal['auto', 'student', 'teacher']",
        "whose trunk is measured and written as backbone.safetensors; auto: the teacher's where there is one",
    )
    best_metric: str | None = setting(
        None, "str | None", "metric (such as knn.top1) whose best checkpoint is kept too; null: none"
    )


@dataclass
class EvaluateSettings:
    """What evaluations are given: the weights, the size of images, the floors to compare with."""

    weights: str | None = setting(
        None, "str | None", "backbone, checkpoint or run to evaluate; null: the newest of OUTPUT_DIR"
    )
    floors: bool = setting(True, "bool", "also score raw pixels and the same network untrained, on the same split")
    image_size: int = setting(96, "Count", "side of the square that is evaluated", unit="px")
    resize: int | None = setting(
        None,
        "Count | None",
        "shorter side before the centre crop to image_size; null: resize straight to that",
        unit="px",
    )
    interpolation: str = setting(
        "bilinear", "Literal['bilinear', 'bicubic']", "filter of the resizing, with antialiasing"
    )
    batch_size: int = setting(64, "Count", "images per forward", unit="images")
    max_images: int | None = setting(
        None, "Count | None", "at most this many images of each set, evenly drawn; null: all", unit="images"
    )
    holdout: float = setting(
        0.25,
        "Annotated[float, Range(low=0.01, high=0.99)]",
        "share of PROBE_TRAIN that is scored on when there is no PROBE_TEST",
    )


@dataclass
class ReportSettings:
    """The self-contained HTML page about a run."""

    file: str = setting("report.html", "str", "name of the page in OUTPUT_DIR")
    nearest_neighbours: int = setting(8, "Index", "photos shown with their nearest neighbours")
    embedding_map: str = setting("pca", "Literal['pca', 'tsne']", "how features are laid out in two dimensions")
    sample_crops: int = setting(6, "Index", "training images whose views are shown")


@dataclass
class Settings:
    """A run."""

    PLUGINS: list[str] = setting([], "list[str]", "outside modules or .py files that register components")
    ENGINE: Component | None = component("engines", "what to do", "train")
    SEED: int = setting(0, "Index", "seed of everything random")
    OUTPUT_DIR: str = setting("runs/default", "str", "folder for everything the run writes")
    DATA: DataSettings = section(DataSettings)
    MODEL: ModelSettings = section(ModelSettings)
    LOSS: Component | None = component("losses", "objective of the method")
    OPTIMIZER: Component | None = component("optimizers", "how weights are updated", extra=OptimizerSettings)
    SCHEDULES: SchedulesSettings = section(SchedulesSettings)
    TRAIN: TrainSettings = section(TrainSettings)
    HOOKS: dict[str, Any] = components(
        "hooks", "observers by name, each with its options ({} = as they are); null removes one that a base has"
    )
    CHECKPOINT: CheckpointSettings = section(CheckpointSettings)
    DISTRIBUTED: DistributedSettings = section(DistributedSettings)
    SLURM: SlurmSettings = section(SlurmSettings)
    EVALUATION: Component | None = component("evaluations", "how features are scored", "knn")
    EVALUATE: EvaluateSettings = section(EvaluateSettings)
    REPORT: ReportSettings = section(ReportSettings)


REQUIRED_BY_DEFAULT = (
    "DATA.TRAIN",
    "DATA.TRANSFORM",
    "DATA.SAMPLER",
    "MODEL.TRUNK",
    "MODEL.HEAD",
    "LOSS",
    "OPTIMIZER",
    "OPTIMIZER.base_lr",
    "SCHEDULES.lr",
    "TRAIN.length",
    "TRAIN.global_batch",
)
"""Needed by an engine that does not declare ``required_settings`` of its own."""


def fields_of(cls: type) -> dict[str, Field[Any]]:
    """Fields of a section by name."""
    return {entry.name: entry for entry in fields(cls)}


def defaults() -> dict[str, Any]:
    """All defaults as plain dictionaries."""
    return asdict(Settings())


def field_at(key: str) -> Field[Any] | None:
    """The field of a dotted key, or None below components and for unknown keys."""
    cls: type | None = Settings
    found: Field[Any] | None = None
    for part in key.split("."):
        if cls is None:
            return None
        found = fields_of(cls).get(part)
        if found is None:
            return None
        cls = found.metadata.get("section") or found.metadata.get("extra")
    return found


def walk(cls: type = Settings, path: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Every field with its dotted key, sections before their contents."""
    for name, entry in fields_of(cls).items():
        key = f"{path}{name}"
        yield key, entry
        inner = entry.metadata.get("section") or entry.metadata.get("extra")
        if inner:
            yield from walk(inner, f"{key}.")
