"""Evaluations that train, from settings to the record: a network and its floor learn classes of a folder of photos."""

import json

import numpy as np
import pytest
from small_run import checkpoint, photos, settings

from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.evaluation.finetune import FinetuneEvaluation
from vissl_like.utils.errors import UserError


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


def test_a_floor_that_cannot_be_trained_costs_nothing(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "train")
    checkpoint(tmp_path / "run")
    run = FinetuneEvaluation.run

    def fails_untrained(self, bench):
        if bench.subject.name == "random init":
            raise UserError("training diverged")
        return run(self, bench)

    monkeypatch.setattr(FinetuneEvaluation, "run", fails_untrained)
    wanted = "config.EVALUATION={name: finetune, epochs: 2, batch_size: 8}"
    made = settings(tmp_path / "run", "config.ENGINE=evaluate", wanted, probe_train=tmp_path / "train")
    assert EvaluateEngine(made).run() == 0
    record = json.loads((tmp_path / "run" / "evaluation_finetune.json").read_text())
    assert list(record["subjects"]) == ["trained", "majority class"]
    assert "random init is left out: training diverged" in capsys.readouterr().out


def test_a_kill_in_the_second_training_does_not_cost_the_first(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "train")
    checkpoint(tmp_path / "run")
    run = FinetuneEvaluation.run

    def killed_untrained(self, bench):
        if bench.subject.name == "random init":
            raise KeyboardInterrupt
        return run(self, bench)

    wanted = "config.EVALUATION={name: finetune, epochs: 2, batch_size: 8}"
    made = settings(tmp_path / "run", "config.ENGINE=evaluate", wanted, probe_train=tmp_path / "train")
    with monkeypatch.context() as patched:
        patched.setattr(FinetuneEvaluation, "run", killed_untrained)
        assert EvaluateEngine(made).run() == 130
    assert len(list((tmp_path / "run").glob("training/trained_*.pt"))) == 1
    assert EvaluateEngine(made).run() == 0
    record = json.loads((tmp_path / "run" / "evaluation_finetune.json").read_text())
    details = {name: subject["details"] for name, subject in record["subjects"].items()}
    assert details["trained"]["resumed_from"] == details["trained"]["steps"]  # nothing was trained again
    assert details["random init"]["resumed_from"] is None
    assert not list((tmp_path / "run").glob("training/*"))
