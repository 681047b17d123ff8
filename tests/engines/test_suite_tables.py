"""On made-up results: what the tables show of many checkpoints, and that they stay narrow."""

import re
from pathlib import Path

import numpy as np
import pytest

from vissl_like.engines.suite_cells import Cell, ahead_of
from vissl_like.engines.suite_tables import differences_table, markdown, overview_text, suite_page, values_table
from vissl_like.evaluation.base import EvaluationResult
from vissl_like.evaluation.scoring import Scored
from vissl_like.visualize.page import render_page


def scored(name, value, main="top1", paired=True):
    items = np.repeat([100.0, 0.0], [value, 100 - value])
    ids = {"items": items, "item_ids": np.arange(100)} if paired else {}
    return Scored(name, EvaluationResult("made up", {main: float(value), "other": 1.0}, main=main, **ids))


def cell(entry, checkpoint, value, floors, first=None, **facts):
    rows = [scored("trained", value), *(scored(name, floor) for name, floor in floors.items())]
    made = Cell(entry, checkpoint, rows, **facts)
    made.ahead = ahead_of(made, first)
    return made


FLOORS = {"random init": 40, "raw pixels": 30, "majority class": 20}


def rows_of(text, title):
    block = text[text.index(f"## {title}") :].split("\n\n")[0]
    return [[part.strip() for part in line.strip("|").split("|")] for line in block.splitlines()[1:]]


@pytest.fixture
def two():
    first = cell("near", "ours", 70, FLOORS)
    return [first, cell("near", "theirs", 65, {**FLOORS, "random init": 45}, first)]


def test_what_counts_with_a_row_for_each_entry(two):
    clusters = [
        Cell("groups", "ours", [scored("trained", 55, "nmi", False), scored("shuffled clusters", 1, "nmi", False)])
    ]
    failed = [Cell("lost", "ours", problem="no such file")]
    rows = rows_of(overview_text([*two, *clusters, *failed]), "All")
    assert rows[0] == ["entry", "counts", "ours", "theirs", "random init", "raw pixels", "chance"]
    assert rows[2] == ["near", "top1", "70.0", "65.0", "40.0..45.0", "30.0", "20.0"]
    assert rows[3] == ["groups", "nmi", "55.0", "-", "-", "-", "1.0"]
    assert rows[4] == ["lost", "-", "-", "-", "-", "-", "-"]
    assert values_table(two).notes and not values_table(two[:1]).notes  # two numbers are explained


def test_each_checkpoint_is_ahead_of_the_same_floors_and_of_the_first(two):
    rows = rows_of(overview_text(two), "Ahead of [95 %]")
    assert rows[0] == ["entry", "checkpoint", "ours", "random init", "raw pixels", "chance"]
    ours, theirs = rows[2:]
    assert ours[:3] == ["near", "ours", "-"] and theirs[:2] == ["", "theirs"]
    assert [text.split()[0] for text in ours[3:]] == ["+30.0", "+40.0", "+50.0"]
    assert [text.split()[0] for text in theirs[2:]] == ["-5.0", "+20.0", "+35.0", "+45.0"]
    # 30 of 100 items differ by 100 points: normal theory gives 30 -+ 1.96 * sqrt(0.3 * 0.7 / 100) * 100 = 21.0 .. 39.0.
    low, high = (float(value) for value in re.findall(r"[+-][\d.]+(?=[,\]])", ours[3]))
    assert low == pytest.approx(21.0, abs=1.5) and high == pytest.approx(39.0, abs=1.5)


def test_no_interval_where_items_are_not_paired():
    rows = [scored("trained", 55, "nmi", False), scored("random init", 9, "nmi", False)]
    lone = Cell("groups", "ours", rows)
    lone.ahead = ahead_of(lone, None)
    assert lone.ahead == {} and differences_table([lone]) is None and "Ahead" not in markdown([lone])


def test_checkpoints_that_were_tested_on_something_else_are_not_compared(two):
    def made(path, mean, main="top1"):
        facts = {"data": {"train": {"path": path, "mean": mean}}, "settings": {"EVALUATION": {}}}
        return Cell("near", "x", [scored("trained", 50, main)], made=facts)

    first = made("a", [0.1])
    assert list(ahead_of(made("a", [0.2]), first)) == ["x"]  # how images are brought to a network is its own
    assert ahead_of(made("b", [0.1]), first) == {} and ahead_of(made("a", [0.1], "top5"), first) == {}


@pytest.mark.parametrize("count", [1, 4])
def test_many_entries_stay_narrow(count):
    cells = []
    for entry in range(22):
        first = None
        for number in range(count):
            cells.append(cell(f"fashion_mnist_knn_{entry}", f"checkpoint{number}", 60 + number, FLOORS, first))
            first = first or cells[-1]
    text = overview_text(cells)
    assert max(map(len, (line for line in text.splitlines() if line.startswith("|")))) <= 140
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 2  # columns stand below each other
    assert len(rows_of(text, "All")) == 24 and len(rows_of(text, "Ahead of [95 %]")) == 2 + 22 * count


def test_page(two):
    html = render_page(suite_page(Path("runs/x"), two, 2))
    assert html.count('<div class="scroll"') == 3  # both overviews and the entry's own
    assert '<th scope="col">entry</th><th scope="col">counts</th>' in html and '<th scope="col">features</th>' in html
    assert "-5.0 [-" in html and "2 of 2 done" in html
