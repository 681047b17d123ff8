"""What a suite shows: one table over everything, one for each entry, and the page."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vissl_like.evaluation.record import differences
from vissl_like.evaluation.scoring import Scored
from vissl_like.utils.environment import describe_environment
from vissl_like.visualize.bars import result_bars
from vissl_like.visualize.page import Message, Page, ResultRow, ResultTable, Section
from vissl_like.visualize.story import readable

REFERENCE = "reported"


@dataclass
class Cell:
    """One entry of one checkpoint: results (the trained network first, then its floors), or why there are none.

    Attributes:
        entry, checkpoint: names.
        scored: results.
        problem: why there are none.
        notices: what the user should know.
        references: percentages from elsewhere.
        made: weights, images and settings that the results come from.
    """

    entry: str
    checkpoint: str
    scored: list[Scored] = field(default_factory=list)
    problem: str = ""
    notices: list[str] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        rows = {
            row.name: {
                "metrics": row.result.metrics,
                "main": row.result.main,
                "details": {key: value for key, value in row.result.details.items() if key != "notices"},
                "train_images": row.result.train_images,
                "test_images": row.result.test_images,
                "skipped": len(row.result.skipped),
                "seconds": round(row.seconds, 2),
                "written": row.written,
                "versions": row.versions,
            }
            for row in self.scored
        }
        return {
            "entry": self.entry,
            "checkpoint": self.checkpoint,
            "problem": self.problem or None,
            "subjects": rows,
            "differences": differences(self.scored) if self.scored else {},
            "references": self.references,
            **self.made,
            "notices": [*self.notices, *_remarks(self)],
        }


@dataclass(frozen=True)
class Line:
    """A line of a table: a network (of a checkpoint) or a floor with its result of one entry."""

    name: str
    is_floor: bool
    scored: Scored


def lines_of(cells: list[Cell]) -> list[Line]:
    """Lines of one entry: checkpoints, then floors; floors that are the same for all checkpoints stand once."""
    networks = [Line(cell.checkpoint, False, cell.scored[0]) for cell in cells if cell.scored]
    floors: dict[str, list[tuple[str, Scored]]] = {}
    for cell in cells:
        for row in cell.scored[1:]:
            floors.setdefault(row.name, []).append((cell.checkpoint, row))
    found = []
    for name, rows in floors.items():
        if all(row.result.metrics == rows[0][1].result.metrics for _, row in rows):
            found.append(Line(name, True, rows[0][1]))
        else:
            found += [Line(f"{name}, {checkpoint}", True, row) for checkpoint, row in rows]
    return networks + found


def by_entry(cells: list[Cell]) -> dict[str, list[Cell]]:
    """Cells of each entry, in the order in which entries were run."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.entry, []).append(cell)
    return found


def overview(cells: list[Cell]) -> tuple[dict[str, dict[str, float]], list[str], dict[str, str]]:
    """What counts of every entry.

    Returns:
        percentages by line and entry, the names of the lines that are floors, and what is counted by entry.
    """
    values: dict[str, dict[str, float]] = {}
    floors: list[str] = []
    counted: dict[str, str] = {}
    for entry, group in by_entry(cells).items():
        for line in lines_of(group):
            result = line.scored.result
            values.setdefault(line.name, {})[entry] = result.metrics[result.main]
            # Floors answer without features: theirs may be another metric.
            counted.setdefault(entry, result.main)
            if line.is_floor and line.name not in floors:
                floors.append(line.name)
        for name, value in group[0].references.items():
            label = f"{REFERENCE}: {name}"
            values.setdefault(label, {})[entry] = value
            if label not in floors:
                floors.append(label)
    ordered = {name: row for name, row in values.items() if name not in floors}
    return {**ordered, **{name: values[name] for name in floors}}, floors, counted


def markdown(cells: list[Cell]) -> str:
    """One table over everything, and one for each entry."""
    values, _, counted = overview(cells)
    parts = []
    if values:
        heading = ["", *(f"{entry} ({main})" for entry, main in counted.items())]
        rows = []
        for name, found in values.items():
            rows.append([name, *(f"{found[entry]:.1f}" if entry in found else "-" for entry in counted)])
        parts.append(f"## All\n{_rows(heading, rows)}")
    for table in entry_tables(cells):
        rows = [[row.name, *row.cells] for row in table.rows]
        notes = "".join(f"\n{note}\n" for note in table.notes)
        parts.append(f"## {table.title}\n{_rows(['', *table.columns], rows)}{notes}")
    for cell in cells:
        if cell.problem:
            parts.append(f"## {cell.entry}, {cell.checkpoint}: not possible\n{cell.problem}\n")
    return "\n".join(parts)


def _rows(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def entry_tables(cells: list[Cell]) -> list[ResultTable]:
    """A table for each entry that has results: all metrics, and how far the first network is ahead of each line."""
    tables = []
    for entry, group in by_entry(cells).items():
        lines = lines_of(group)
        if not lines:
            continue
        first = lines[0]
        metrics = list(dict.fromkeys(metric for line in lines for metric in line.scored.result.metrics))
        ahead = differences([Scored(line.name, line.scored.result) for line in lines])
        rows = []
        for line in lines:
            found = line.scored.result.metrics
            values = [f"{found[metric]:.1f}" if metric in found else "-" for metric in metrics]
            gap = "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**ahead[line.name]) if line.name in ahead else ""
            rows.append(ResultRow(line.name, [*values, gap], not line.is_floor))
        for name, value in group[0].references.items():
            main = first.scored.result.main
            cells_of = [f"{value:.1f}" if metric == main else "-" for metric in metrics]
            rows.append(ResultRow(f"{REFERENCE}: {name}", [*cells_of, ""]))
        tables.append(ResultTable(entry, [*metrics, f"{first.name} - this [95 %]"], rows, _notes(group)))
    return tables


def _notes(group: list[Cell]) -> list[str]:
    result = next(cell for cell in group if cell.scored).scored[0].result
    options = ", ".join(
        f"{key} {value}" for key, value in result.details.items() if key != "notices" and len(str(value)) < 30
    )
    images = f"{result.test_images:,d} test images" if result.test_images else ""
    learnt = f"{result.train_images:,d} training images" if result.train_images else ""
    facts = ", ".join(part for part in (options, images, learnt) if part)
    remarks = [f"{cell.checkpoint}: {text}" for cell in group for text in [*cell.notices, *_remarks(cell)]]
    skipped = sum(len(cell.scored[0].result.skipped) for cell in group if cell.scored)
    unread = [f"{skipped} image(s) could not be read"] if skipped else []
    return [f"What counts: {result.main}. {facts}.", *unread, *dict.fromkeys(remarks)]


def _remarks(cell: Cell) -> list[str]:
    return [f"{row.name}: {text}" for row in cell.scored for text in row.result.details.get("notices", [])]


def suite_page(folder: Path, cells: list[Cell], total: int) -> Page:
    """The page about everything so far."""
    values, floors, _ = overview(cells)
    chart = result_bars(values, floors)
    failed = [cell for cell in cells if cell.problem]
    done = len(cells) - len(failed)
    level = "error" if failed else "info" if len(cells) == total else "warning"
    told = [(cell, "; ".join(cell.notices)) for cell in cells]
    seconds = sum(row.seconds for cell in cells for row in cell.scored)
    return Page(
        title=f"{folder.name}: what features are worth",
        subtitle=f"{len(by_entry(cells))} evaluation(s) of {len({cell.checkpoint for cell in cells})} checkpoint(s)",
        status=f"{done} of {total} done" + (f", {len(failed)} not possible" if failed else ""),
        status_level=level,
        facts=[("Computing time", f"{seconds:.0f} s"), ("Folder", str(folder))],
        tables=entry_tables(cells),
        tables_missing="Nothing has been measured yet.",
        sections=[Section("At a glance", [] if chart is None else [chart], "Nothing has been measured yet.")],
        messages=[Message(f"{cell.entry}, {cell.checkpoint}", "error", cell.problem) for cell in failed],
        settings=[
            ("Weights and remarks", "\n".join(f"{cell.entry}, {cell.checkpoint}: {said}" for cell, said in told))
        ],
        versions=readable(describe_environment()),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())} from {folder}.",
    )
