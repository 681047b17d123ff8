"""Faults that need no program of their own: made around a run in this process, or in two."""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from processes import run_in_processes

from vissl_like.config import load_settings
from vissl_like.engines.cli import main
from vissl_like.engines.train import TrainEngine
from vissl_like.utils.errors import UserError

PLUGIN = Path(__file__).parent / "fault_plugin.py"


def arguments(folder, *more):
    plain = ["config=quick/synthetic", f"config.PLUGINS=[{PLUGIN}]", "config.TRAIN.threads=1"]
    return [*plain, f"config.OUTPUT_DIR={folder}", *more]


def train(folder, *more):
    return TrainEngine(load_settings(arguments(folder, *more))).run()


def checkpoint(folder, step):
    return Path(folder) / "checkpoints" / f"step_{step:08d}"


def tensors_of(folder, step):
    state = torch.load(checkpoint(folder, step) / "state.pt", weights_only=True)
    return {
        **state["model"],
        "queue": torch.load(checkpoint(folder, step) / "rank_00000.pt", weights_only=True)["loss"],
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of 12 steps with checkpoints at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train(folder, "config.CHECKPOINT.keep=3") == 0
    return folder


def cut_back(finished, folder, step):
    """A copy of the finished run as it would be had it been killed just after a checkpoint."""
    shutil.copytree(finished, folder)
    for path in (folder / "checkpoints").iterdir():
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    return folder


def assert_same_end(folder, finished):
    ours, expected = tensors_of(folder, 12), tensors_of(finished, 12)
    assert ours.keys() == expected.keys() and len(ours) > 40
    queues = ours.pop("queue"), expected.pop("queue")
    assert str(queues[0]) == str(queues[1])
    for name, value in ours.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("damage", ["truncated", "one bit", "no manifest"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(tmp_path, finished, capfd, damage):
    folder = cut_back(finished, tmp_path / "run", 8)
    file = checkpoint(folder, 8) / ("manifest.json" if damage == "no manifest" else "state.pt")
    content = file.read_bytes()
    if damage == "truncated":
        os.truncate(file, len(content) - 100)
        said = f"state.pt has {len(content) - 100} bytes instead of {len(content)}"
    elif damage == "one bit":
        place = len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        said = "state.pt does not match its digest"
    else:
        file.unlink()
        said = "manifest.json cannot be read"
    capfd.readouterr()
    assert train(folder) == 0
    out, err = capfd.readouterr()
    assert f"checkpoint step_00000008 is damaged ({said}" in err and "resumed from step 4" in out
    assert (folder / "checkpoints" / ".step_00000008.damaged").is_dir()
    assert_same_end(folder, finished)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path, finished):
    folder = cut_back(finished, tmp_path / "run", 8)
    half = folder / "checkpoints" / ".step_00000009.tmp"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half of a st")
    checkpoint(folder, 4).rename(folder / "checkpoints" / ".step_00000004.removed")
    assert train(folder) == 0
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_00000008", "step_00000012"]
    assert_same_end(folder, finished)


def test_a_clock_that_goes_back_changes_nothing(tmp_path, finished, monkeypatch):
    """The newest checkpoint is the one of the highest step, whatever its files say of their age."""
    folder = cut_back(finished, tmp_path / "run", 8)
    real, years = time.time, 10 * 365 * 86400
    for step, age in ((4, -years), (8, years)):  # the older one comes from the future
        for path in (checkpoint(folder, step), *checkpoint(folder, step).iterdir()):
            os.utime(path, (real() - age, real() - age))
    monkeypatch.setattr(time, "time", lambda: real() - years)
    assert train(folder) == 0
    assert_same_end(folder, finished)
    records = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    starts = [record for record in records if record["kind"] == "run_start"]
    assert starts[-1]["started_from"] == 8 and starts[-1]["time"] < starts[0]["time"]


def test_a_port_that_is_taken_is_said_and_nothing_is_started(tmp_path, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        assert main(arguments(tmp_path / "run", "config.DISTRIBUTED.handshake_minutes=0.02")) == 2
    said = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1:{port}" in said and "DISTRIBUTED.port" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_read_only_output_folder_is_refused(tmp_path, capsys):
    folder = tmp_path / "disk"
    folder.mkdir()
    root = os.geteuid() == 0  # to whom permissions mean nothing
    if root:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]).returncode:
            pytest.skip("this machine does not allow mounting a small file system")
    else:
        folder.chmod(0o555)
    try:
        for place in (folder, folder / "run"):
            assert main(arguments(place)) == 2
            said = capsys.readouterr().err
            assert f"OUTPUT_DIR {place} cannot be written" in said and "Traceback" not in said
            assert ("Read-only file system" if root else "Permission denied") in said
        assert not any(folder.iterdir())
    finally:
        subprocess.run(["umount", str(folder)]) if root else folder.chmod(0o755)


def test_a_folder_of_another_recipe_is_refused_with_every_difference(tmp_path, finished):
    folder = cut_back(finished, tmp_path / "run", 4)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError) as refused:
        train(folder, "config.OPTIMIZER.base_lr=0.01", "config.LOSS.temperature=0.3", "config.DATA.TRAIN.count=80")
    said = str(refused.value)
    for difference in ("OPTIMIZER.base_lr: 0.001 -> 0.01", "LOSS.temperature: absent -> 0.3", "dataset_size: 64 -> 80"):
        assert difference in said
    assert "CHECKPOINT.resume=force" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _nan_on_the_second(rank, world_size, folder):
    try:
        train(folder, "config.LOSS={name: nan_at, step: 6, rank: 1}", "config.DISTRIBUTED.processes=2")
    except UserError as error:
        return str(error)
    return "nothing"


@pytest.mark.slow
def test_a_nan_on_one_process_stops_all_and_says_which(tmp_path):
    said = run_in_processes(_nan_on_the_second, 2, str(tmp_path))
    assert said[0] == said[1] and "not finite: loss part loss" in said[0]
    assert [path.name for path in tmp_path.glob("non_finite_step_*.safetensors")] == [
        "non_finite_step_7_rank_1.safetensors"
    ]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["ranks"] for event in events if event["kind"] == "non_finite"] == [[1]]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]
