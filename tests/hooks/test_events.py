import json
import math
import os

import numpy as np
import pytest
import torch

from vissl_like.hooks.checkpoint import CheckpointHook
from vissl_like.hooks.events import FILE_NAME, PREVIOUS_NAME, EventsHook
from vissl_like.utils import event_file
from vissl_like.utils.event_file import read_events


def steps_covered(path):
    """Every step that some step record averages over, in order."""
    covered = []
    for record in read_events(path, "step"):
        covered += range(record["first_step"], record["first_step"] + record["steps"])
    return covered


def test_step_records_hold_means_and_epoch_records_means_of_a_pass(make_run, tmp_path):
    run = make_run(EventsHook(every=4), per_epoch=6, total=12).start()
    for step in range(1, 13):
        run.do_step(
            loss=float(step), parts={"loss": float(step), "a": 2.0 * step}, lr=0.1 * step, grad_norm=float(step)
        )
    run.end()
    records = read_events(tmp_path / FILE_NAME, "step")
    assert [(r["step"], r["first_step"], r["steps"]) for r in records] == [(4, 1, 4), (8, 5, 4), (12, 9, 4)]
    first = records[0]
    assert first["loss"] == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert first["parts"] == {"a": pytest.approx(5.0)}
    assert first["grad_norm"] == pytest.approx(2.5)
    assert first["lr"] == pytest.approx(0.4)
    assert first["images_per_s"] == pytest.approx(4 * 32 / (4 * 0.5))
    assert first["data_wait"] == pytest.approx(0.2)
    assert first["memory_mib"]["process"] > 10
    epochs = read_events(tmp_path / FILE_NAME, "epoch")
    assert [(r["step"], r["steps"], r["loss"], r["complete"]) for r in epochs] == [
        (6, 6, 3.5, True),
        (12, 6, 9.5, True),
    ]


def test_run_start_tells_what_is_run_and_with_what(make_run, tmp_path):
    make_run(EventsHook(), trivial=4.0943).start()
    (start,) = read_events(tmp_path / FILE_NAME, "run_start")
    assert start["trivial_loss"] == 4.0943
    assert start["plan"]["global_batch"] == 32
    assert start["banner"][0] == ["Data", "320 images, none, 0 skipped at scan"]
    assert start["versions"]["torch"] == torch.__version__.split("+")[0]


def test_events_before_the_start_and_of_others_are_written(make_run, tmp_path):
    run = make_run(EventsHook())
    run.say("early")
    run.start()
    run.emit("knn", top1=80.0)
    assert [r["kind"] for r in read_events(tmp_path / FILE_NAME)] == ["run_start", "message", "knn"]


def test_each_record_is_on_disk_at_once(make_run, tmp_path):
    run = make_run(EventsHook(every=1)).start()
    for step in range(1, 4):
        run.do_step()
        assert read_events(tmp_path / FILE_NAME)[-1]["step"] == step


def test_only_the_main_process_writes(make_run, tmp_path):
    run = make_run(EventsHook(every=1))
    run.is_main = False
    run.start()
    run.do_steps(2)
    run.end()
    assert not (tmp_path / FILE_NAME).exists()
    assert len(run.events("step")) == 2


@pytest.mark.parametrize("killed_at", [7, 8, 12, 13, 19, 20, 21])
def test_resume_after_a_kill_leaves_every_step_once(make_run, tmp_path, killed_at):
    def hooks():
        return [CheckpointHook(), EventsHook(every=5)]  # a checkpoint every 7 steps, not at record boundaries

    straight = make_run(*hooks(), total=30, per_epoch=10).start()
    for step in range(1, 31):
        straight.do_step(loss=float(step), parts={"loss": float(step), "a": -float(step)})
    straight.end()
    wanted = [
        {k: r[k] for k in ("step", "first_step", "steps", "loss", "parts")}
        for r in read_events(tmp_path / FILE_NAME, "step")
    ]
    wanted_epochs = [(r["step"], r["loss"], r["complete"]) for r in read_events(tmp_path / FILE_NAME, "epoch")]
    (tmp_path / FILE_NAME).unlink()

    killed = make_run(*hooks(), total=30, per_epoch=10).start()
    for step in range(1, killed_at + 1):
        killed.do_step(loss=float(step), parts={"loss": float(step), "a": -float(step)})
    with open(tmp_path / FILE_NAME, "ab") as stream:
        stream.write(b'{"kind": "step", "step": ')  # killed while writing
    start, states = max(killed.states.items())
    resumed = make_run(*hooks(), total=30, per_epoch=10, step=start)
    for hook, state in zip(resumed.hooks, states, strict=True):
        hook.load_state_dict(state)
    resumed.start()
    for step in range(start + 1, 31):
        resumed.do_step(loss=float(step), parts={"loss": float(step), "a": -float(step)})
    resumed.end()

    assert steps_covered(tmp_path / FILE_NAME) == list(range(1, 31))
    found = [
        {k: r[k] for k in ("step", "first_step", "steps", "loss", "parts")}
        for r in read_events(tmp_path / FILE_NAME, "step")
    ]
    assert found == wanted
    assert [(r["step"], r["loss"], r["complete"]) for r in read_events(tmp_path / FILE_NAME, "epoch")] == wanted_epochs
    assert all(line.startswith(b"{") and json.loads(line) for line in (tmp_path / FILE_NAME).read_bytes().splitlines())


def test_a_run_stopped_in_good_order_and_gone_on_has_every_step_once(make_run, tmp_path):
    stopped = make_run(EventsHook(every=5), total=30, per_epoch=10).start()
    stopped.do_steps(13)
    stopped.save_checkpoint("SIGINT")  # the run saves before it tells its hooks of the end
    stopped.stop_reason = "SIGINT"
    stopped.end()
    assert [r["steps"] for r in read_events(tmp_path / FILE_NAME, "step")] == [5, 5, 3]
    resumed = make_run(EventsHook(every=5), total=30, per_epoch=10, step=13)
    resumed.hooks[0].load_state_dict(stopped.states[13][0])
    resumed.start()
    resumed.do_steps(17)
    resumed.end()
    assert steps_covered(tmp_path / FILE_NAME) == list(range(1, 31))
    assert [(r["first_step"], r["steps"], r["complete"]) for r in read_events(tmp_path / FILE_NAME, "epoch")] == [
        (1, 10, True),
        (11, 10, True),
        (21, 10, True),
    ]


def test_state_survives_a_safe_torch_file(make_run, tmp_path):
    run = make_run(EventsHook(every=10)).start()
    run.do_steps(3, loss=2.0, parts={"loss": 2.0, "a": 1.0})
    torch.save(run.hooks[0].state_dict(), tmp_path / "state.pt")
    other = EventsHook(every=10)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict() == run.hooks[0].state_dict()


def test_a_new_run_in_a_used_folder_keeps_the_old_stream_apart(make_run, tmp_path):
    make_run(EventsHook(every=1)).start().do_steps(3)
    run = make_run(EventsHook(every=1)).start()
    run.do_step()
    assert [r["step"] for r in read_events(tmp_path / FILE_NAME, "step")] == [1]
    assert len(read_events(tmp_path / PREVIOUS_NAME, "step")) == 3
    assert PREVIOUS_NAME in run.messages()[0]


def test_lines_are_valid_json_even_with_nan(make_run, tmp_path):
    run = make_run(EventsHook(every=2)).start()
    run.emit(
        "odd",
        a=math.nan,
        b={"c": [1.0, math.inf]},
        d=np.float32(0.5),
        e=torch.tensor(2),
        f=tmp_path,
        g=np.float64("-inf"),
    )
    run.do_steps(2, loss=math.nan, parts={"loss": math.nan}, grad_norm=math.inf, skipped_update=True)
    lines = (tmp_path / FILE_NAME).read_text().splitlines()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    records = [json.loads(line, parse_constant=refuse) for line in lines]
    odd = next(r for r in records if r["kind"] == "odd")
    assert (odd["a"], odd["b"], odd["d"], odd["e"], odd["f"]) == (None, {"c": [1.0, None]}, 0.5, 2, str(tmp_path))
    assert odd["not_finite"] == {"a": "nan", "b.c.1": "inf", "g": "-inf"}
    step = records[-1]
    assert step["loss"] is None and step["not_finite"]["loss"] == "nan" and step["skipped_updates"] == 2


def test_skipped_updates_do_not_spoil_the_mean(make_run, tmp_path):
    run = make_run(EventsHook(every=2)).start()
    run.do_step(loss=2.0, grad_norm=1.0)
    run.do_step(loss=math.nan, grad_norm=math.inf, skipped_update=True)
    (record,) = read_events(tmp_path / FILE_NAME, "step")
    assert (record["loss"], record["grad_norm"], record["skipped_updates"], record["steps"]) == (2.0, 1.0, 1, 2)


def test_full_disk_is_said_once_and_what_follows_is_readable(make_run, tmp_path, monkeypatch):
    run = make_run(EventsHook(every=1)).start()
    run.do_step(loss=1.0)
    write, calls = os.write, []

    def nearly_full(descriptor, data):
        """Room for a few bytes of each record, as when other files come and go."""
        calls.append(1)
        if len(calls) % 2:
            return write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file.os, "write", nearly_full)
    run.do_steps(3, loss=2.0)
    monkeypatch.setattr(event_file.os, "write", write)
    run.do_steps(2, loss=3.0)
    warnings = run.messages("warning")
    assert len(warnings) == 2
    assert "No space left on device" in warnings[0] and "Training goes on" in warnings[0]
    assert "4 record(s) were lost" in warnings[1]  # three steps, and the warning itself
    assert [r["loss"] for r in read_events(tmp_path / FILE_NAME, "step")] == [1.0, 3.0, 3.0]


def test_unwritable_folder_is_said_once(make_run, tmp_path):
    run = make_run(EventsHook(every=1))
    run.output_dir = tmp_path / "gone"
    run.start()
    run.do_steps(3)
    run.end()
    assert len(run.messages("warning")) == 1


def test_error_is_recorded_with_what_was_gathered(make_run, tmp_path):
    run = make_run(EventsHook(every=10)).start()
    run.do_steps(3)
    run.fail(RuntimeError("broken"))
    kinds = [r["kind"] for r in read_events(tmp_path / FILE_NAME)]
    assert kinds == ["run_start", "step", "epoch", "error"]
    assert read_events(tmp_path / FILE_NAME, "error")[0]["reason"] == "broken"
    assert read_events(tmp_path / FILE_NAME, "epoch")[0]["complete"] is False


def test_reader_passes_over_torn_lines(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"kind": "a", "step": 1}\n{"kind": "b", "st\n\n[1]\n{"kind": "c", "step": 2}\n{"kind": "d"')
    assert [r["kind"] for r in read_events(path)] == ["a", "c"]
    assert event_file.keep_events(path, lambda r: r["step"] < 2) == (1, 3)
    assert path.read_bytes() == b'{"kind": "a", "step": 1}\n'


def test_rewriting_that_fails_leaves_the_stream_alone(tmp_path, monkeypatch):
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"kind": "a", "step": 1}\n{"kind": "a", "step": 2}\n')

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        event_file.keep_events(path, lambda r: r["step"] < 2)
    assert len(read_events(path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["e.jsonl"]
