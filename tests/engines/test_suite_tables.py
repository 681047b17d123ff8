"""On made-up results: what the tables show of many checkpoints, and that they stay narrow."""

import re
from pathlib import Path

import numpy as np
import pytest

from vissl_like.config import load_settings
from vissl_like.engines.suite_cells import Cell, ahead_of
from vissl_like.engines.suite_tables import (
    differences_table,
    entry_tables,
    markdown,
    overview,
    overview_text,
    suite_page,
    values_table,
)
from vissl_like.evaluation.base import EvaluationResult
from vissl_like.evaluation.scoring import Scored
from vissl_like.utils.errors import SettingsError
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


ELSEWHERE = {"a": 74.5, "b": {"metric": "other", "value": 82.6}, "c": {"metric": "top1", "value": 71}}


def test_figures_from_elsewhere_stand_in_the_column_of_their_metric():
    made = cell("near", "ours", 70, FLOORS, references=ELSEWHERE)
    rows = rows_of(markdown([made]), "near")
    assert rows[0] == ["features", "top1", "other"]
    assert [row for row in rows if row[0].startswith("reported")] == [
        ["reported: a", "74.5", "-"],
        ["reported: b", "-", "82.6"],
        ["reported: c", "71.0", "-"],
    ]
    assert rows_of(overview_text([made]), "All")[2][-1] == "a 74.5, c 71.0"  # what counts, and nothing else
    values, grey = overview([made])
    assert values["reported"] == {"near": 74.5} and "reported" in grey and 82.6 not in values["reported"].values()


def test_what_is_said_of_an_entry_is_no_programming_language():
    made = cell("near", "ours", 70, FLOORS)
    assert entry_tables([made])[0].notes == ["What counts: top1."]
    made.scored[0].result.details.update({"k": [20], "trials": [], "sd": {"k1": 0.0}})
    assert entry_tables([made])[0].notes == ["What counts: top1. k [20]."]
    other = cell("near", "theirs", 60, FLOORS)
    made.scored[0].result.details.update({"share": 0.1, "last_loss": 0.123456789})
    assert entry_tables([made])[0].notes == ["What counts: top1. k [20], share 0.1, last_loss 0.123457."]
    other.scored[0].result.details.update({"k": [20], "share": 0.1, "last_loss": 0.5})
    assert entry_tables([made, other])[0].notes == ["What counts: top1. k [20], share 0.1."]


def test_a_figure_of_a_metric_that_is_not_measured_is_not_lost():
    made = cell("near", "ours", 70, FLOORS, references={"b": {"metric": "AP50", "value": 82.6}})
    assert "reported: b: AP50 82.6, a metric that is not measured here." in entry_tables([made])[0].notes
    assert "82.6" not in overview_text([made]) and values_table([made]).columns[-1] == "chance"
    assert "reported" not in overview([made])[0]
    assert made.record()["references"] == {"b": {"metric": "AP50", "value": 82.6}}


def test_figures_stand_beside_what_could_not_be_run():
    lost = Cell("lost", "ours", problem="no such file", references=ELSEWHERE)
    assert rows_of(overview_text([lost]), "All")[2] == ["lost", "-", "-", "a 74.5"]
    assert overview([lost]) == ({}, [])  # nothing of ours to draw beside


def test_many_figures_from_elsewhere_stay_narrow():
    figures = {f"a method with a long name {number}": 60.0 + number for number in range(10)}
    cells = [cell(f"entry{number}", "ours", 70, FLOORS, references=figures) for number in range(20)]
    text = overview_text(cells)
    assert max(map(len, (line for line in text.splitlines() if line.startswith("|")))) <= 140
    assert rows_of(text, "All")[2][-1] == "60.0..69.0 (10 figures)"
    assert "Two numbers" not in text  # a range of figures is none of floors
    assert len(overview(cells)[0]) == 5  # the network, three floors, the highest figure: bars that can be read


def test_settings_of_figures_are_checked():
    def problems(reference):
        figures = f"config.ENGINE.entries.elpv_knn.references={{a paper: {reference}}}"
        load_settings(["config=benchmark/suite/quick", figures])

    problems("74.5")
    problems("{metric: other, value: 82.6}")
    for wrong in ("{metric: other}", "{metrc: other, value: 1}", "much"):
        with pytest.raises(SettingsError, match="references"):
            problems(wrong)
