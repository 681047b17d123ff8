"""From the records of a run to the texts and tables of its page; nothing is computed anew."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vissl_like.visualize.curves import Records, series
from vissl_like.visualize.page import Message, ResultRow, ResultTable

SUBJECT = "trained"


def newest(records: Records, kind: str) -> Mapping[str, Any]:
    """The last record of a kind, empty if there is none."""
    return next((record for record in reversed(records) if record.get("kind") == kind), {})


def status_of(records: Records) -> tuple[str, str]:
    """How the run ended, in words, and a level (info, warning, error)."""
    if not records:
        return "There is no record of a training run in this folder.", "warning"
    start = newest(records, "run_start")
    last = next((r for r in reversed(records) if r.get("kind") in ("run_start", "run_end", "error")), {})
    where = f"step {last_step(records):,d}" + (f" of {start['total_steps']:,d}" if "total_steps" in start else "")
    if last.get("kind") == "error":
        return f"The run died at {where}: {last.get('error', '')} {last.get('reason', '')}".strip(), "error"
    if last.get("kind") == "run_end":
        reason = last.get("stop_reason")
        if reason:
            return f"The run was stopped at {where}: {reason}. The same command goes on from there.", "warning"
        return f"The run is finished: {where}.", "info"
    return f"The run has no end: it is still going, or was killed. Last record: {where}.", "warning"


def facts_of(records: Records) -> list[tuple[str, str]]:
    """Numbers worth knowing at a glance, as ``(label, text)``."""
    start, facts = newest(records, "run_start"), []
    plan = start.get("plan") or {}
    if plan:
        facts += [
            ("Training images", f"{plan['dataset_size']:,d}"),
            ("Length", f"{plan['total_steps']:,d} steps, {plan['epochs']:.4g} epochs"),
            ("Images seen", f"{last_step(records) * plan['global_batch']:,d} of {plan['images_total']:,d}"),
            ("Batch", f"{plan['global_batch']:,d} on {plan['world_size']} process(es)"),
            ("Peak learning rate", f"{plan['peak_lr']:.4g}"),
            ("Precision", str(plan["precision"])),
        ]
    seconds = training_seconds(records)
    if seconds:
        facts.append(("Time from start to end", duration_text(seconds)))
    _, speed = series(records, "step", "images_per_s")
    if len(speed):
        facts.append(("Speed", f"{np.median(speed):.4g} images/s"))
    steps, losses = series(records, "step", "loss")
    if len(steps):
        trivial = start.get("trivial_loss")
        note = f" (trivial value {trivial:.4g})" if trivial is not None else ""
        facts.append(("Last loss", f"{losses[-1]:.4g}{note}"))
    steps, accuracy = series(records, "knn", "top1")
    if len(steps):
        facts.append(("Last k-NN while training", f"{accuracy[-1]:.1f} % at step {steps[-1]:.0f}"))
    skipped = {record.get("path") for record in records if record.get("kind") == "skipped_image"}
    if skipped:
        facts.append(("Unreadable images", f"{len(skipped):,d}"))
    return facts


def last_step(records: Records) -> int:
    """Steps done according to the records."""
    return max((int(record.get("step", 0)) for record in records), default=0)


def training_seconds(records: Records) -> float:
    """Seconds between start and last record, summed over the starts of a resumed run."""
    total, begin, last = 0.0, None, 0.0
    for record in records:
        now = float(record.get("time", 0.0))
        if record.get("kind") == "run_start":
            total += last - begin if begin is not None else 0.0
            begin = now
        last = now
    return total + (last - begin if begin is not None else 0.0)


def duration_text(seconds: float) -> str:
    """``48 s``, ``9 min 6 s``, ``3 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def messages_of(records: Records) -> list[Message]:
    """What was said, warnings and errors included, and the images that could not be read (first twenty)."""
    found, unreadable = [], 0
    for record in records:
        kind = record.get("kind")
        when = f"step {record.get('step', 0)}, {clock(float(record.get('time', 0.0)))}"
        if kind == "message":
            found.append(Message(when, str(record.get("level", "info")), str(record.get("text", ""))))
        elif kind == "error":
            found.append(Message(when, "error", f"{record.get('error', '')}: {record.get('reason', '')}"))
        elif kind == "skipped_image":
            unreadable += 1
            if unreadable <= 20:
                text = f"could not be read: {record.get('path')} ({record.get('reason')})"
                found.append(Message(when, "warning", text))
    if unreadable > 20:
        found.append(Message("", "warning", f"{unreadable - 20} more images could not be read; see events.jsonl"))
    return found


def clock(seconds: float) -> str:
    """A moment in UTC, ``2030-01-31 17:05:09``."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def table_of(evaluation: Mapping[str, Any], newest_step: int | None = None) -> ResultTable:
    """A result table from an evaluation's record.

    Args:
        evaluation: contents of ``evaluation_<name>.json``.
        newest_step: of the newest checkpoint, to say when the evaluation is of an older one.
    """
    subjects, data = evaluation["subjects"], evaluation["data"]
    first = next(iter(subjects))
    metrics = list(subjects[first]["metrics"])
    rows = []
    for name, facts in subjects.items():
        cells = [f"{facts['metrics'][metric]:.1f}" if metric in facts["metrics"] else "-" for metric in metrics]
        difference = evaluation.get("differences", {}).get(name)
        cells.append("" if difference is None else "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**difference))
        rows.append(ResultRow(name, cells, name == first))
    held = ", held out of the training images" if data.get("held_out_of_train") else ""
    images, main = data["test_images"], subjects[first]["metrics"][evaluation.get("main", "top1")] / 100
    details = subjects[first].get("details", {})
    options = ", ".join(f"{key} {value}" for key, value in details.items() if len(str(value)) < 30)
    facts = [f"{images:,d} test images{held}"]
    if data["train_images"]:
        facts.append(f"{data['train_images']:,d} training images")
    if "num_classes" in data:
        facts.append(f"{data['num_classes']} classes")
    spread = ""
    if evaluation.get("main", "top1") == "top1":  # a share of images; other measures spread otherwise
        spread = f"; one standard error of the first is {100 * math.sqrt(main * (1 - main) / images):.1f} points"
    notes = [
        f"{', '.join(facts)}. Percentages{spread}. Differences are in points, with paired 95 % intervals over what was "
        "tested, for this one run.",
        *([f"{options}."] if options else []),
        *evaluation.get("notices", []),
    ]
    step = evaluation.get("step")
    if newest_step is not None and step is not None and step != newest_step:
        notes.insert(0, f"These weights are of step {step}; the newest checkpoint is of step {newest_step}.")
    title = f"{evaluation['evaluation']}" + (f", weights of step {step:,d}" if step is not None else "")
    return ResultTable(title, [*(_heading(metric) for metric in metrics), f"{first} - this [95 %]"], rows, notes)


def floors_of(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """What counts of everything in an evaluation's record but its first subject."""
    main = evaluation.get("main", "top1")
    return {
        name: facts["metrics"][main]
        for number, (name, facts) in enumerate(evaluation.get("subjects", {}).items())
        if number and main in facts["metrics"]
    }


def _heading(metric: str) -> str:
    return {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}.get(
        metric, metric.replace("top1_k", "top-1, k=")
    )


def readable(values: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """A mapping as rows of text."""
    return [(str(key), str(value)) for key, value in values.items()]
