"""Sweeps: which points, what is run again, what stands in the table."""

import json
from pathlib import Path

import pytest

from vissl_like.config import load_settings
from vissl_like.engines.sweep import SweepEngine
from vissl_like.utils.errors import SettingsError

PLUGIN = Path(__file__).parent / "sweep_plugin.py"


def sweep(folder, *more, **options):
    base = ["config=quick/synthetic", f"config.PLUGINS=[{PLUGIN}]", f"config.OUTPUT_DIR={folder}", *more]
    return SweepEngine(load_settings(base), **{"engine": "pretend", **options})


def calls(folder):
    file = folder / "calls"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def states(folder):
    return {row["name"]: row["state"] for row in json.loads((folder / "sweep.json").read_text())["points"]}


GRID = {"LOSS.temperature": [0.1, 0.2], "SEED": [0, 1]}


def test_every_combination_once_and_one_table(tmp_path, capsys):
    assert sweep(tmp_path, grid=GRID).run() == 0
    assert calls(tmp_path) == ["0 0.1", "1 0.1", "0 0.2", "1 0.2"]
    table = (tmp_path / "sweep.md").read_text().splitlines()
    head = "| point | LOSS.temperature | SEED | state | step | loss | online_knn.top1 | knn.top1 |"
    assert table[0] == head
    assert table[3] == "| temperature-0.1_SEED-1 | 0.1 | 1 | done | 12 | 6.273 | 50 | 1.25 |" and len(table) == 6
    rows = json.loads((tmp_path / "sweep.json").read_text())["points"]
    assert rows[3]["metrics"]["loss"] == pytest.approx(1 + (100 / 18 + 100 / 19 + 100 / 20) / 3)
    assert rows[3]["metrics"]["knn.top5"] == 99.0 and rows[3]["metrics"]["epoch.loss"] == 11
    assert rows[3]["folder"] == str(tmp_path / "temperature-0.2_SEED-1")
    assert head in capsys.readouterr().out
    assert sweep(tmp_path, grid=GRID).run() == 0
    assert len(calls(tmp_path)) == 4  # nothing again


def test_points_that_are_added_or_changed_run_and_others_do_not(tmp_path):
    sweep(tmp_path, grid={"SEED": [0]}).run()
    sweep(
        tmp_path, "config.DATA.WORKERS=1", "config.TRAIN.threads=2", "config.CHECKPOINT.keep=7", grid={"SEED": [0, 1]}
    ).run()
    assert len(calls(tmp_path)) == 2
    sweep(tmp_path, "config.LOSS.epsilon=0.07", grid={"SEED": [0, 1]}).run()
    assert len(calls(tmp_path)) == 4


def test_one_that_cannot_run_does_not_keep_others_from_running(tmp_path, capsys):
    assert sweep(tmp_path, grid={"SEED": [13, 3, 1]}).run() == 2
    assert states(tmp_path) == {
        "SEED-13": "failed: thirteen | is unlucky",
        "SEED-3": "ended with status 3",
        "SEED-1": "done",
    }
    assert "thirteen \\| is unlucky" in (tmp_path / "sweep.md").read_text()
    assert "SEED-13: thirteen" in capsys.readouterr().err


def test_a_signal_ends_the_sweep_and_it_goes_on_later(tmp_path):
    assert sweep(tmp_path, grid={"SEED": [0, 143, 1]}).run() == 143
    assert len(calls(tmp_path)) == 2
    assert sweep(tmp_path, grid={"SEED": [0, 143, 1]}, only=["SEED-1"]).run() == 0
    assert calls(tmp_path)[2:] == ["1 0.1"]
    assert states(tmp_path) == {"SEED-0": "done", "SEED-143": "ended with status 143", "SEED-1": "done"}


def test_only_the_table(tmp_path):
    sweep(tmp_path, grid={"SEED": [0]}).run()
    assert sweep(tmp_path, grid={"SEED": [0, 1]}, only=[]).run() == 0
    assert len(calls(tmp_path)) == 1 and states(tmp_path) == {"SEED-0": "done", "SEED-1": "not begun"}


def test_named_points(tmp_path):
    named = {"warm": ["config.LOSS.temperature=0.3"], "other": ["config.SEED=4", "config.LOSS.epsilon=0.1"]}
    assert sweep(tmp_path, points=named).run() == 0
    assert calls(tmp_path) == ["0 0.3", "4 0.1"]
    assert "| other | config.SEED=4 config.LOSS.epsilon=0.1 | done |" in (tmp_path / "sweep.md").read_text()


def test_names_tell_points_apart(tmp_path):
    grid = {"OPTIMIZER.base_lr": [0.1], "LOSS.epsilon": [0.1], "MODEL.HEAD.output_dim": [8], "DATA.PREFETCH": [1]}
    (point,) = sweep(tmp_path, grid=grid).points()
    assert point.name == "base_lr-0.1_epsilon-0.1_output_dim-8_PREFETCH-1"
    grid = {"EVALUATE.batch_size": [1], "DATA.TRAIN": [f"/a/b{'c' * 60}{end}" for end in "xy"]}
    names = [point.name for point in sweep(tmp_path, grid=grid).points()]
    assert len(set(names)) == 2 and all("/" not in name for name in names)


def test_mistakes_of_all_points_are_told_before_anything_runs(tmp_path):
    grid = {"LOSS.temperature": [0.1, -1], "SEED": [0, "x"]}
    with pytest.raises(SettingsError) as caught:
        sweep(tmp_path, grid=grid).run()
    assert len(caught.value.problems) == 4 and "ENGINE, temperature--1_SEED-0: LOSS.temperature = -1" in str(
        caught.value
    )
    assert not calls(tmp_path)
    with pytest.raises(SettingsError, match="are empty"):
        sweep(tmp_path).run()
    with pytest.raises(SettingsError, match="no point 'SEED-7'"):
        sweep(tmp_path, grid={"SEED": [0]}, only=["SEED-7"]).run()
    wrong = {"../up": [], "a": ["config.OUTPUT_DIR=elsewhere"], "b": ["config.SLURM.nodes=3"]}
    with pytest.raises(SettingsError) as caught:
        sweep(tmp_path, points=wrong).run()
    for text in ("'../up' names a folder", "elsewhere has no effect", "nodes=3 has no effect"):
        assert text in str(caught.value)


def test_jobs_are_what_has_not_ended_well(tmp_path):
    sweep(tmp_path, grid={"SEED": [0, 13]}).run()
    engine = sweep(tmp_path, grid={"SEED": [0, 13, 1]})
    assert engine.job_arguments() == {
        "SEED-13": ["config.ENGINE.only=[SEED-13]"],
        "SEED-1": ["config.ENGINE.only=[SEED-1]"],
    }


def test_the_recipe_validates_as_a_sweep():
    settings = load_settings(["config=quick/sweep"])
    assert (
        len(SweepEngine(settings, **{k: v for k, v in settings.resolved.ENGINE.items() if k != "name"}).points()) == 4
    )
