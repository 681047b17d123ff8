import pytest

from vissl_like.hooks.base import Hook
from vissl_like.hooks.checkpoint import CheckpointHook


def test_one_at_every_multiple_of_the_distance(make_run):
    run = make_run(CheckpointHook(), total=20).start()
    run.do_steps(20)
    run.end()
    assert run.saved == [(7, "every 7 steps"), (14, "every 7 steps")]


@pytest.mark.parametrize(("step", "wanted"), [(0, [(0, "start")]), (14, [])])
def test_start_is_saved_if_asked_for_and_not_after_a_resume(make_run, step, wanted):
    assert make_run(CheckpointHook(at_start=True), step=step).start().saved == wanted
    assert make_run(CheckpointHook(), step=step).start().saved == []


def test_other_hooks_have_seen_the_step_that_is_saved(make_run):
    class Counting(Hook):
        count = 0

        def on_step(self, run):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

    run = make_run(CheckpointHook(), Counting()).start()
    run.do_steps(7)
    assert {"count": 7} in run.states[7]
