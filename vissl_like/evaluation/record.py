"""What an evaluation leaves behind: a JSON record, each test image's prediction, and a table for the eye."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.evaluation.base import Features
from vissl_like.evaluation.scoring import Scored, compare_with, format_table
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.files import write_atomic, write_json

FORMAT = 1


def make_record(
    scored: list[Scored],
    train: Features,
    test: Features,
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
        train, test: features of the last subject, for their numbers and the images that could not be read.
        name: of the evaluation.
        weights: ``path``, ``sha256`` and ``backbone`` (the record beside the weights).
        data: ``train`` and ``test`` sections, ``held_out_of_train``, ``num_classes``, ``classes``.
        settings: those that the result depends on.
        notices: what the user should know.
    """
    first = scored[0]
    return {
        "format": FORMAT,
        "evaluation": name,
        "unit": "percent",
        "subjects": {row.name: _subject_record(row) for row in scored},
        "differences": {other.name: _interval(first, other) for other in scored[1:]},
        "step": weights["backbone"].get("step"),
        "weights": weights,
        "data": {
            **data,
            "train_images": len(train),
            "test_images": len(test),
            "skipped": {item.path: item.reason for part in (train, test) for item in part.skipped},
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


def write_results(output_dir: Path, name: str, record: dict[str, Any], scored: list[Scored]) -> None:
    """``evaluation_<name>.npz`` and then ``.json``, each replaced as a whole."""
    arrays: dict[str, np.ndarray] = {"indices": scored[0].indices.numpy(), "labels": scored[0].labels.numpy()}
    for row in scored:
        arrays[f"predictions_{row.slug}"] = row.result.predictions.numpy()
        arrays[f"correct_{row.slug}"] = row.correct
        arrays[f"indices_{row.slug}"] = row.indices.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    stem = "evaluation_" + re.sub(r"[^\w.-]", "_", name)
    write_atomic(output_dir / f"{stem}.npz", buffer.getvalue())
    write_json(output_dir / f"{stem}.json", record)


def summary(record: dict[str, Any], scored: list[Scored]) -> str:
    """What is printed."""
    data, settings = record["data"], record["settings"]
    # As the subject in question was evaluated: chosen values and defaults included, long tables left out.
    facts = {key: value for key, value in scored[0].result.details.items() if key != "notices"}
    options = ", ".join(f"{key} {value}" for key, value in facts.items() if len(str(value)) < 30)
    held_out = ", held out of the training images" if data["held_out_of_train"] else ""
    step = "" if record["step"] is None else f", step {record['step']}"
    lines = [
        f"{record['evaluation']}{f' ({options})' if options else ''}: {data['test_images']:,d} test images{held_out}, "
        f"{data['train_images']:,d} training images, {data['num_classes']} classes, "
        f"{settings['EVALUATE']['image_size']} px",
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


def _interval(first: Scored, other: Scored) -> dict[str, float]:
    interval = compare_with(first, other)
    return {"difference": interval.mean, "low": interval.low, "high": interval.high, "level": interval.level}
