"""A sharded RegNetY on two processes through the command line: stopped, resumed, and its backbone evaluated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vissl_like.config import load_settings
from vissl_like.engines.train import TrainEngine

ROOT = Path(__file__).parents[2]
PLUGIN = str(Path(__file__).parent / "stop_plugin.py")
PROGRAM = str(ROOT / "tools/run_distributed_engines.py")


def start(folder, *more):
    settings = [
        "config=quick/synthetic",
        f"config.PLUGINS=[{PLUGIN}]",
        f"config.OUTPUT_DIR={folder}",
        "config.MODEL.TRUNK={name: regnet_y, size: 400MF}",
        "config.OPTIMIZER={name: larc, base_lr: 0.3, base_batch: null}",
        "config.DATA.TRAIN.count=32",
        "config.DATA.PROBE_TRAIN={name: synthetic, count: 33, size: 32}",
        "config.EVALUATE={image_size: 32, floors: false}",
        "config.TRAIN={length: 4 steps, global_batch: 16, threads: 1}",
        "config.CHECKPOINT.every=100 steps",
        "config.HOOKS.online_knn={every: 2 steps}",
        *more,
    ]
    done = subprocess.run([sys.executable, PROGRAM, *settings], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def states(folder):
    found = next(folder.glob("checkpoints/step_00000004"))
    return {
        "backbone": load_file(found / "backbone.safetensors"),
        **{rank: load_file(found / f"shard_{rank:05d}.safetensors") for rank in (0, 1)},
    }


@pytest.mark.slow
def test_stopped_resumed_and_evaluated(tmp_path):
    two = [
        "config.DISTRIBUTED.processes=2",
        "config.DISTRIBUTED.sharding=full",
        "config.MODEL.ACTIVATION_CHECKPOINTING=true",
    ]
    code, said = start(tmp_path / "straight", *two)
    assert code == 0, said
    assert "Sharding" in said and "each of 2 processes holds its rows" in said and "k-NN at step 4" in said
    code, said = start(tmp_path / "stopped", *two, "config.HOOKS.stop_at={step: 2}")
    assert code == 3, said
    code, said = start(tmp_path / "stopped", *two)
    assert code == 0 and "resumed from step 2" in said, said
    straight, resumed = states(tmp_path / "straight"), states(tmp_path / "stopped")
    for part, tensors in straight.items():
        assert tensors.keys() == resumed[part].keys() and len(tensors) > 100
        for name, tensor in tensors.items():
            assert torch.equal(tensor, resumed[part][name]), (part, name)
    whole = straight["backbone"]["trunk_output.block4.block4-0.f.a.0.weight"]
    rows = [straight[rank]["model.trunk.trunk_output.block4.block4-0.f.a.0.weight"] for rank in (0, 1)]
    assert torch.equal(torch.cat(rows), whole) and len(rows[0]) == len(whole) // 2
    code, said = start(tmp_path / "stopped", "config.ENGINE.name=evaluate", "config.EVALUATION.name=knn")
    assert code == 0, said
    assert "top1" in json.dumps(json.loads(next((tmp_path / "stopped").glob("evaluation_*.json")).read_text()))


def test_one_process_says_that_it_is_not_sharded(tmp_path, capsys):
    settings = [
        "config=quick/synthetic",
        f"config.OUTPUT_DIR={tmp_path}",
        "config.TRAIN={length: 1 steps, threads: 1}",
        "config.DISTRIBUTED.sharding=full",
        "config.MODEL.SYNC_BATCH_NORM_GROUP=4",
    ]
    assert TrainEngine(load_settings(settings)).run() == 0
    said = capsys.readouterr().out
    assert "full was asked for; one process has nothing to divide" in said
    assert "one process: its SYNC_BATCH_NORM_GROUP is itself" in said
    assert not list(tmp_path.glob("checkpoints/*/shard_*"))
