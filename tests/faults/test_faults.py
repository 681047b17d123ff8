"""What a user sees, and what is kept, when something breaks in a real run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "fault_plugin.py"


def command(folder, *more):
    return [
        sys.executable,
        "tools/run_distributed_engines.py",
        "config=quick/synthetic",
        f"config.PLUGINS=[{PLUGIN}]",
        f"config.OUTPUT_DIR={folder}",
        *more,
    ]


def run(folder, *more):
    return subprocess.run(command(folder, *more), cwd=ROOT, capture_output=True, text=True, timeout=300)


def start(folder, *more):
    process = subprocess.Popen(
        command(folder, "config.HOOKS.slow={}", *more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.time() + 200
    while not (Path(folder) / "first_step_done").exists():
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.05)
    return process


def steps_saved(folder):
    return sorted(int(path.name[5:]) for path in (Path(folder) / "checkpoints").glob("step_*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_ends_the_step_and_saves(tmp_path, number, status):
    process = start(tmp_path, "config.DATA.WORKERS=2", "config.TRAIN.length=200 steps")
    os.killpg(process.pid, number)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == status, text
    (saved,) = steps_saved(tmp_path)
    assert f"Stopped at step {saved} of 200: {signal.Signals(number).name}" in text and "Traceback" not in text


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    process = start(tmp_path, "config.TRAIN.length=400 steps")
    second = run(tmp_path, "config.TRAIN.length=400 steps")
    assert second.returncode == 2 and f"being written by process {process.pid}" in second.stderr
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_nan_stops_before_the_update_and_says_where(tmp_path):
    done = run(tmp_path, "config.LOSS={name: nan_at, step: 6}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "not finite: loss part loss" in done.stderr
    assert steps_saved(tmp_path) == [4]
    assert len(list(tmp_path.glob("non_finite_step_*.safetensors"))) == 1
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sum(event["kind"] == "non_finite" for event in events) == 1


@pytest.mark.slow
def test_a_nan_can_be_skipped(tmp_path):
    done = run(tmp_path, "config.LOSS={name: nan_at, step: 6}", "config.TRAIN.non_finite=skip")
    assert done.returncode == 0 and 12 in steps_saved(tmp_path)


@pytest.mark.slow
def test_a_dead_worker_is_explained(tmp_path):
    done = run(tmp_path, "config.HOOKS.kill_worker={}", "config.DATA.WORKERS=1", "config.TRAIN.length=400 steps")
    assert done.returncode == 2 and "a data-loading worker died" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 3), (signal.SIGKILL, -9)])
def test_a_signal_to_the_launcher_alone_ends_all_processes_with_a_checkpoint(tmp_path, number, status):
    process = start(tmp_path, "config.DISTRIBUTED.processes=2", "config.TRAIN.length=400 steps")
    os.kill(process.pid, number)
    text = process.communicate(timeout=120)[0]  # ends only when no process holds the pipe any more
    assert process.returncode == status, text
    assert len(steps_saved(tmp_path)) == 1 and "Stopped at step" in text


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR2, 3), (signal.SIGKILL, -9)])
def test_a_launcher_that_ends_while_its_processes_load_leaves_none_behind(tmp_path, number, status):
    two = command(tmp_path, "config.DISTRIBUTED.processes=2", "config.TRAIN.length=400 steps", "config.HOOKS.slow={}")
    process = subprocess.Popen(two, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 60
    while len(spawned_by(process.pid)) < 2:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    text = process.communicate(timeout=60)[0]  # ends only when no process holds the pipe any more
    assert process.returncode == status, text
    assert "processes met" not in text and not steps_saved(tmp_path)


def spawned_by(launcher):
    children = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_one_process_of_two_killed_ends_the_run_with_its_name(tmp_path):
    process = start(tmp_path, "config.DISTRIBUTED.processes=2", "config.TRAIN.length=400 steps")
    os.kill(spawned_by(process.pid)[-1], signal.SIGKILL)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "was killed by signal 9; stopping the others" in text


@pytest.mark.slow
def test_all_processes_killed_go_on_from_the_newest_checkpoint(tmp_path):
    two = ["config.DISTRIBUTED.processes=2", "config.CHECKPOINT.every=1 steps"]
    process = start(tmp_path, *two)
    while not steps_saved(tmp_path):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    text = process.communicate(timeout=60)[0]
    newest = max(steps_saved(tmp_path))
    assert process.returncode == -9 and newest < 12 and "Stopped at" not in text
    again = run(tmp_path, *two)
    assert again.returncode == 0 and f"resumed from step {newest}" in again.stdout, again.stderr
    assert max(steps_saved(tmp_path)) == 12


def photos(folder, good, broken=0):
    folder.mkdir()
    for number in range(good):
        Image.effect_noise((40, 40), 60 + number).save(folder / f"{number:02d}.png")
    for number in range(broken):
        (folder / f"broken_{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n then nothing")
    return folder


SMALL = [
    "config=quick/folder",
    "config.MODEL.TRUNK={name: resnet, depth: 10, width: 0.125}",
    "config.DATA.TRANSFORM.views=[{count: 2, size: 32, scale: [0.3, 1.0]}]",
    "config.TRAIN.length=2 epochs",
]


@pytest.mark.slow
def test_a_flat_folder_of_forty_photos_trains(tmp_path):
    done = run(tmp_path / "out", *SMALL, f"config.DATA.TRAIN={photos(tmp_path / 'photos', 40)}")
    assert done.returncode == 0, done.stderr
    assert "40 images, labels none" in done.stdout


@pytest.mark.slow
def test_broken_photos_are_skipped_and_listed_up_to_the_limit(tmp_path):
    folder = photos(tmp_path / "photos", 40, broken=3)
    done = run(tmp_path / "out", *SMALL, f"config.DATA.TRAIN={folder}")
    assert done.returncode == 0 and "broken_1.png" in done.stdout, done.stderr
    refused = run(tmp_path / "other", *SMALL, f"config.DATA.TRAIN={folder}", "config.DATA.MAX_SKIPPED=1")
    assert refused.returncode == 2 and "more than the 1 allowed" in refused.stderr


@pytest.mark.slow
def test_an_empty_folder_and_one_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "out", *SMALL, f"config.DATA.TRAIN={tmp_path / 'empty'}")
    assert done.returncode == 2 and str(tmp_path / "empty") in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    done = run(tmp_path / "out", *SMALL, f"config.DATA.TRAIN={tmp_path / 'text'}")
    assert done.returncode == 2 and ".png" in done.stderr


@pytest.mark.slow
def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "out")
    assert done.returncode == 2 and "cannot be written" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_loses_nothing_that_was_finished(tmp_path):
    """A real full file system: earlier checkpoints stay whole, the last state is rescued, the run goes on from it."""
    disk, rescue = tmp_path / "disk", tmp_path / "rescue"
    disk.mkdir(), rescue.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting a small file system")
    try:
        filler = disk / "filler"
        out = disk / "run"
        environment = {**os.environ, "TMPDIR": str(rescue)}
        go = lambda *more: subprocess.run(  # noqa: E731
            command(out, *more), cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment
        )
        assert go("config.TRAIN.length=1 epochs").returncode == 0
        filler.write_bytes(b"x" * (disk_free(disk) - 200_000))
        longer = ["config.TRAIN.length=2 epochs", "config.CHECKPOINT.resume=force"]
        full = go(*longer)
        assert full.returncode == 2 and "No space left on device" in full.stdout
        assert "The checkpoint of step 4 is intact" in full.stdout and steps_saved(out) == [4]
        assert "the state of step 8 is in" in full.stderr and "Traceback" not in full.stderr
        filler.unlink()
        (saved,) = rescue.glob("vissl_like_rescue_*/step_*")
        subprocess.run(["mv", str(saved), str(out / "checkpoints")], check=True)
        assert "resumed from step 8" in go(*longer).stdout
    finally:
        subprocess.run(["umount", str(disk)])


def disk_free(path):
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize
