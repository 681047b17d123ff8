"""Starting processes: local ones, torchrun's, and mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = str(ROOT / "tools" / "run_distributed_engines.py")


def arguments(folder, *more):
    return ["config=quick/synthetic", f"config.OUTPUT_DIR={folder}", "config.TRAIN.length=2 steps", *more]


@pytest.mark.slow
def test_local_processes_from_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments(tmp_path, "config.DISTRIBUTED.processes=2")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "wanted 2, found 2" in done.stdout and "2 processes met at 127.0.0.1:" in done.stderr
    assert len(list((tmp_path / "checkpoints" / "step_00000002").glob("rank_*.pt"))) == 2


@pytest.mark.slow
def test_torchrun(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--standalone",
            PROGRAM,
            *arguments(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "found 2" in done.stdout


@pytest.mark.slow
def test_a_gpu_that_is_not_there(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments(tmp_path, "config.DISTRIBUTED.device=cuda")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 2 and "torch sees no GPU" in done.stderr
