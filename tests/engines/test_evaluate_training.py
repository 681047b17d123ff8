"""Evaluations that train, from settings to the record: a network and its floor learn classes of a folder of photos."""

import json

import numpy as np
import pytest
from small_run import checkpoint, photos, settings

from vissl_like.engines.evaluate import EvaluateEngine


@pytest.mark.parametrize(
    "evaluation",
    [
        "{name: finetune, epochs: 6, batch_size: 8, trunk_lr: 0.05, head_lr: 0.1}",
        "{name: linear_augmented, rates: [0.3, 3.0], epochs: 6, batch_size: 8}",
    ],
)
def test_trained_and_from_scratch_beat_the_majority(tmp_path, evaluation, capsys):
    photos(tmp_path / "train")
    photos(tmp_path / "test", per_class=8, seed=1)
    checkpoint(tmp_path / "run")
    sets = {"probe_train": tmp_path / "train", "probe_test": tmp_path / "test"}
    made = settings(tmp_path / "run", "config.ENGINE=evaluate", f"config.EVALUATION={evaluation}", **sets)
    assert EvaluateEngine(made).run() == 0
    name = evaluation[7:].partition(",")[0]
    record = json.loads((tmp_path / "run" / f"evaluation_{name}.json").read_text())
    assert list(record["subjects"]) == ["trained", "random init", "majority class"]
    assert record["subjects"]["majority class"]["metrics"]["top1"] == 50.0
    assert record["subjects"]["trained"]["metrics"]["top1"] > 80
    assert record["data"]["train_images"] == 24 and record["data"]["test_images"] == 16
    assert record["subjects"]["trained"]["details"]["steps"] == 18
    with np.load(tmp_path / "run" / f"evaluation_{name}.npz", allow_pickle=False) as arrays:
        assert 100 * arrays["correct_trained"].mean() == record["subjects"]["trained"]["metrics"]["top1"]
    assert not list((tmp_path / "run").glob("training/*"))
    assert "trained" in capsys.readouterr().out
