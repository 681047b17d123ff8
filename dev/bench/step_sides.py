"""One side of ``step.py``: builds a network, then takes as many steps as each line of its standard input says.

    python dev/bench/step_sides.py SIDE CASE BATCH SETTING...

Prints one line of JSON when ready (``loss`` of a first step), then one for every line read: CPU and wall seconds of
the steps. ``lightly`` needs the package lightly (and timm for DINO), the other sides this project alone.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.config import load_settings
from vissl_like.data.normalise import Normalise
from vissl_like.records import Batch, Progress
from vissl_like.trainer.build import build_run
from vissl_like.trainer.signals import StopSignals

SIZES = (64, 64, 32, 32, 32, 32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARED = [
    "config.DATA.TRAIN={name: synthetic, count: 1024, size: 64}",
    "config.TRAIN.threads=1",
    "config.TRAIN.length=100 epochs",
    "config.DISTRIBUTED.device=cpu",
    "config.SCHEDULES.lr={name: constant}",
]
CASES = {
    "swav": [
        "config=base/swav",
        *SHARED,
        "config.MODEL.TRUNK.depth=18",
        "config.MODEL.HEAD={hidden_dim: 512, num_prototypes: 512, freeze_prototypes: 0 epochs}",
        "config.OPTIMIZER={name: sgd, base_lr: 0.1, momentum: 0.9, weight_decay: 1.0e-6, decay_vectors: true}",
    ],
    "dino": [
        "config=base/dino",
        *SHARED,
        "config.MODEL.TRUNK={size: tiny, patch_size: 8, image_size: 64, drop_path: 0.0}",
        "config.MODEL.HEAD={num_prototypes: 4096, freeze_last_layer: 0 epochs}",
        "config.OPTIMIZER={base_lr: 5.0e-4, weight_decay: 0.01, decay_vectors: true}",
        "config.SCHEDULES.weight_decay=null",
        "config.TRAIN.clip=whole",
        "config.LOSS.teacher_temperature_warmup=0 epochs",
    ],
}
Step = Callable[[list[Tensor], int], float]


def batches(batch: int) -> list[list[Tensor]]:
    """Four batches of noise, uint8, the same on every side."""
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=generator) for side in SIZES]
        for _ in range(4)
    ]


def run_of(case: str, batch: int, changes: list[str]) -> Any:
    """This project's run of a case; its random start is the same in every process."""
    base = [f"config.TRAIN.global_batch={batch}", f"config.OPTIMIZER.base_batch={batch}"]
    loaded = load_settings([*CASES[case], *base, *changes])
    torch.set_num_threads(1)
    return build_run(loaded, Path(tempfile.mkdtemp()), StopSignals(), resuming=False)


def ours(case: str, batch: int, changes: list[str]) -> Step:
    """The trainer's step, normalisation of the pixels included."""
    run = run_of(case, batch, changes)
    plan, index = run.parts.plan, torch.arange(batch)

    def step(views: list[Tensor], number: int) -> float:
        progress = Progress(number, plan.total_steps, plan.steps_per_epoch)
        return run.parts.step([Batch(views, index)], progress).loss

    return step


def lightly(case: str, batch: int, changes: list[str]) -> Step:
    """lightly's parts in a plain loop, as in its examples, on pixels that are normalised beforehand."""
    model = run_of(case, batch, ["config.TRAIN.precision=fp32", *changes]).parts.model
    return (lightly_swav if case == "swav" else lightly_dino)(model)


def take_over(mine: nn.Module, theirs: nn.Module) -> None:
    """Weights of linear layers in the order of the modules; a bias that only one of them has begins at 0."""
    sources = [layer for layer in theirs.modules() if isinstance(layer, nn.Linear)]
    layers = [layer for layer in mine.modules() if isinstance(layer, nn.Linear) and "weight" in layer._parameters]
    for layer, source in zip(layers, sources, strict=True):
        layer.weight.data.copy_(source.weight)
        if layer.bias is not None:
            layer.bias.data.zero_() if source.bias is None else layer.bias.data.copy_(source.bias)


def lightly_swav(model: Any) -> Step:
    """SwAV with torchvision's ResNet-18."""
    import torchvision
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

    trunk = torchvision.models.resnet18()
    trunk.fc = nn.Identity()
    trunk.load_state_dict(model.trunk.state_dict())
    head, prototypes, criterion = SwaVProjectionHead(512, 512, 128), SwaVPrototypes(128, 512), SwaVLoss()
    take_over(head, model.head.projection_head)
    take_over(prototypes, model.head.prototypes)
    parts = nn.ModuleList([trunk, head, prototypes])
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-6)

    def step(views: list[Tensor], number: int) -> float:
        prototypes.normalize()
        scores = [prototypes(nn.functional.normalize(head(trunk(view)), dim=1)) for view in views]
        loss = criterion(scores[:2], scores[2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def lightly_dino(model: Any) -> Step:
    """DINO with timm's ViT-Ti/8."""
    import timm
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    trunk = timm.create_model(
        "vit_tiny_patch16_224", patch_size=8, img_size=64, dynamic_img_size=True, num_classes=0, pretrained=False
    )
    trunk.load_state_dict(model.trunk.state_dict())
    head, teacher_head = (DINOProjectionHead(192, 2048, 256, 4096) for _ in range(2))
    take_over(head, model.head.mlp)
    head.last_layer.weight_v.data.copy_(model.head.last_layer.weight_v)
    teacher_head.load_state_dict(head.state_dict())
    teacher = copy.deepcopy(trunk)
    nn.ModuleList([teacher, teacher_head]).requires_grad_(False)
    criterion = DINOLoss(4096)
    parameters = [p for p in [*trunk.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)

    def step(views: list[Tensor], number: int) -> float:
        update_momentum(trunk, teacher, m=0.996)
        update_momentum(head, teacher_head, m=0.996)
        with torch.no_grad():
            targets = [teacher_head(teacher(view)) for view in views[:2]]
        loss = criterion(targets, [head(trunk(view)) for view in views], epoch=1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    """Serves one side."""
    side, case, batch, changes = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    data = batches(batch)
    if side == "lightly":
        normalise = Normalise(MEAN, STD, torch.device("cpu"))
        data = [[normalise(view) for view in views] for views in data]
    step = (lightly if side == "lightly" else ours)(case, batch, changes)
    answer: dict[str, float] = {"loss": step(data[0], 0)}
    done = 1
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step(data[done % len(data)], done)
            done += 1
        answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        answer["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
