"""Every ablation layer is built at a small size over the recipe that its header names, and takes real steps."""

import re
from pathlib import Path

import pytest
from test_resume import losses_of, train

ROOT = Path(__file__).parents[2]
LAYERS = sorted(ROOT.glob("configs/ablation/**/*.yaml"))
SMALL = """
DATA:
  TRAIN: {name: synthetic, count: 16, size: 32}
  WORKERS: 0
MODEL:
  TRUNK: {name: vit, size: tiny, patch_size: 8, image_size: 16, depth: 1, drop_path: 0.1}
OPTIMIZER: {name: adamw, base_lr: 1.0e-3, base_batch: null}
SCHEDULES: {lr: {name: constant}}
TRAIN: {length: 2 epochs, global_batch: 8, precision: fp32}
"""
SAME_AS_THE_RECIPE = ("m0_9", "t0_04", "outputs_65536", "small_10")
"""Rows of the tables that are the recipe itself."""
HEADS = {
    "dino": "{hidden_dim: 8, bottleneck_dim: 4}",
    "mlp": "{hidden_dim: 8, output_dim: 4}",
    "predictor": "{hidden_dim: 8, output_dim: 4, predictor_hidden_dim: 8}",
}


def test_there_is_a_layer_for_every_row():
    assert len(LAYERS) == 48


@pytest.mark.parametrize("path", LAYERS, ids=lambda path: str(path.relative_to(ROOT / "configs/ablation")))
def test_layer_builds_and_steps(tmp_path, path):
    name = str(path.relative_to(ROOT / "configs").with_suffix(""))
    text = path.read_text(encoding="utf-8")
    command = re.search(r"Command:\s+vissl-like config=(\S+) config=(\S+)", text)
    assert command and command[2] == name
    assert "Expected:" in text and "Not run here" in text
    assert len([line for line in text.splitlines() if not line.startswith("#")]) <= 10
    from vissl_like.config import load_settings

    asked = [f"config={command[1]}", f"config={name}", "config.DATA.TRAIN.path=/photos"]
    settings = load_settings(asked).resolved
    recipe = load_settings([asked[0], asked[2]]).resolved
    assert settings != recipe or path.stem in SAME_AS_THE_RECIPE
    head, loss = settings.MODEL.HEAD.name, settings.LOSS.name
    small = tmp_path / "small.yaml"
    views = [
        {**view, "size": 16 if view["size"] == 224 else 8} for view in (dict(v) for v in settings.DATA.TRANSFORM.views)
    ]
    queue = "LOSS: {queue_length: 64}\n" if loss == "moco" else ""
    small.write_text(SMALL.replace("MODEL:", f"MODEL:\n  HEAD: {HEADS[head]}") + queue, encoding="utf-8")
    more = [f"config={name}", f"config={small}", f"config.DATA.TRANSFORM.views={views}", "config.DATA.TRAIN.size=32"]
    assert train(tmp_path / "run", *more, base=command[1]) == 0
    assert len(losses_of(tmp_path / "run")) == 4
