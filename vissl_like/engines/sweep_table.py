"""The table of a sweep: what each point's folder tells about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vissl_like.utils.event_file import read_events


def row_of(name: str, varied: dict[str, str], folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What is known of a point: ``state``, all ``metrics``, and ``columns``, those that stand in the table.

    Args:
        name: of the point.
        varied: what is different from the other points, by setting.
        folder: its OUTPUT_DIR.
        record: what its last run left about its end.
    """
    checkpoints = sorted(folder.glob("checkpoints/step_*/manifest.json"), key=lambda file: int(file.parent.name[5:]))
    manifest = read_json(checkpoints[-1]) if checkpoints else {}
    metrics = {str(key): value for key, value in manifest.get("metrics", {}).items() if isinstance(value, float)}
    loss = last_loss(folder)
    metrics = metrics if loss is None else {"loss": loss, **metrics}
    columns = [key for key in metrics if not key.startswith("epoch.")]
    for file in sorted(folder.glob("evaluation_*.json")):
        content = read_json(file)
        subjects = content.get("subjects") or {}
        if subjects:
            measured, first = content.get("evaluation", file.stem), next(iter(subjects.values()))
            numbers = {key: value for key, value in first.get("metrics", {}).items() if isinstance(value, (int, float))}
            metrics.update({f"{measured}.{key}": value for key, value in numbers.items()})
            columns.append(f"{measured}.{content.get('main')}")
    step = manifest.get("step")
    if record.get("status") == 0:
        state = "done"
    elif record.get("problem"):
        state = f"failed: {' '.join(record['problem'].split())[:100]}"
    elif record:
        state = f"ended with status {record['status']}"
    else:
        state = "not begun" if step is None else "not finished"
    return {
        "name": name,
        "varied": varied,
        "state": state,
        "step": step,
        "metrics": metrics,
        "columns": [key for key in dict.fromkeys(columns) if key in metrics],
        "folder": str(folder),
    }


def last_loss(folder: Path) -> float | None:
    """Mean training loss over the last tenth of the steps that were recorded, None without a record."""
    try:
        records = read_events(folder / "events.jsonl", "step")
    except OSError:
        return None
    begin = 0.9 * max((record["step"] for record in records), default=0)
    losses = [record["loss"] for record in records if record["step"] >= begin and isinstance(record.get("loss"), float)]
    return sum(losses) / len(losses) if losses else None


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table: a line for each point, its settings, its state and its main numbers."""
    settings = list(dict.fromkeys(key for row in rows for key in row["varied"]))
    numbers = list(dict.fromkeys(name for row in rows for name in row["columns"]))
    lines = [["point", *settings, "state", "step", *numbers]]
    for row in rows:
        values = [row["varied"].get(key, "") for key in settings]
        values += [row["state"], "" if row["step"] is None else str(row["step"])]
        values += [f"{row['metrics'][name]:.4g}" if name in row["metrics"] else "" for name in numbers]
        lines.append([row["name"], *values])
    cells = [[text.replace("|", "\\|") for text in line] for line in lines]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
