"""What an evaluation leaves behind: a JSON record, each test image's prediction, and a table for the eye."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.evaluation.scoring import Scored, compare_with, format_table
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.files import write_atomic, write_json

FORMAT = 1

MOST_SHOWN = 10
"""Facts of an evaluation in the printed title; the record has all of them."""


def make_record(
    scored: list[Scored],
    *,
    name: str,
    weights: dict[str, Any],
    data: dict[str, Any],
    settings: dict[str, Any],
    notices: list[str],
) -> dict[str, Any]:
    """Everything about an evaluation but the predictions.

    Args:
        scored: the subject in question first, then its floors.
        name: of the evaluation.
        weights: ``path``, ``sha256`` and ``backbone`` (the record beside the weights).
        data: which images; for labelled ones ``train`` and ``test`` sections, ``held_out_of_train``, ``num_classes``,
            ``classes``.
        settings: those that the result depends on.
        notices: what the user should know.
    """
    first = scored[0]
    return {
        "format": FORMAT,
        "evaluation": name,
        "unit": "percent",
        "subjects": {row.name: _subject_record(row) for row in scored},
        "main": first.result.main,
        "differences": differences(scored),
        "step": weights["backbone"].get("step"),
        "weights": weights,
        "data": {
            **data,
            "train_images": first.result.train_images,
            "test_images": first.result.test_images,
            "skipped": {item.path: item.reason for item in first.result.skipped},
        },
        "settings": settings,
        "notices": notices,
        "versions": describe_environment(),
    }


def _subject_record(row: Scored) -> dict[str, Any]:
    return {
        "slug": row.slug,
        "metrics": row.result.metrics,
        "details": {key: value for key, value in row.result.details.items() if key != "notices"},
        "seconds": round(row.seconds, 2),
    }


def write_results(output_dir: Path, name: str, record: dict[str, Any], scored: list[Scored]) -> list[Path]:
    """``evaluation_<name>.npz`` and then ``.json``, each replaced as a whole; where they are, the record first."""
    arrays: dict[str, np.ndarray] = {}
    first = scored[0].result
    if first.labels is not None and first.item_ids is not None:
        arrays |= {"indices": first.item_ids, "labels": first.labels.numpy()}
    for row in scored:
        found = row.result
        if found.item_ids is not None:
            arrays[f"indices_{row.slug}"] = found.item_ids
        if found.predictions is not None and found.labels is not None:
            arrays[f"predictions_{row.slug}"] = found.predictions.numpy()
            arrays[f"correct_{row.slug}"] = (found.predictions == found.labels).numpy()
        elif found.items is not None:
            arrays[f"items_{row.slug}"] = found.items
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    stem = "evaluation_" + re.sub(r"[^\w.-]", "_", name)
    items, facts = output_dir / f"{stem}.npz", output_dir / f"{stem}.json"
    write_atomic(items, buffer.getvalue())
    write_json(facts, record)
    return [facts, items]


def summary(record: dict[str, Any], scored: list[Scored]) -> str:
    """What is printed."""
    data, settings = record["data"], record["settings"]
    # As the subject in question was evaluated: chosen values and defaults included, long tables left out.
    details = {key: value for key, value in scored[0].result.details.items() if key != "notices"}
    named = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in details.items()}
    shown = [f"{key} {text}" for key, text in named.items() if len(text) < 30 and details[key] is not None]
    options = ", ".join(shown[:MOST_SHOWN]) + (", ..." if len(shown) > MOST_SHOWN else "")
    held_out = ", held out of the training images" if data.get("held_out_of_train") else ""
    facts = [f"{data['test_images']:,d} test images{held_out}"]
    if data["train_images"]:
        facts.append(f"{data['train_images']:,d} training images")
    if "num_classes" in data:
        facts.append(f"{data['num_classes']} classes")
        facts.append(f"{settings['EVALUATE']['image_size']} px")
    step = "" if record["step"] is None else f", step {record['step']}"
    lines = [
        f"{record['evaluation']}{f' ({options})' if options else ''}: {', '.join(facts)}",
        f"weights: {record['weights']['path']}{step}",
        "",
        format_table(scored),
        "",
    ]
    lines += [f"note: {text}" for text in record["notices"]]
    if data["skipped"]:
        path, reason = next(iter(data["skipped"].items()))
        lines.append(f"note: {len(data['skipped'])} image(s) could not be read, such as {path}: {reason}")
    return "\n".join(lines)


def differences(scored: list[Scored]) -> dict[str, dict[str, float]]:
    """How far the first subject is ahead of each other, in points, with intervals; where they can be given."""
    found = {}
    for other in scored[1:]:
        interval = compare_with(scored[0], other)
        if interval is not None:
            ends = {"low": interval.low, "high": interval.high, "level": interval.level}
            found[other.name] = {"difference": interval.mean, **ends}
    return found
