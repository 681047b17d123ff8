"""What a run says about itself before its first step."""

from __future__ import annotations

import os
from typing import Any

import torch

from vissl_like.config import Plan
from vissl_like.data import jpeg
from vissl_like.data.datasets.base import ImageDataset
from vissl_like.data.loader import count_workers, serves_threads
from vissl_like.data.transforms import native
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.distributed import comm
from vissl_like.losses.base import Loss


def banner(
    settings: Any,
    plan: Plan,
    dataset: ImageDataset,
    transform: ViewTransform,
    loss: Loss,
    weights: str,
    device: torch.device,
    taught: bool,
) -> list[tuple[str, str]]:
    """Rows ``(label, text)``; none on other processes than the main one.

    Args:
        settings, plan, dataset, transform, loss, device: of the run.
        weights: where they come from.
        taught: a teacher's trunk is what is kept.
    """
    if not comm.is_main():
        return []
    trivial, wanted = loss.trivial_value(), settings.DISTRIBUTED.processes
    facts = dataset.describe()
    size = f", {facts['width'][2]}x{facts['height'][2]} px (median)" if facts["width"] else ""
    rows = [
        ("Data", f"{facts['images']} images, labels {facts['labels']}, {facts['skipped']} skipped at scan"),
        ("First images", f"{', '.join(facts['first_paths'])}; {', '.join(facts['formats'])}{size}"),
        (
            "Processes",
            f"wanted {max(wanted, int(os.environ.get('WORLD_SIZE', 1)))}, found {plan.world_size}, on {device.type}",
        ),
        *[(given, f"{rule} -> {derived}") for given, rule, derived in plan.rows],
        *_loading(settings, dataset, transform, device, "JPEG" in facts["formats"]),
        ("Weights", weights),
        ("Measured, kept", "the teacher's trunk" if taught else "the trained trunk"),
        ("Trivial loss", f"{trivial:.4f} (a loss that stays here means collapse)" if trivial is not None else "none"),
    ]
    if settings.DISTRIBUTED.sharding == "full":
        held = f"each of {plan.world_size} processes holds its rows of the weights, gradients and optimizer state"
        rows.append(("Sharding", held if comm.active() else "full was asked for; one process has nothing to divide"))
    if settings.MODEL.SYNC_BATCH_NORM_GROUP is not None:
        joined = f"statistics of {settings.MODEL.SYNC_BATCH_NORM_GROUP} neighbouring processes each"
        rows.append(("BatchNorm", joined if comm.active() else "one process: its SYNC_BATCH_NORM_GROUP is itself"))
    if plan.accumulation > 1 and loss.accumulation_note:
        rows.append(("Accumulation", f"not the same as one big batch: {loss.accumulation_note}"))
    return rows + [("Remark", text) for text in loss.advice()]


def _loading(
    settings: Any, dataset: ImageDataset, transform: ViewTransform, device: torch.device, jpegs: bool
) -> list[tuple[str, str]]:
    """Who loads images, and with what."""
    threads = serves_threads(dataset, transform, settings.DATA.START_METHOD, device.type == "cuda")
    workers = count_workers(settings.DATA.WORKERS, comm.local_world_size())
    kind = ("thread" if workers == 1 else "threads") if threads else "process" if workers == 1 else "processes"
    who = f"{workers} {kind}" if workers else "no workers, images when they are needed"
    return [("Loading", f"{who}; {native.why()}"), *([("JPEG", jpeg.why())] if jpegs else [])]
