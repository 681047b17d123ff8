import sys

import pytest

from vissl_like.hooks.events import EventsHook
from vissl_like.hooks.tensorboard import FOLDER, TensorboardHook, scalars
from vissl_like.utils.errors import UserError


def logged(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(p.step, p.value) for p in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_measurements_become_curves(make_run, tmp_path):
    run = make_run(TensorboardHook(), EventsHook(every=2)).start()
    for step in range(1, 5):
        run.do_step(loss=float(step), parts={"loss": float(step), "a": 0.5})
    run.emit("knn", top1=80.0, k=20, text="words")
    run.end()
    found = logged(tmp_path / FOLDER)
    assert found["step/loss"] == [(2, 1.5), (4, 3.5)]
    assert found["step/parts/a"] == [(2, 0.5), (4, 0.5)]
    assert found["knn/top1"] == [(4, 80.0)]
    assert "knn/k" not in found and "step/images" not in found


def test_resume_hides_steps_that_are_done_again(make_run, tmp_path):
    make_run(TensorboardHook(), EventsHook(every=1)).start().do_steps(5, loss=9.0)
    run = make_run(TensorboardHook(), EventsHook(every=1), step=2).start()
    run.do_steps(4, loss=1.0)
    run.end()
    assert logged(tmp_path / FOLDER)["step/loss"] == [(1, 9.0), (2, 9.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0)]


def test_missing_package_names_the_extra(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install vissl_like\[tensorboard\]"):
        make_run(TensorboardHook(), EventsHook()).start()


def test_events_hook_is_needed(make_run):
    with pytest.raises(UserError, match=r"HOOKS\.events"):
        make_run(TensorboardHook(), settings={"HOOKS": {"tensorboard": {}, "events": None}}).start()


def test_other_processes_write_nothing(make_run, tmp_path):
    run = make_run(TensorboardHook(), EventsHook())
    run.is_main = False
    run.start()
    run.do_steps(10)
    run.end()
    assert not (tmp_path / FOLDER).exists()


def test_write_failure_is_said_once(make_run):
    class Broken:
        def __init__(self, *_, **__):
            pass

        def add_scalar(self, *_, **__):
            raise OSError(28, "No space left on device")

    hook = TensorboardHook()
    run = make_run(hook, EventsHook(every=1)).start()
    hook._writer.close()
    hook._writer = Broken()
    run.do_steps(3)
    run.end()
    assert len(run.messages("warning")) == 1


def test_only_floats_are_measurements():
    fields = {"a": 1.0, "b": 2, "c": True, "d": None, "e": "x", "f": {"g": 3.0}, "h": [1.0]}
    assert dict(scalars(fields, "k")) == {"k/a": 1.0, "k/f/g": 3.0}
