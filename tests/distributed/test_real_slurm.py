"""A real Slurm on this machine: jobs that are pre-empted come back and end as if nothing had been; sweeps; cancelling.

dev/slurm/start.sh makes the cluster; where it cannot (not root, not Debian) these tests are skipped with the reason.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests/faults/fault_plugin.py"
CLEARED_AWAY_S = 15
"""Longer than the cluster's KillWait, after which nothing of a job is left."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Environment of a cluster of one node with two cores."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of our own needs root")
    if not Path("/etc/debian_version").exists() and shutil.which("slurmctld") is None:
        pytest.skip("dev/slurm installs Slurm on Debian only, and it is not installed here")
    # Several workers of a test run must not have clusters beside each other: host and ports would be the same.
    turn = os.open(Path(tempfile.gettempdir()) / "vissl_like_test_slurm.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(turn, fcntl.LOCK_EX)
    folder = tmp_path_factory.mktemp("slurm")
    environment = {
        **os.environ,
        "VISSL_LIKE_SLURM_DIR": str(folder),
        "VISSL_LIKE_SLURM_CPUS": "2",
        "VISSL_LIKE_SLURM_PORT": str(21000 + os.getpid() % 9000),
        "OMP_NUM_THREADS": "1",
    }
    started = subprocess.run([ROOT / "dev/slurm/start.sh"], env=environment, capture_output=True, text=True)
    try:
        if started.returncode != 0:
            pytest.skip(f"dev/slurm/start.sh: {started.stderr.strip().splitlines()[-1:]}")
        environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        yield environment
    finally:
        subprocess.run([ROOT / "dev/slurm/stop.sh", "--purge"], env=environment)
        os.close(turn)


def command(folder, *more):
    return [
        sys.executable,
        "tools/run_distributed_engines.py",
        "config=quick/synthetic",
        f"config.OUTPUT_DIR={folder}",
        "config.HOOKS.console=null",
        "config.TRAIN.threads=1",
        *more,
    ]


TRAIN = [f"config.PLUGINS=[{PLUGIN}]", "config.HOOKS.slow={}", "config.DATA.WORKERS=1", "config.TRAIN.length=8 epochs"]
JOB = ["config.SLURM.USE_SLURM=true", "config.SLURM.mem_gb=2", "config.SLURM.time_hours=1"]
TWO = [*TRAIN, *JOB, "config.SLURM.tasks_per_node=2"]


def submit(cluster, *arguments):
    done = subprocess.run(command(*arguments), cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return re.search(r"(?:job|array) (\d+)", done.stdout)[1]


def ask(cluster, *words):
    return subprocess.run(words, env=cluster, capture_output=True, text=True, timeout=300).stdout.strip()


def state(cluster, job):
    return ask(cluster, "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")


def until(condition, seconds=400, told=lambda: ""):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, f"it took too long\n{told()}"
        time.sleep(0.2)


def release(cluster, job, going_on):
    """Slurm holds a job that came back for two minutes; a test does not wait for that, but until ``going_on()``."""
    until(lambda: state(cluster, job) == "PENDING", 300)
    # That is what the hold is for: the end of the script that was cleared away is told late, and a job that has begun
    # again by then would be taken for failed.
    time.sleep(CLEARED_AWAY_S)

    def goes_on():
        if state(cluster, job) == "PENDING":  # also a second time: a step that did not start puts the job back
            ask(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm may set the delay afterwards
        return going_on()

    until(goes_on, told=lambda: ask(cluster, "scontrol", "show", "job", job))


def stderr_of(folder, rank=0):
    return "".join(file.read_text() for file in folder.glob(f"slurm/*_{rank}_log.err"))


def saved(folder):
    return sorted(folder.glob("checkpoints/step_*"))


def test_preempted_twice_and_the_weights_are_those_of_an_uninterrupted_run(cluster, tmp_path):
    """First by the signal before a time limit, then by a job of a higher partition; the straight run is under srun."""
    out, straight = tmp_path / "job", tmp_path / "straight"
    job = submit(cluster, out, *TWO)
    until(lambda: (out / "first_step_done").exists())
    ask(cluster, "scancel", "--signal=USR2", job)
    release(cluster, job, lambda: stderr_of(out).count("2 processes met") > 1)
    steps = len(saved(out))
    until(lambda: len(saved(out)) > steps or saved(out)[-1].name > "step_00000006")
    srun = ["srun", "--mpi=none", "--partition=high", "--ntasks=2", "--mem=1", "--overcommit"]
    urgent = subprocess.Popen([*srun, "true"], env=cluster)
    assert urgent.wait(300) == 0
    assert [path.name for path in saved(out)][-1] < "step_00000032"
    release(cluster, job, lambda: stderr_of(out).count("2 processes met") > 2)
    plain = subprocess.run(
        ["srun", "--mpi=none", "--partition=main", "--ntasks=2", *command(straight, *TRAIN)],  # nobody is pushed out
        cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    assert "2 processes met at 127.0.0.1:" in plain.stderr
    until(lambda: state(cluster, job) in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"))
    told = stderr_of(out)
    assert state(cluster, job) == "COMPLETED", told
    assert told.count(f"putting job {job} back into the queue") == 2
    assert "Restarts=2" in ask(cluster, "scontrol", "show", "job", job)
    resumed = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert sum(event["kind"] == "run_start" and event["started_from"] > 0 for event in resumed) == 2
    ends = [saved(folder)[-1] for folder in (out, straight)]
    assert {end.name for end in ends} == {"step_00000032"}
    for name in ("state.pt", "rank_00000.pt", "rank_00001.pt"):
        left, right = (dict(_tensors(torch.load(end / name, weights_only=True))) for end in ends)
        assert left.keys() == right.keys() and left
        for key, value in left.items():
            assert torch.equal(value, right[key]), (name, key)


def _tensors(value, path=""):
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, f"{path}.{key}")


def test_a_cancelled_job_saves_and_stays_away(cluster, tmp_path):
    job = submit(cluster, tmp_path, *TWO)
    until(lambda: (tmp_path / "first_step_done").exists())
    ask(cluster, "scancel", job)
    until(lambda: state(cluster, job) not in ("RUNNING", "COMPLETING"), 300)
    assert state(cluster, job) == "CANCELLED"
    assert len(saved(tmp_path)) >= 1 and "back into the queue" not in stderr_of(tmp_path)


def test_a_sweep_of_four_is_an_array_and_one_table(cluster, tmp_path):
    grid = "{name: sweep, engine: train, grid: {LOSS.temperature: [0.1, 0.2], SEED: [0, 1]}}"
    more = ["config.TRAIN.length=2 steps", f"config.ENGINE={grid}", *JOB, "config.SLURM.wait=true"]
    done = subprocess.run(command(tmp_path, *more), cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ended with exit status 0") == 4
    points = json.loads((tmp_path / "sweep.json").read_text())["points"]
    assert [point["state"] for point in points] == ["done"] * 4
    assert len({round(point["metrics"]["loss"], 6) for point in points}) == 4
    again = subprocess.run(command(tmp_path, *more), cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "Nothing is left to submit" in again.stdout


def test_entries_of_a_suite_are_an_array_whose_results_one_table_takes_up(cluster, tmp_path):
    run, out = tmp_path / "run", tmp_path / "suite"
    trained = subprocess.run(command(run, "config.TRAIN.length=2 steps"), cwd=ROOT, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    for name, shade in (("dark", 40), ("light", 220)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (24, 24), (shade, shade + number, shade)).save(tmp_path / f"photos/{name}/{number}.png")
    sets = [f"config.DATA.PROBE_{part}={{name: auto, path: {tmp_path / 'photos'}}}" for part in ("TRAIN", "TEST")]
    entries = "{near: {arguments: [config=benchmark/knn]}, line: {arguments: [config=benchmark/linear]}}"
    suite = [*sets, f"config.ENGINE={{name: suite, entries: {entries}}}", f"config.EVALUATE.weights={run}"]
    jobs = command(out, *suite, *JOB, "config.SLURM.wait=true")
    done = subprocess.run(jobs, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ended with exit status 0") == 2 and not (out / "results.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in (out / "results").iterdir()}
    assert len(kept) >= 2
    table = subprocess.run(command(out, *suite), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert table.returncode == 0, table.stderr
    record = json.loads((out / "results.json").read_text())
    assert record["finished"] == 2 and {cell["entry"] for cell in record["cells"]} == {"near", "line"}
    assert {file: file.stat().st_mtime_ns for file in (out / "results").iterdir()} == kept
