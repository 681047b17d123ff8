"""Jobs: what is asked for, what is submitted, and what happens in them; Slurm itself is in test_real_slurm.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import submitit

from vissl_like.config import load_settings
from vissl_like.config.resolve import plan_job
from vissl_like.config.schema import SlurmSettings
from vissl_like.distributed import job as job_module
from vissl_like.distributed.slurm import freeze, parameters_of, submit_run
from vissl_like.engines.cli import main
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.errors import SettingsError, UserError

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "job_plugin.py"


def section(**values):
    return {**vars(SlurmSettings()), **values}


def arguments(folder, *more):
    return [f"config.PLUGINS=[{PLUGIN}]", "config.ENGINE=place", f"config.OUTPUT_DIR={folder}", *more]


SLURM = ["config.SLURM.USE_SLURM=true"]
LOCAL = [*SLURM, "config.SLURM.cluster=local", "config.SLURM.wait=true", "config.DISTRIBUTED.device=cpu"]


@pytest.mark.parametrize(
    ("given", "processes", "nodes", "tasks", "total"),
    [
        ({}, 1, 1, 1, 1),
        ({}, 4, 1, 4, 4),
        ({"nodes": 2}, 4, 2, 2, 4),
        ({"nodes": 2, "gpus_per_node": 8}, 1, 2, 8, 16),
        ({"nodes": 2, "gpus_per_node": 8}, 16, 2, 8, 16),
        ({"nodes": 3, "tasks_per_node": 2}, 1, 3, 2, 6),
    ],
)
def test_processes_of_a_job(given, processes, nodes, tasks, total):
    plan = plan_job(section(**given), processes)
    assert (plan.nodes, plan.tasks_per_node, plan.processes) == (nodes, tasks, total)
    assert f"{total} process" in plan.text


@pytest.mark.parametrize(("hours", "minutes"), [(24.0, 1440), (0.5, 30), (0.51, 31)])
def test_the_time_limit_is_rounded_up(hours, minutes):
    assert plan_job(section(time_hours=hours), 1).minutes == minutes


@pytest.mark.parametrize(
    ("given", "processes", "message"),
    [
        ({"nodes": 3}, 4, "cannot be divided equally among SLURM.nodes = 3"),
        ({"gpus_per_node": 8, "tasks_per_node": 4}, 1, "each process takes one GPU"),
        ({"nodes": 2, "tasks_per_node": 2}, 8, "the job has 4"),
        ({"nodes": 2, "tasks_per_node": 1, "cluster": "local"}, 1, "has one machine"),
        ({"time_hours": 0.01}, 1, "before it begins"),
    ],
)
def test_requests_that_contradict_themselves(given, processes, message):
    with pytest.raises(SettingsError, match=message):
        plan_job(section(**given), processes)


NASTY = ["a b$(touch x)", "a\n#SBATCH --wrap=x", "a'b", 'a"b', "a`b", "a;b", "\u00e4", ""]


@pytest.mark.parametrize("key", ["name", "partition", "account", "qos", "constraint", "exclude", "comment"])
def test_texts_that_could_leave_their_line_are_refused(key):
    for text in NASTY:
        if key == "comment" and ";" in text:
            continue  # a job file takes it, in quotes
        with pytest.raises(SettingsError, match=f"SLURM.{key}"):
            plan_job(section(**{key: text}), 1)
    assert plan_job(section(partition="a,b", constraint="a100|h100*2", exclude="node[3,7-9]", comment="run 3: a=b"), 1)


def test_wrong_requests_are_settings_errors_and_the_batch_is_that_of_the_job():
    base = ["config=quick/synthetic", *SLURM]
    with pytest.raises(SettingsError, match="divided equally into 3 processes"):
        load_settings([*base, "config.SLURM.gpus_per_node=3"])
    with pytest.raises(SettingsError, match=r"(?s)2 problems.*SLURM.partition(.|\n)*one GPU"):
        load_settings([*base, "config.SLURM={partition: 'a b', gpus_per_node: 3, tasks_per_node: 2}"])
    assert load_settings(["config=quick/synthetic", "config.SLURM.gpus_per_node=3"])  # not asked for


def test_the_job_file_asks_for_what_the_settings_say(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    given = section(
        nodes=2, gpus_per_node=8, cpus_per_task=10, mem_gb=64.0, time_hours=2.5, partition="gpu,long", account="vision",
        qos="high", constraint="a100|h100", exclude="node[3-4]", comment="first try", name="pets", signal_seconds=200,
    )  # fmt: skip
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(**parameters_of(load_like(given), plan_job(given, 1)))
    text = executor._executor._make_submission_file_text("COMMAND", "1")
    lines = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert lines >= {
        "nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=10", "mem=64GB", "time=150", "account=vision",
        "partition=gpu,long", "qos=high", "constraint='a100|h100'", "exclude='node[3-4]'", "comment='first try'",
        "job-name=pets", "signal=USR2@200", "requeue", "open-mode=append",
    }  # fmt: skip
    assert "--kill-on-bad-exit=1 --cpus-per-task=10 COMMAND" in text


def test_nothing_is_asked_for_that_was_not_given(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(**parameters_of(load_like(section()), plan_job(section(), 1)))
    text = executor._executor._make_submission_file_text("COMMAND", "1")
    for word in ("partition", "account", "qos", "constraint", "exclude", "comment", "mem", "gpus"):
        assert f"--{word}" not in text


def load_like(given):
    from omegaconf import OmegaConf

    return OmegaConf.create(given)


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """``sbatch`` that keeps the job file and its folder, and an ``srun`` that is only there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    script = f'#!/bin/sh\ncp "$1" {tools}/job.sh\npwd > {tools}/pwd\nenv > {tools}/env\necho "Submitted batch job 77"\n'
    (tools / "sbatch").write_text(script)
    (tools / "srun").write_text("#!/bin/sh\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tools


def test_submitting_says_how_to_follow_and_cancel(tmp_path, fake_slurm, capsys):
    assert main(arguments(tmp_path / "out", *SLURM, "config.SLURM.nodes=2", "config.SLURM.tasks_per_node=2")) == 0
    told = capsys.readouterr().out
    log = tmp_path / "out/slurm/77_0_log"
    assert "job 77" in told and "scancel 77" in told and "squeue -j 77" in told
    assert f"tail -n +1 -F {log}.out {log}.err" in told and str(tmp_path / "out/slurm/77_3_log.out") in told
    assert "4 processes (nodes * tasks_per_node) on 2 nodes" in told
    assert "--nodes=2" in (fake_slurm / "job.sh").read_text()
    copies = f"{tmp_path / 'out/slurm/code_'}"  # Python finds the copy of the code, from whatever folder it starts
    assert f"PYTHONPATH={copies}" in (fake_slurm / "env").read_text()
    assert (fake_slurm / "pwd").read_text().startswith(copies)


def test_without_a_snapshot_the_job_runs_the_code_in_its_place(tmp_path, fake_slurm):
    assert main(arguments(tmp_path / "out", *SLURM, "config.SLURM.snapshot=false")) == 0
    assert f"PYTHONPATH={ROOT}" in (fake_slurm / "env").read_text() and not list(tmp_path.glob("out/slurm/code_*"))
    assert Path((fake_slurm / "pwd").read_text().strip()) == Path.cwd()


def test_what_the_cluster_refuses_is_told(tmp_path, fake_slurm, capsys):
    (fake_slurm / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n"
    )
    assert main(arguments(tmp_path / "out", *SLURM, "config.SLURM.partition=gpu")) == 2
    assert "could not be submitted: sbatch: error: invalid partition" in capsys.readouterr().err


def test_a_machine_without_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(arguments(tmp_path / "out", *SLURM)) == 2
    assert "srun" in capsys.readouterr().err


def test_not_under_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments(tmp_path / "out", *SLURM)) == 2
    assert "not under torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["100% sure", "it's"])
def test_folders_that_job_files_cannot_name(tmp_path, name):
    with pytest.raises(UserError, match=r"SLURM\.folder"):
        freeze(load_settings(arguments(tmp_path / name, *SLURM)))


def test_what_is_edited_after_submission_does_not_reach_the_job(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("BASES: [quick/synthetic]\nSEED: 5\nLOSS: {temperature: 0.25}\n")
    # Without copies of plugins: this process cannot take up a component a second time.
    given = ["config.TRAIN.length=3 steps", "config.SLURM.snapshot=false"]
    loaded = load_settings([f"config={file}", *given, *arguments(tmp_path / "out", *SLURM)])
    frozen = freeze(loaded)
    file.write_text("SEED: 6\n")
    again = load_settings(frozen).resolved
    assert (again.SEED, again.LOSS.temperature, again.TRAIN.length, again.ENGINE.name) == (5, 0.25, "3 steps", "place")
    assert again.TRAIN.threads == 1  # SLURM.cpus_per_task
    assert {k: v for k, v in again.items() if k != "TRAIN"} == {
        k: v for k, v in loaded.resolved.items() if k != "TRAIN"
    }


@pytest.mark.slow
def test_two_processes_as_a_job_of_this_machine(tmp_path, capfd):
    out = tmp_path / "out"
    more = [
        "config.SLURM.tasks_per_node=2",
        "config.SEED=11",
        "config.SLURM.cpus_per_task=2",
    ]
    assert main(arguments(out, *LOCAL, *more)) == 0
    places = [json.loads((out / f"place_{rank}.json").read_text()) for rank in (0, 1)]
    for rank, place in enumerate(places):
        assert place["RANK"] == place["LOCAL_RANK"] == str(rank)
        assert place["WORLD_SIZE"] == place["LOCAL_WORLD_SIZE"] == "2" and place["MASTER_ADDR"] == "127.0.0.1"
        assert (place["sum"], place["seed"], place["threads"]) == (3, 11, 2)
        assert place["cwd"] == os.getcwd()
        assert Path(place["code"]).parent == out / "slurm" and Path(place["code"]).name.startswith("code_")
        assert (Path(place["code"]) / "COPIED_FROM").read_text() == describe_environment()["git"]
    told = capfd.readouterr().out
    assert "ended with exit status 0" in told
    (log,) = out.glob("slurm/*_0_log.err")
    assert "2 processes met at 127.0.0.1:" in log.read_text() and "over gloo: 0-1 on " in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("option", "status"), [("mistaken: true", 2), ("status: 3", 3)])
def test_the_wait_ends_with_the_status_of_the_run(tmp_path, option, status, capfd):
    assert main(arguments(tmp_path / "out", *LOCAL, f"config.ENGINE={{name: place, {option}}}")) == status
    assert f"exit status {status}; see " in capfd.readouterr().out
    (log,) = (tmp_path / "out").glob("slurm/*_0_log.err")
    assert ("the place is taken" in log.read_text()) == (status == 2) and "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_job_comes_back_after_the_signal(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools/run_distributed_engines.py"), *arguments(out, *LOCAL)]
    waiting = subprocess.Popen([*command, "config.ENGINE={name: place, wait: true}"], text=True)
    deadline = time.time() + 120
    while not (out / "pid_0").exists():
        assert waiting.poll() is None and time.time() < deadline
        time.sleep(0.05)
    os.kill(int((out / "pid_0").read_text()), signal.SIGUSR2)
    assert waiting.wait(120) == 0
    assert json.loads((out / "place_0.json").read_text())["sum"] == 1
    (log,) = out.glob("slurm/*_0_log.err")
    assert "SIGUSR2: no training is under way" in log.read_text() and "back into the queue" in log.read_text()


class Environment:
    """What Submitit says in the third of four processes on two machines."""

    job_id = raw_job_id = "1234567"
    global_rank, local_rank, num_tasks, num_nodes, node = 2, 0, 4, 2, 1
    hostnames = ("first", "second")
    cluster = "slurm"


def test_the_place_among_processes_of_several_machines(monkeypatch):
    for word in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(word, "unset")
    job_module.take_place(Environment(), None)
    words = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [os.environ[word] for word in words] == ["2", "4", "0", "2", "first"]
    assert 20000 <= int(os.environ["MASTER_PORT"]) < 32000
    job_module.take_place(Environment(), 4321)
    assert os.environ["MASTER_PORT"] == "4321"


@pytest.mark.parametrize(
    ("told", "node", "nodes", "tasks", "here"),
    [
        *[("3,1", 0, 2, 4, "3"), ("3,1", 1, 2, 4, "1"), ("2(x3),1", 2, 4, 7, "2"), ("2(x3),1", 3, 4, 7, "1")],
        *[("2(x2)", 1, 2, 4, "2"), ("", 1, 2, 4, "2"), ("4", 0, 2, 4, "2"), ("x", 0, 2, 1, "1")],
    ],
)
def test_the_processes_of_an_uneven_allocation(monkeypatch, told, node, nodes, tasks, here):
    for word in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(word, "unset")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", told)
    place = Environment()
    place.node, place.num_nodes, place.num_tasks = node, nodes, tasks
    job_module.take_place(place, None)
    assert os.environ["LOCAL_WORLD_SIZE"] == here


@pytest.mark.parametrize(
    ("told", "preempted"),
    [
        ("JobId=5 JobState=RUNNING PreemptTime=2026-01-02T03:04:05 Restarts=0", True),
        ("JobId=5 JobState=RUNNING PreemptEligibleTime=2026-01-02T03:04:05 PreemptTime=None", False),
        ("JobId=5 JobState=CANCELLED PreemptTime=2026-01-02T03:04:05", False),
        ("", False),
    ],
)
def test_cancelled_or_preempted(tmp_path, monkeypatch, told, preempted):
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho '{told}'\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert job_module.being_preempted("5") == preempted


@pytest.mark.parametrize(
    ("signal_name", "restarts", "back"), [("SIGUSR2", 0, True), ("SIGUSR2", 2, False), (None, 0, False)]
)
def test_how_often_a_job_comes_back(monkeypatch, capsys, signal_name, restarts, back):
    monkeypatch.setattr(job_module.preemption, "noted", lambda: signal_name)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    task = job_module.JobTask([], "/", "/", max_requeues=2)
    assert task._goes_back(Environment()) == back
    assert ("SLURM.max_requeues is 2" in capsys.readouterr().err) == (restarts == 2)


def test_submit_run_of_a_sweep_makes_an_array(tmp_path, fake_slurm, capsys):
    grid = "{name: sweep, engine: train, grid: {LOSS.temperature: [0.1, 0.2], SEED: [0, 1]}}"
    loaded = load_settings(
        ["config=quick/synthetic", f"config.OUTPUT_DIR={tmp_path / 'out'}", f"config.ENGINE={grid}", *SLURM]
    )
    assert submit_run(loaded) == 0
    told = capsys.readouterr().out
    assert "4 jobs, array 77" in told and "temperature-0.2_SEED-1" in told and "77_3_0_log.out" in told
    assert "array=0-3%4" in (fake_slurm / "job.sh").read_text()
    assert (tmp_path / "out/sweep.md").read_text().count("not begun") == 4
