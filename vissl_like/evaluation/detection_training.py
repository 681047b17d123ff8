"""How a detector is trained and asked: optimizer, schedule, statistics of its norms, and detections of a set."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.transform import resize_boxes

from vissl_like.distributed import comm
from vissl_like.evaluation.detection_data import Sample, Samples, load
from vissl_like.evaluation.features import untouched_randomness
from vissl_like.evaluation.functional.detection import Detections
from vissl_like.evaluation.subjects import Protocol
from vissl_like.evaluation.supervised import Draw
from vissl_like.models.detectors.base import DetectorPlan
from vissl_like.models.detectors.rcnn import region_masks
from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError

MOMENTUM, DROP = 0.9, 0.1
RISE, FIRST_PART, LAST_PART = 0.3, 1 / 25, 1 / 250000
"""Of one cycle: share of the steps in which the rate rises, from the one part of the peak, to fall to the other."""
OF_RCNN = ("head_batch_norm", "anchors", "roi_size", "rois", "train_proposals", "test_proposals", "score_threshold")
UNUSED = {
    "faster_rcnn_c4": ("width", "hidden", "queries", "layers"),
    "faster_rcnn_fpn": ("queries", "layers"),
    "mask_rcnn_fpn": ("queries", "layers"),
    "detr": OF_RCNN,
    "steps": (),
    "cosine": ("milestones",),
    "one_cycle": ("milestones", "warmup_steps", "warmup_factor"),
}
"""Options that a detector or a schedule has no use for."""
Schedule = Literal["steps", "cosine", "one_cycle"]
Optimizer = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: images of a step, of all processes together.
        optimizer: which.
        lr: peak learning rate of the new parts.
        trunk_rate: what it is multiplied by for the trunk.
        weight_decay: not on BatchNorm.
        schedule: how the rate goes on.
        milestones: steps at which it falls to a tenth.
        warmup_steps, warmup_factor: in so many steps it rises linearly from this part of itself.
        clip: largest norm of the gradient, None for any.
    """

    steps: int
    batch_size: int
    optimizer: Optimizer
    lr: float
    trunk_rate: float
    weight_decay: float
    schedule: Schedule
    milestones: tuple[int, ...]
    warmup_steps: int
    warmup_factor: float
    clip: float | None

    def check(self) -> None:
        """Looks whether all of the schedule can take place.

        Raises:
            UserError: its warm-up or a milestone lies beyond the last step.
        """
        if self.schedule != "one_cycle" and self.warmup_steps and self.warmup_steps >= self.steps:
            raise UserError(
                f"EVALUATION.warmup_steps={self.warmup_steps} leaves none of the {self.steps} steps for the whole "
                "rate; give fewer, or 0, or a larger EVALUATION.steps"
            )
        late = [step for step in self.milestones if step >= self.steps]
        if self.schedule == "steps" and late:
            raise UserError(
                f"EVALUATION.milestones={list(self.milestones)}: the training has {self.steps} steps, so the rate "
                f"never falls at {late[0]}; give milestones below EVALUATION.steps, [] for none, or the schedule cosine"
            )

    def rate(self, step: int) -> float:
        """What learning rates are multiplied by at a step."""
        if self.schedule == "one_cycle":
            return _one_cycle(step, self.steps)
        warm = 1.0
        if step < self.warmup_steps:
            done = step / self.warmup_steps
            warm = self.warmup_factor * (1 - done) + done
        if self.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return warm * DROP ** bisect_right(self.milestones, step)

    def make_optimizer(self, model: nn.Module, trunk: set[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of a model.

        Args:
            model: all its parameters that require gradients are trained.
            trunk: those of the trunk.
        """
        norms = {value for module in model.modules() if isinstance(module, _BatchNorm) for value in module.parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for value in model.parameters():
            if value.requires_grad:
                groups.setdefault((value in trunk, value in norms), []).append(value)
        given: list[dict[str, Any]] = [
            {
                "params": values,
                "lr": self.lr * (self.trunk_rate if of_trunk else 1.0),
                "weight_decay": 0.0 if of_norm else self.weight_decay,
            }
            for (of_trunk, of_norm), values in groups.items()
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(given, lr=self.lr, momentum=MOMENTUM)
        return torch.optim.AdamW(given, lr=self.lr)


def unused_options(plan: DetectorPlan, recipe: Recipe, defaults: Mapping[str, Any]) -> list[str]:
    """Notices of options that were given and have no effect.

    Args:
        plan, recipe: as given.
        defaults: of the options, by name; those that are as by default may not have been given.
    """
    given = dataclasses.asdict(plan) | dataclasses.asdict(recipe)
    return [
        f"EVALUATION.{name} is given and has no effect with {asked}"
        for asked in (plan.kind, recipe.schedule)
        for name in UNUSED[asked]
        if (list(given[name]) if isinstance(given[name], tuple) else given[name]) != defaults[name]
    ]


def _one_cycle(step: int, steps: int) -> float:
    """Up and down in half cosines, as torch's OneCycleLR by default."""
    top = RISE * steps - 1
    if step <= top:
        low, high, done = FIRST_PART, 1.0, step / top
    else:
        low, high, done = 1.0, LAST_PART, (step - top) / (steps - 1 - top)
    return high + (low - high) * (1 + math.cos(math.pi * done)) / 2


def losses_of(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The losses of a detector on a batch of samples; see ``Objective``."""
    device = next(model.parameters()).device
    images, targets = zip(*(sample.to(device) for sample in batch))
    losses: dict[str, Tensor] = model(list(images), list(targets))
    return losses


def settle_norms(model: nn.Module, draw: Draw, first: int, batches: int, seed: int) -> None:
    """Makes the statistics of all trained BatchNorms ready for the test; every process of the run calls it.

    They become the means over some batches (precise BatchNorm, arXiv:2105.07576) where that is asked for, and the same
    in all processes: what they have on the average.

    Args:
        model: in training mode.
        draw: see ``Draw``.
        first: step of the first batch.
        batches: how many; 0 leaves the running averages.
        seed: of what modules draw.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm) and norm.training]
    if batches:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's sign for the mean over all batches
        with torch.no_grad(), untouched_randomness(next(model.parameters()).device):
            torch.manual_seed(seed)
            for _, batch in zip(range(batches), draw(first)):
                losses_of(model, batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    for norm in norms:
        for value in (norm.running_mean, norm.running_var):
            if value is not None:
                value.copy_(comm.all_reduce(value) / comm.world_size())


@torch.inference_mode()
def detect(model: nn.Module, samples: Samples, protocol: Protocol) -> list[Detections | Skipped]:
    """Detections in all images, one image at a time; the processes of the run share the images, all get all.

    Args:
        model: a detector on its device; comes back in eval mode.
        samples: of the images, not for learning.
        protocol: says how they are loaded.

    Raises:
        UserError: loading failed, in whatever process.
    """
    model.eval()
    device = next(model.parameters()).device
    own: dict[int, Detections | Skipped] = {}
    problem: str | None = None
    rows = range(comm.rank(), len(samples), comm.world_size())
    keys = iter([[(0, row)] for row in rows])
    try:
        for row, (sample,) in zip(rows, load(samples, keys, protocol), strict=True):
            own[row] = sample if isinstance(sample, Skipped) else _in_one(model, sample, device)
    except UserError as error:
        problem = str(error)
    found: dict[int, Detections | Skipped] = {}
    for part, message in comm.all_gather_object((own, problem)):
        if message is not None:
            raise UserError(message)
        found |= part
    return [found[row] for row in range(len(samples))]


def _in_one(model: nn.Module, sample: Sample, device: torch.device) -> Detections:
    """Detections in one image, in the pixels of its file."""
    pixels, _ = sample.to(device)
    (result,) = model([pixels])
    result = {name: value.cpu() for name, value in result.items()}
    boxes = resize_boxes(result["boxes"], list(pixels.shape[-2:]), list(sample.size))
    masks = None
    if "masks" in result:
        masks = _run_lengths(region_masks(result["masks"], boxes, *sample.size))
    return Detections(boxes.numpy(), result["labels"].numpy() - 1, result["scores"].numpy(), masks)


def _run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    from pycocotools.mask import encode

    encoded: list[dict[str, Any]] = encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))
    return encoded


def training_draw(
    samples: Samples, keys: Callable[[int], Iterator[Any]], protocol: Protocol, skipped: dict[str, Skipped]
) -> Draw:
    """Batches of samples by step; images that could not be read are noted in ``skipped``."""

    def draw(first: int) -> Iterator[Any]:
        for batch in load(samples, keys(first), protocol):
            for sample in batch:
                if isinstance(sample, Sample):
                    skipped.update({item.path: item for item in sample.skipped})
            yield batch

    return draw
