import pytest

from vissl_like.compat.classy import ClassyHook
from vissl_like.component import REQUIRED
from vissl_like.hooks.base import Event, Hook
from vissl_like.registry import HOOKS

NAMES = {"checkpoint", "collapse", "console", "events", "non_finite", "online_knn", "profile", "tensorboard"}


def test_every_hook_is_registered_described_and_built_from_options_alone():
    # Plugins of other tests may have been loaded in this process.
    ours = {name for name in HOOKS.names() if HOOKS.get(name).__module__.startswith("vissl_like.")}
    assert ours == NAMES
    for name in NAMES:
        described = HOOKS.describe(name)
        assert described.summary.endswith(".")
        assert not described.open_options
        for option in described.options.values():
            assert option.doc, f"{name}.{option.name} is not described"
            assert option.default != REQUIRED
        hook = HOOKS.get(name)()
        assert isinstance(hook, Hook) and isinstance(hook, ClassyHook)
        hook.load_state_dict({})


def test_an_empty_hook_can_be_told_everything(make_run):
    run = make_run(Hook()).start()
    run.do_step()
    run.emit("anything", number=1.0)
    run.end()
    run.fail(ValueError("x"))
    assert run.hooks[0].state_dict() == {}


def test_classy_visions_state_methods_are_ours():
    class Counting(Hook):
        def __init__(self):
            super().__init__()
            self.count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    hook = Counting()
    hook.set_classy_state({"count": 5})
    assert hook.get_classy_state() == {"count": 5}


def test_event_record_is_flat_and_names_are_reserved():
    event = Event("knn", 20, 1.5, 1000.0, {"top1": 81.5, "k": 20})
    assert event.record() == {"kind": "knn", "step": 20, "epoch": 1.5, "time": 1000.0, "top1": 81.5, "k": 20}
    with pytest.raises(ValueError, match="step"):
        Event("knn", 20, 1.5, 1000.0, {"step": 3})
