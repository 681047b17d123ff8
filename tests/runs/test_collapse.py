"""The collapse watcher on real trainings: it speaks up where DINO's targets are too soft."""

import json

import pytest
from test_learning import METHODS, RECIPE, digits, warnings_of

from vissl_like.config import load_settings
from vissl_like.engines.train import TrainEngine


@pytest.mark.slow
def test_a_teacher_temperature_that_is_too_high_is_caught(tmp_path):
    """Healthy runs of every method, this one with a temperature of 0.02 included, are silent (test_learning)."""
    digits(tmp_path)
    (tmp_path / "digits.yaml").write_text(RECIPE)
    hot = [option.replace("temperature: 0.02", "temperature: 0.3") for option in METHODS["dino"]]
    arguments = [
        f"config={tmp_path / 'digits.yaml'}",
        f"config.OUTPUT_DIR={tmp_path / 'run'}",
        f"config.DATA.TRAIN={{name: array, path: {tmp_path / 'train.npz'}, channels: 1, mean: [0.3], std: [0.37]}}",
        "config.HOOKS.collapse={action: stop, every: 10}",
        *hot,
    ]
    assert TrainEngine(load_settings(arguments)).run() == 3
    (warning,) = warnings_of(tmp_path / "run")
    assert "the run has collapsed" in warning and "a lower teacher temperature (not a higher one)" in warning
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "step"][-1] <= 200
