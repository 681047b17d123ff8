"""What a suite shows: what counts of everything, differences with intervals, a table for each entry, and the page."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vissl_like.engines.suite_cells import Cell, remarks_of
from vissl_like.engines.suite_jobs import CHANCE, REFERENCE
from vissl_like.evaluation.names import PIXELS, RANDOM
from vissl_like.evaluation.scoring import Scored
from vissl_like.utils.environment import describe_environment
from vissl_like.visualize.bars import result_bars
from vissl_like.visualize.page import Message, Page, ResultRow, ResultTable, Section
from vissl_like.visualize.story import readable

NUMBER = re.compile(r"[-+]?\d|-$")
GAP = "{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
CAPTION = "Of floors that differ between checkpoints, and of several reported figures, the highest."
_NAMED_FIGURES = 2


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


def overview(cells: list[Cell]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """What counts of every entry, for the chart; of floors that differ, and of what others reported, the highest.

    Returns:
        percentages by name and entry, and the names that are no networks of the suite.
    """
    networks: dict[str, dict[str, float]] = {}
    floors: dict[str, dict[str, float]] = {kind: {} for kind in (RANDOM, PIXELS, CHANCE)}
    reported: dict[str, float] = {}
    for cell in cells:
        if cell.scored:
            networks.setdefault(cell.checkpoint, {})[cell.entry] = _counted(cell.scored[0])
        for kind, row in _floors(cell).items():
            floors[kind][cell.entry] = max(_counted(row), floors[kind].get(cell.entry, 0.0))
        for _, value in cell.counted_elsewhere() if cell.scored else []:
            reported[cell.entry] = max(value, reported.get(cell.entry, value))
    grey = {name: row for name, row in {**floors, REFERENCE: reported}.items() if row}
    return {**networks, **grey}, list(grey)


def values_table(cells: list[Cell]) -> ResultTable:
    """What counts of every entry: a row for each, a column for each checkpoint and each kind of floor."""
    checkpoints = list(dict.fromkeys(cell.checkpoint for cell in cells))
    floors = [kind for kind in (RANDOM, PIXELS, CHANCE) if any(kind in _floors(cell) for cell in cells)]
    reported = any(cell.counted_elsewhere() for cell in cells)
    rows = []
    for entry, group in by_entry(cells).items():
        done = [cell for cell in group if cell.scored]
        own = {cell.checkpoint: _counted(cell.scored[0]) for cell in done}
        values = [f"{own[name]:.1f}" if name in own else "-" for name in checkpoints]
        for kind in floors:
            values.append(_range([_counted(found[kind]) for found in map(_floors, done) if kind in found]))
        if reported:
            values.append(_elsewhere((done or group)[0].counted_elsewhere()))
        rows.append(ResultRow(entry, [done[0].scored[0].result.main if done else "-", *values]))
    columns = ["counts", *checkpoints, *floors, *([REFERENCE] if reported else [])]
    shared = "Two numbers: checkpoints have floors of their own, the lowest and the highest of which are shown."
    first = 1 + len(checkpoints)
    split = any(".." in cell for row in rows for cell in row.cells[first : first + len(floors)])
    return ResultTable("All", columns, rows, [shared] if split else [], "entry")


def differences_table(cells: list[Cell]) -> ResultTable | None:
    """A row for each checkpoint of each entry: how far it is ahead of its floors, and of the first checkpoint."""
    checkpoints = list(dict.fromkeys(cell.checkpoint for cell in cells))
    told = [{_kind(name, checkpoints): gap for name, gap in cell.ahead.items()} for cell in cells]
    columns = [name for name in (*checkpoints[:1], RANDOM, PIXELS, CHANCE) if any(name in gaps for gaps in told)]
    if not columns:
        return None
    rows, before = [], ""
    for cell, gaps in zip(cells, told, strict=True):
        if not gaps:
            continue
        values = [GAP.format(**gaps[name]) if name in gaps else "-" for name in columns]
        rows.append(ResultRow(cell.entry if cell.entry != before else "", [cell.checkpoint, *values]))
        before = cell.entry
    note = (
        "Points by which a checkpoint is ahead, with 95 % intervals paired over what was tested (images, queries, "
        "...), for this one training."
    )
    return ResultTable("Ahead of [95 %]", ["checkpoint", *columns], rows, [note], "entry")


def _counted(row: Scored) -> float:
    return row.result.metrics[row.result.main]


def _kind(name: str, networks: Sequence[str] = ()) -> str:
    """The kind of a floor: evaluations have several words for what is reached without looking."""
    return name if name in (RANDOM, PIXELS, *networks) else CHANCE


def _floors(cell: Cell) -> dict[str, Scored]:
    """Floors of a cell by kind."""
    return {_kind(row.name): row for row in cell.scored[1:]}


def _elsewhere(figures: list[tuple[str, float]]) -> str:
    """Figures from elsewhere in a cell: by name where they are few, so that the table stays narrow."""
    if len(figures) > _NAMED_FIGURES:
        return f"{_range([value for _, value in figures])} ({len(figures)} figures)"
    return ", ".join(f"{name} {value:.1f}" for name, value in figures) or "-"


def _range(values: list[float]) -> str:
    texts = sorted({f"{value:.1f}" for value in values}, key=float)
    return "-" if not texts else texts[0] if len(texts) == 1 else f"{texts[0]}..{texts[-1]}"


def overview_text(cells: list[Cell]) -> str:
    """What is printed at the end: the two tables over everything, and what could not be run."""
    tables = [values_table(cells), differences_table(cells)]
    failed = [f"## {cell.entry}, {cell.checkpoint}: not possible\n{cell.problem}\n" for cell in cells if cell.problem]
    return "\n".join([*(_text(table) for table in tables if table is not None), *failed])


def markdown(cells: list[Cell]) -> str:
    """The tables over everything, and one for each entry."""
    return "\n".join([overview_text(cells), *(_text(table) for table in entry_tables(cells))])


def _text(table: ResultTable) -> str:
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return (
        f"## {table.title}\n" + _rows([table.first, *table.columns], [[r.name, *r.cells] for r in table.rows]) + notes
    )


def _rows(heading: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown whose columns also stand below each other as text."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (heading, *rows)]
    widths = [max(3, *(len(line[number]) for line in lines)) for number in range(len(heading))]
    left = [not all(NUMBER.match(line[number]) for line in lines[1:]) for number in range(len(heading))]
    texts = [
        [cell.ljust(width) if name else cell.rjust(width) for cell, width, name in zip(line, widths, left, strict=True)]
        for line in lines
    ]
    rule = ["-" * width if name else "-" * (width - 1) + ":" for width, name in zip(widths, left, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [texts[0], rule, *texts[1:]])


def entry_tables(cells: list[Cell]) -> list[ResultTable]:
    """A table for each entry that has results: all metrics of all networks and floors."""
    tables = []
    for entry, group in by_entry(cells).items():
        lines = lines_of(group)
        if not lines:
            continue
        main = lines[0].scored.result.main
        metrics = list(dict.fromkeys(metric for line in lines for metric in line.scored.result.metrics))
        rows = []
        for line in lines:
            found = line.scored.result.metrics
            values = [f"{found[metric]:.1f}" if metric in found else "-" for metric in metrics]
            rows.append(ResultRow(line.name, values, not line.is_floor))
        elsewhere = []
        for name, measure, value in group[0].reported(main):
            if measure in metrics:
                values = [f"{value:.1f}" if metric == measure else "-" for metric in metrics]
                rows.append(ResultRow(f"{REFERENCE}: {name}", values))
            else:
                elsewhere.append(f"{REFERENCE}: {name}: {measure} {value:.1f}, a metric that is not measured here.")
        tables.append(ResultTable(entry, metrics, rows, [*_notes(group), *elsewhere]))
    return tables


def _notes(group: list[Cell]) -> list[str]:
    result = next(cell for cell in group if cell.scored).scored[0].result
    made = [cell.scored[0].result.details for cell in group if cell.scored]
    options = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in result.details.items()
        if key != "notices" and not isinstance(value, dict) and value != [] and len(str(value)) < 30
        if all(details.get(key) == value for details in made)  # else it is of one checkpoint, such as its last loss
    )
    images = f"{result.test_images:,d} test images" if result.test_images else ""
    learnt = f"{result.train_images:,d} training images" if result.train_images else ""
    facts = ", ".join(part for part in (options, images, learnt) if part)
    remarks = [f"{cell.checkpoint}: {text}" for cell in group for text in [*cell.notices, *remarks_of(cell)]]
    skipped = sum(len(cell.scored[0].result.skipped) for cell in group if cell.scored)
    unread = [f"{skipped} image(s) could not be read"] if skipped else []
    counts = f"What counts: {result.main}." + (f" {facts}." if facts else "")
    return [counts, *unread, *dict.fromkeys(remarks)]


def suite_page(folder: Path, cells: list[Cell], total: int) -> Page:
    """The page about everything so far."""
    values, floors = overview(cells)
    chart = result_bars(values, floors, CAPTION)
    tables = [table for table in (values_table(cells), differences_table(cells)) if table is not None]
    tables += entry_tables(cells)
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
        tables=tables if any(cell.scored for cell in cells) else [],
        tables_missing="Nothing has been measured yet.",
        sections=[Section("At a glance", [] if chart is None else [chart], "Nothing has been measured yet.")],
        messages=[Message(f"{cell.entry}, {cell.checkpoint}", "error", cell.problem) for cell in failed],
        settings=[
            ("Weights and remarks", "\n".join(f"{cell.entry}, {cell.checkpoint}: {said}" for cell, said in told))
        ],
        versions=readable(describe_environment()),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())} from {folder}.",
    )
