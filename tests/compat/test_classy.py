"""Every name that we take from classy-vision does what we rely on (a canary for new torch and torchvision versions)."""

import subprocess
import sys
from pathlib import Path

import pytest

from vissl_like.compat import classy

PACKAGE = Path(classy.__file__).parents[1]


def test_exported_names_are_all_exercised_here():
    assert set(classy.__all__) == {
        "ClassyHook",
        "ClassyTask",
        "ClassyTrainer",
    }


class _Hook(classy.ClassyHook):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def on_start(self, task):
        self.calls.append("on_start")

    def on_phase_start(self, task):
        self.calls.append("on_phase_start")

    def on_step(self, task):
        self.calls.append("on_step")

    def on_phase_end(self, task):
        self.calls.append("on_phase_end")

    def on_end(self, task):
        self.calls.append("on_end")


class _Task(classy.ClassyTask):
    """Two phases of two steps each."""

    train = True

    def __init__(self, hooks):
        super().__init__()
        self.hooks, self.steps, self.prepared = hooks, 0, False

    @classmethod
    def from_config(cls, config):
        return cls([])

    @property
    def where(self):
        return self.steps / 4

    def done_training(self):
        return self.steps >= 4

    def get_classy_state(self, deep_copy=False):
        return {}

    def set_classy_state(self, state):
        pass

    def prepare(self, num_dataloader_workers=0, dataloader_mp_context=None):
        self.prepared = True

    def _tell(self, name):
        for hook in self.hooks:
            getattr(hook, name)(self)

    def on_start(self):
        self._tell("on_start")

    def on_phase_start(self):
        self.end_of_phase = self.steps + 2
        self._tell("on_phase_start")

    def train_step(self):
        if self.steps == self.end_of_phase:
            raise StopIteration
        self.steps += 1

    def eval_step(self):
        raise AssertionError("train is True")

    def on_phase_end(self):
        self._tell("on_phase_end")

    def on_end(self):
        self._tell("on_end")


def test_trainer_task_and_hook_keep_their_call_order():
    calls: list[str] = []
    task = _Task([_Hook(calls)])
    classy.ClassyTrainer().train(task)
    phase = ["on_phase_start", "on_step", "on_step", "on_phase_end"]
    assert task.prepared
    assert calls == ["on_start", *phase, *phase, "on_end"]


def test_abstract_methods_of_a_hook_are_the_five_we_define():
    assert classy.ClassyHook.__abstractmethods__ == {"on_start", "on_phase_start", "on_step", "on_phase_end", "on_end"}


@pytest.mark.parametrize(
    "before",
    [
        "",
        # torchvision without the module that classy-vision still imports
        "import torchvision.transforms, sys; sys.modules['torchvision.transforms._transforms_video'] = None\n",
    ],
    ids=["as installed", "video transforms removed"],
)
def test_import_is_silent_and_survives_the_removal_of_video_transforms(before):
    code = before + "import vissl_like.compat.classy as c; print(c.ClassyTask.__name__)"
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "ClassyTask"
    assert result.stderr == ""
