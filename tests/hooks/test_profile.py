import json

import pytest
import torch

from vissl_like.hooks.profile import FOLDER, ProfileHook


def work(run, steps):
    for _ in range(steps):
        torch.randn(32, 32) @ torch.randn(32, 32)
        run.do_step()


@pytest.mark.parametrize(("start", "stem"), [(0, "steps_1_2"), (3, "steps_4_5")])
def test_trace_and_table_of_the_steps_asked_for(make_run, tmp_path, start, stem):
    run = make_run(ProfileHook(start=start, steps=2), total=10).start()
    work(run, 8)
    run.end()
    assert sorted(p.name for p in (tmp_path / FOLDER).iterdir()) == [f"{stem}.json", f"{stem}.txt"]
    names = [event.get("name") for event in json.loads((tmp_path / FOLDER / f"{stem}.json").read_text())["traceEvents"]]
    assert names.count("aten::mm") == 2
    table = (tmp_path / FOLDER / f"{stem}.txt").read_text()
    assert "aten::mm" in table and "Self CPU" in table
    assert run.messages() == [f"profile of steps {stem[6]} to {stem[8]}: {tmp_path / FOLDER / stem}.json and .txt"]


def test_a_run_that_ends_meanwhile_writes_what_there_is(make_run, tmp_path):
    run = make_run(ProfileHook(start=1, steps=50), total=60).start()
    work(run, 3)
    run.end()
    assert (tmp_path / FOLDER / "steps_2_3.txt").is_file()


def test_steps_out_of_reach_are_said(make_run, tmp_path):
    for facts in ({"step": 20, "total": 100}, {"total": 10}):
        run = make_run(ProfileHook(start=10, steps=5), **facts).start()
        work(run, 9)
        run.end()
        assert "nothing to profile" in run.messages("warning")[0]
    assert not (tmp_path / FOLDER).exists()


def test_an_error_ends_profiling(make_run, tmp_path):
    run = make_run(ProfileHook(start=0, steps=5)).start()
    work(run, 2)
    run.fail(RuntimeError("x"))
    assert not (tmp_path / FOLDER).exists()
    with torch.profiler.profile():  # would fail if the first were still active
        pass


def test_full_disk_is_said(make_run, tmp_path):
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    run = make_run(ProfileHook(start=0, steps=1)).start()
    work(run, 2)
    assert "could not be written" in run.messages("warning")[0]
