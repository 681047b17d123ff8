"""Runs as jobs of a Slurm cluster, submitted through Submitit."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vissl_like.config.files import configs_folder
from vissl_like.config.load import LoadedSettings
from vissl_like.config.resolve import JobPlan, plan_job
from vissl_like.config.yaml_text import dump_yaml
from vissl_like.distributed.job import JobTask
from vissl_like.registry import ENGINES
from vissl_like.utils.environment import COPIED_FROM, git_state
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import write_atomic

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass
class Submitted:
    """A job that was handed to the cluster.

    Attributes:
        name: what it does.
        handle: Submitit's job.
    """

    name: str
    handle: Any

    @property
    def job_id(self) -> str:
        """The cluster's number of it; a job of an array has the array's number, ``_`` and its own."""
        return str(self.handle.job_id)

    def log(self, rank: int = 0) -> Path:
        """Standard output of one process; standard error lies beside it."""
        return Path(self.handle.task(rank).paths.stdout)


def submit_run(loaded: LoadedSettings) -> int:
    """Submits what the settings describe, and says how to follow it.

    An engine with ``job_arguments`` (a sweep, a suite) becomes an array of jobs, everything else one job.

    Returns:
        0, or with SLURM.wait the exit status of the first job that did not end well.

    Raises:
        UserError: nothing could be submitted.
    """
    settings = loaded.resolved
    more = {settings.SLURM.name: list[str]()}
    if ENGINES.describe(settings.ENGINE.name).facts.get("submits_array"):
        options = {str(key): value for key, value in settings.ENGINE.items() if key != "name"}
        more = ENGINES.get(settings.ENGINE.name)(loaded, **options).job_arguments()
    if not more:
        print(f"Nothing is left to submit: every part has ended well; see {settings.OUTPUT_DIR}", flush=True)
        return 0
    base = freeze(loaded)
    jobs = submit(loaded, {name: [*base, *arguments] for name, arguments in more.items()})
    print(_told(loaded, jobs), flush=True)
    return wait_for(jobs) if settings.SLURM.wait else 0


def submit(loaded: LoadedSettings, tasks: dict[str, list[str]]) -> list[Submitted]:
    """Submits command lines as jobs, several as one array.

    Args:
        loaded: settings whose SLURM section says what to ask for.
        tasks: arguments by name.

    Raises:
        UserError: Submitit or the cluster is missing, or the cluster refuses.
    """
    settings = loaded.resolved
    slurm, plan = settings.SLURM, plan_job(settings.SLURM, settings.DISTRIBUTED.processes)
    folder = slurm_folder(loaded)
    try:
        import submitit
    except ImportError as error:
        raise UserError("SLURM.USE_SLURM needs the package submitit: pip install 'submitit>=1.5'") from error
    code = _PACKAGE.parent if not slurm.snapshot else copy_code(folder / f"code_{uuid.uuid4().hex[:8]}")
    package = str((code / "vissl_like").resolve())
    calls = [JobTask(arguments, os.getcwd(), package, slurm.max_requeues) for arguments in tasks.values()]
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=slurm.cluster)
        executor.update_parameters(**parameters_of(slurm, plan))
        with _code_first(code, enter=slurm.snapshot):
            if slurm.cluster == "slurm":
                with executor.batch():
                    handles = [executor.submit(call) for call in calls]
            else:
                handles = _a_few_at_a_time(executor, calls, slurm.parallel_jobs)
    except (RuntimeError, OSError, subprocess.SubprocessError, submitit.core.utils.FailedJobError) as error:
        lines = str(error).strip() or type(error).__name__
        raise UserError(f"the job could not be submitted: {lines}. Nothing runs.{_advice(lines)}") from error
    return [Submitted(name, handle) for name, handle in zip(tasks, handles)]


def _advice(lines: str) -> str:
    """What to do where there is no cluster to be found."""
    if not any(sign in lines for sign in ("resolve_ctls", "Unable to contact", "No such file", "Could not detect")):
        return ""
    return " No Slurm controller was found from here; config.SLURM.cluster=local tries the job on this machine."


def parameters_of(slurm: Any, plan: JobPlan) -> dict[str, Any]:
    """The request in Submitit's words; what is not asked for is left to the cluster."""
    wanted = {
        "name": slurm.name,
        "timeout_min": plan.minutes,
        "nodes": plan.nodes,
        "tasks_per_node": plan.tasks_per_node,
        "cpus_per_task": slurm.cpus_per_task,
        "gpus_per_node": slurm.gpus_per_node or None,
        "mem_gb": slurm.mem_gb,
    }
    own = {name: slurm[name] for name in ("partition", "account", "qos", "constraint", "exclude", "comment")}
    own |= {
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": slurm.parallel_jobs,
        # One process that dies ends the others at once; and srun has forgotten the cores of sbatch since Slurm 22.05.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={slurm.cpus_per_task}"],
        # Also where the cluster's default is that a pre-empted job does not come back.
        "additional_parameters": {"requeue": True},
    }
    wanted |= {f"slurm_{name}": value for name, value in own.items()}
    return {name: value for name, value in wanted.items() if value is not None}


def slurm_folder(loaded: LoadedSettings) -> Path:
    """Folder of logs and job files, made if need be.

    Raises:
        UserError: it cannot be made, or job files could not name it.
    """
    settings = loaded.resolved
    folder = Path(settings.SLURM.folder or Path(settings.OUTPUT_DIR) / "slurm").expanduser().absolute()
    if any(character in str(folder) for character in "%\n\r'\"\\"):
        raise UserError(f"SLURM.folder {folder}: job files take no %, quotes or line breaks in it. Choose another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"SLURM.folder {folder} cannot be made: {error.strerror or error}. Choose another.") from error
    return folder


def freeze(loaded: LoadedSettings) -> list[str]:
    """Writes what was given into one file, which the job reads; returns the arguments that name it.

    A job may begin days later and come back many times: what is edited meanwhile must not reach it.
    """
    settings, given = loaded.resolved, dict(loaded.given)
    folder = slurm_folder(loaded)
    plugins = [plugin for plugin in loaded.plugins if plugin.endswith(".py")]
    if settings.SLURM.snapshot and plugins:
        place = folder / f"plugins_{uuid.uuid4().hex[:8]}"
        copies = {plugin: _copied(Path(plugin), place / str(number)) for number, plugin in enumerate(plugins)}
        given["PLUGINS"] = [copies.get(plugin, plugin) for plugin in loaded.plugins]
    if settings.TRAIN.threads is None:
        given["TRAIN"] = {**given.get("TRAIN", {}), "threads": settings.SLURM.cpus_per_task}
    file = folder / f"settings_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:4]}.yaml"
    write_atomic(file, "# Written at submission; the job reads this file.\n" + dump_yaml(given))
    return [f"config={file}"]


def _copied(file: Path, folder: Path) -> str:
    folder.mkdir(parents=True)
    return str(shutil.copy2(file, folder / file.name))


def copy_code(folder: Path) -> Path:
    """Copies the package and the settings files that come with it; returns the folder to import from."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=unwanted)
    if configs_folder().parent != _PACKAGE:
        shutil.copytree(configs_folder(), folder / "configs", ignore=unwanted)
    (folder / COPIED_FROM).write_text(git_state(), encoding="utf-8")
    return folder


@contextlib.contextmanager
def _code_first(code: Path, enter: bool) -> Iterator[None]:
    """Jobs inherit the environment and the folder of their submission: Python finds ``code`` before anything else."""
    before, here = os.environ.get("PYTHONPATH"), os.getcwd()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(code), *filter(None, [before])])
    if enter:  # python -m looks into the current folder first
        os.chdir(code)
    try:
        yield
    finally:
        os.chdir(here)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _a_few_at_a_time(executor: Any, calls: list[JobTask], limit: int) -> list[Any]:
    handles: list[Any] = []
    for call in calls:
        while sum(not handle.done() for handle in handles) >= limit:
            time.sleep(0.2)
        handles.append(executor.submit(call))
    return handles


def _told(loaded: LoadedSettings, jobs: list[Submitted]) -> str:
    settings, first = loaded.resolved, jobs[0]
    plan = plan_job(settings.SLURM, settings.DISTRIBUTED.processes)
    rows = []
    if len(jobs) > 1:
        array = first.job_id.split("_")[0]
        rows += [("submitted", f"{len(jobs)} jobs, array {array}"), ("each", plan.text)]
        rows += [(job.job_id, f"{job.name}: {job.log()}") for job in jobs]
    else:
        array = first.job_id
        rows += [("submitted", f"job {array}"), ("asked for", plan.text), ("log", str(first.log()))]
        if plan.processes > 1:
            rows.append(("the last one's", str(first.log(plan.processes - 1))))
    rows.append(("errors", "beside each log, .err for .out"))
    rows.append(("follow", f"tail -n +1 -F {first.log()} {first.log().with_suffix('.err')}"))
    if settings.SLURM.cluster == "slurm":
        rows += [("state", f"squeue -j {array}"), ("cancel", f"scancel {array}")]
    else:
        rows.append(("cancel", f"kill {' '.join(job.job_id for job in jobs)}"))
    rows.append(("results", str(Path(settings.OUTPUT_DIR).absolute())))
    table = ENGINES.describe(settings.ENGINE.name).facts.get("after_jobs")
    if table:
        rows.append(("table", table))
    return "\n".join(f"{label:<14}  {text}" for label, text in rows)


def wait_for(jobs: list[Submitted]) -> int:
    """Waits until all jobs have ended, telling each end.

    Returns:
        0, or the exit status of the first job that did not end well; 1 for one that the cluster ended.

    Raises:
        KeyboardInterrupt: the wait was interrupted; the jobs go on (said).
    """
    begin, waiting, statuses = time.monotonic(), list(jobs), dict[str, int]()
    try:
        while waiting:
            for job in [job for job in waiting if job.handle.done(force_check=True)]:
                waiting.remove(job)
                statuses[job.job_id] = status_of(job)
            if waiting:
                time.sleep(min(15.0, 0.5 + (time.monotonic() - begin) / 50))
    except KeyboardInterrupt:
        ids = " ".join(job.job_id for job in waiting)
        print(f"no longer waiting; these go on: {ids}. To end them: scancel {ids}", file=sys.stderr)
        raise
    return next((statuses[job.job_id] for job in jobs if statuses[job.job_id]), 0)


def status_of(job: Submitted) -> int:
    """Exit status of a job that has ended, told in a line; the main process's counts first."""
    status, said = 0, "ended with exit status 0"
    for rank in range(job.handle.num_tasks):
        status, said = _ended(job.handle.task(rank))
        if status:
            break
    where = "" if status == 0 else f"; see {job.log()} and the .err beside it"
    print(f"job {job.job_id}, {job.name}, {said}{where}", flush=True)
    return status


def _ended(task: Any) -> tuple[int, str]:
    """Exit status of one task, and how it ended."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        status = int(task.result())
        return status, f"ended with exit status {status}"
    except FailedJobError as error:
        return 1, f"failed: {str(error).strip().rsplit(chr(10), 1)[-1]}"
    except UncompletedJobError:
        return 1, f"was ended by the cluster ({task.state.lower()})"
