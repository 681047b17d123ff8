import json
import math

import pytest
import torch
from safetensors.torch import load_file

from vissl_like.hooks.non_finite import NonFiniteHook
from vissl_like.records import Batch

FACTS = {
    "what": ["loss part loss", "gradient of trunk.conv1.weight"],
    "ranks": [0],
    "lr": 4.8,
    "grad_norm": math.inf,
    "indices": [3, 1],
    "paths": ["c.png", "a.png"],
}


@pytest.fixture
def batch():
    return Batch([torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.zeros(2, 3, 1, 1)], torch.tensor([3, 1]))


def test_explains_and_keeps_the_batch(make_run, tmp_path, batch):
    run = make_run(NonFiniteHook(), step=41).start()
    run.last_batch = batch
    run.emit("non_finite", **FACTS)
    (text,) = run.messages("error")
    for part in ("step 41", "gradient of trunk.conv1.weight", "4.8", "inf", "process 0", "c.png", "OPTIMIZER.base_lr"):
        assert part in text
    kept = load_file(tmp_path / "non_finite_step_41.safetensors")
    assert kept.keys() == {"view_0", "view_1", "index"}
    assert torch.equal(kept["view_0"], batch.views[0]) and kept["index"].tolist() == [3, 1]
    facts = json.loads((tmp_path / "non_finite_step_41.json").read_text())
    assert facts["what"] == FACTS["what"] and facts["grad_norm"] is None and facts["not_finite"] == {"grad_norm": "inf"}


def test_explains_once_then_counts_even_after_a_resume(make_run, tmp_path, batch):
    hook = NonFiniteHook()
    run = make_run(hook, step=5).start()
    run.last_batch = batch
    run.emit("non_finite", **FACTS)
    run.do_step()
    run.emit("non_finite", **FACTS)
    assert len(run.messages("error")) == 1
    assert run.messages("warning") == ["not finite again at step 6 (2 times so far)"]
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    resumed = NonFiniteHook()
    resumed.load_state_dict(hook.state_dict())
    run = make_run(resumed, step=9).start()
    run.emit("non_finite", **FACTS)
    assert run.messages("warning") == ["not finite again at step 9 (3 times so far)"]


@pytest.mark.parametrize("ranks", [[1], [1, 2]])
def test_a_process_that_is_not_affected_keeps_nothing(make_run, tmp_path, batch, ranks):
    run = make_run(NonFiniteHook(), step=5).start()
    run.last_batch = batch
    run.emit("non_finite", **{**FACTS, "ranks": ranks})
    assert list(tmp_path.iterdir()) == []
    assert f"process {', '.join(map(str, ranks))}" in run.messages("error")[0]


def test_batch_can_be_left_out_and_other_events_are_ignored(make_run, tmp_path, batch):
    run = make_run(NonFiniteHook(save_batch=False)).start()
    run.last_batch = batch
    run.emit("step", loss=math.nan)
    assert run.messages() == []
    run.emit("non_finite", **FACTS)
    assert len(run.messages("error")) == 1 and list(tmp_path.iterdir()) == []


def test_full_disk_is_part_of_the_message(make_run, tmp_path, batch):
    run = make_run(NonFiniteHook(), step=5).start()
    run.last_batch, run.output_dir = batch, tmp_path / "gone"
    run.emit("non_finite", **FACTS)
    assert "could not be saved (No such file or directory)" in run.messages("error")[0]
