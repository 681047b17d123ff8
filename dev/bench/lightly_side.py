"""The other side of ``quality_against_lightly.py``: trains with lightly's parts in a plain PyTorch loop.

    python dev/bench/lightly_side.py FOLDER config=quick/fashion_mnist config.SEED=0

Takes the same settings as ``vissl-like``. From this project come the numbers of the settings, the images before any
augmentation, the encoder with its first weights, and the values of the schedules; from lightly (PyPI, MIT) come the
augmentations, the heads, the objectives and the teacher's update; the loop, the loader and the optimizer are torch's.
Writes ``backbone.safetensors`` and ``backbone.json`` into FOLDER. Settings that lightly cannot follow are refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly_methods import METHODS, options
from torch import Tensor, nn

from vissl_like.config import Plan, load_settings, make_plan
from vissl_like.data.datasets.base import ImageDataset
from vissl_like.records import Progress
from vissl_like.registry import OPTIMIZERS, SCHEDULES
from vissl_like.trainer.components import build, build_dataset, build_trunk, plain_values
from vissl_like.trainer.rng import seed_everything
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import write_atomic, write_json


class Views(torch.utils.data.Dataset):
    """Augmented views of the project's images."""

    def __init__(self, images: ImageDataset, transform: Callable[..., Any]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.images.read(index))


def make_optimizer(section: Any, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """torch's own optimizer; decayed tensors in the first group.

    Raises:
        UserError: it is neither SGD nor AdamW.
    """
    chosen = options(OPTIMIZERS, section)
    parameters, decay = [p for p in model.parameters() if p.requires_grad], chosen["weight_decay"]
    groups = [
        {"params": [p for p in parameters if chosen["decay_vectors"] or p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if not chosen["decay_vectors"] and p.ndim <= 1], "weight_decay": 0.0},
    ]
    if chosen["name"] == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=chosen["momentum"], nesterov=chosen["nesterov"])
    if chosen["name"] == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(chosen["beta1"], chosen["beta2"]), eps=chosen["eps"])
    raise UserError(f"lightly's side of the comparison has no optimizer {chosen['name']!r}, only sgd and adamw")


def clip(parameters: list[nn.Parameter], train: Any) -> None:
    """Limits gradients as TRAIN.clip_norm and TRAIN.clip say."""
    if train.clip_norm is not None:
        for group in [[p] for p in parameters] if train.clip == "tensor" else [parameters]:
            nn.utils.clip_grad_norm_(group, train.clip_norm)


def train(settings: Any, plan: Plan, images: ImageDataset, method: Any) -> None:
    """The plain loop."""
    loader = torch.utils.data.DataLoader(
        Views(images, method.transform),
        plan.global_batch,
        shuffle=True,
        drop_last=True,
        num_workers=settings.DATA.WORKERS,
    )
    optimizer = make_optimizer(settings.OPTIMIZER, method.trained, plan.peak_lr)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    schedules = {"lr": (build(SCHEDULES, settings.SCHEDULES.lr, plan.peak_lr), optimizer.param_groups)}
    if settings.SCHEDULES.weight_decay is not None:
        decay = build(
            SCHEDULES, settings.SCHEDULES.weight_decay, options(OPTIMIZERS, settings.OPTIMIZER)["weight_decay"]
        )
        schedules["weight_decay"] = (decay, optimizer.param_groups[:1])
    step = 0
    while step < plan.total_steps:
        for views in loader:
            progress = Progress(step, plan.total_steps, plan.steps_per_epoch)
            for key, (schedule, groups) in schedules.items():
                for group in groups:
                    group[key] = schedule(progress)
            loss = method.loss(views, progress)
            optimizer.zero_grad()
            loss.backward()
            clip(parameters, settings.TRAIN)
            method.before_update(progress)
            optimizer.step()
            method.after_update(progress)
            step += 1
            if step % plan.steps_per_epoch == 0 or step == plan.total_steps:
                print(f"lightly: step {step}/{plan.total_steps}  loss {loss.item():.4f}", flush=True)
            if step == plan.total_steps:
                break


def main(arguments: list[str] | None = None) -> int:
    """Trains and writes the encoder; 0 when done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("settings", nargs="+", help="config=... and config.KEY=... as for vissl-like")
    given = parser.parse_args(arguments)
    try:
        import lightly
        from safetensors.torch import save
    except ImportError as error:
        print(f"error: this side needs the package lightly (pip install lightly): {error}", file=sys.stderr)
        return 2
    try:
        settings = load_settings(given.settings).resolved
        if settings.LOSS.name not in METHODS:
            raise UserError(
                f"there is no lightly side for LOSS.name = {settings.LOSS.name}, only for {sorted(METHODS)}"
            )
        torch.set_num_threads(settings.TRAIN.threads or 1)
        seed_everything(settings.SEED, 0)  # as the project does: the encoder starts from the same weights on both sides
        images = build_dataset(settings.DATA.TRAIN)
        plan = make_plan(settings, len(images), 1, "cpu", False, 1)
        trunk = build_trunk(settings.MODEL.TRUNK, images.channels)
        normalize = {"mean": list(images.mean), "std": list(images.std)}
        method = METHODS[settings.LOSS.name](settings, trunk, plan, normalize)
        train(settings, plan, images, method)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arch = plain_values(settings.MODEL.TRUNK)
    record = {
        "arch": arch.pop("name"),
        "arch_options": arch,
        "channels": images.channels,
        "feature_dim": trunk.feature_dim,
        **normalize,
        "method": settings.LOSS.name,
        "source": f"lightly {lightly.__version__}",
        "step": plan.total_steps,
    }
    given.folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.contiguous() for key, value in method.encoder.state_dict().items()}
    write_atomic(given.folder / "backbone.safetensors", save(weights))
    write_json(given.folder / "backbone.json", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
