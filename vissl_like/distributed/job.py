"""What a task of a job does: learns its place among the others, runs, and puts the job back into the queue.

Only plain text travels from the command line to the job: arguments, folders, numbers. Submitit writes it into a file of
its own and calls the object in every task.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vissl_like.distributed import preemption
from vissl_like.utils.errors import UserError

MAIN_SPEAKS_FIRST_S = 3.0
"""A failed task ends its whole job step; the main one gets so much time to say what is wrong."""
SHOWN = (
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_CPUS_PER_TASK",
    "SLURM_RESTART_COUNT",
    "CUDA_VISIBLE_DEVICES",
)
"""Variables of the environment that are worth a line in the log; no others are printed."""


@dataclass
class JobTask:
    """A run, as plain text.

    Attributes:
        arguments: as on a command line.
        folder: working directory.
        package: where the code of ``vissl_like`` must come from.
        max_requeues: how many times the job may put itself back.
    """

    arguments: list[str]
    folder: str
    package: str
    max_requeues: int

    def __call__(self) -> int:
        """Runs in every task of the job.

        Returns:
            exit status of the run, see ``launch``; the task ends with it. It does not return from a job that goes back
            into the queue.
        """
        preemption.enter_job()
        import submitit

        environment = submitit.JobEnvironment()
        rank = environment.global_rank
        try:
            status = self._run(environment)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status = 2
        except KeyboardInterrupt:
            status = 130
        if status != 0 and self._goes_back(environment) and (rank != 0 or _requeued(environment)):
            _vanish()
        if status != 0:
            if rank != 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun's, when the main task has ended
                time.sleep(MAIN_SPEAKS_FIRST_S)
            _end_with(status)
        return status

    def checkpoint(self) -> Any:
        """What Submitit calls at a signal that comes before ``enter_job``: the same again, state is on the disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, environment: Any) -> int:
        from vissl_like.config.load import load_settings
        from vissl_like.distributed.launch import run_process

        os.chdir(self.folder)
        found = Path(__file__).resolve().parents[1]
        if found != Path(self.package):
            raise UserError(f"the job's vissl_like comes from {found}, it was submitted from {self.package}")
        facts = ", ".join(f"{name}={os.environ[name]}" for name in SHOWN if os.environ.get(name))
        print(
            f"job {environment.job_id}: process {environment.global_rank} of {environment.num_tasks} on "
            f"{socket.gethostname()}{f' ({facts})' if facts else ''}",
            flush=True,
        )
        loaded = load_settings(self.arguments)
        take_place(environment, loaded.resolved.DISTRIBUTED.port)
        return run_process(environment.global_rank, environment.num_tasks, None, loaded)

    def _goes_back(self, environment: Any) -> bool:
        """Whether the cluster wants its machine back and the run has not ended; decided by what was heard."""
        name = preemption.noted()
        if name in preemption.BEFORE_THE_END:
            wanted = True
        elif name == "SIGTERM" and environment.cluster == "slurm":
            wanted = being_preempted(environment.job_id)
        else:
            return False
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if wanted and restarts >= self.max_requeues:
            print(
                f"{name}: not put back into the queue: the job has come back {restarts} time(s), and "
                f"SLURM.max_requeues is {self.max_requeues}. The same command goes on from the newest checkpoint.",
                file=sys.stderr,
                flush=True,
            )
            return False
        return wanted


def take_place(environment: Any, port: int | None) -> None:
    """Tells this process its place among the others in torchrun's words, which the rest of the program reads.

    Args:
        environment: Submitit's description of the job.
        port: where to meet; None derives one from the job's number, since nodes cannot ask each other for a free one.
    """
    job = int(re.sub(r"\D", "", environment.raw_job_id) or 0)
    alone = environment.num_nodes == 1
    os.environ.update(
        RANK=str(environment.global_rank),
        WORLD_SIZE=str(environment.num_tasks),
        LOCAL_RANK=str(environment.local_rank),
        LOCAL_WORLD_SIZE=str(_tasks_here(environment)),
        MASTER_ADDR="127.0.0.1" if alone else environment.hostnames[0],
        MASTER_PORT=str(port or 20000 + job % 12000),  # below the ports that systems hand out by themselves
    )


def _tasks_here(environment: Any) -> int:
    """Tasks on this node. An allocation may be uneven: Slurm counts ``2(x3),1`` for three nodes of 2 and one of 1."""
    counts: list[int] = []
    for word in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", word)
        counts += [int(found[1])] * int(found[2] or 1) if found else []
    if len(counts) == environment.num_nodes and sum(counts) == environment.num_tasks:
        return counts[environment.node]
    return max(1, environment.num_tasks // environment.num_nodes)


def take_place_under_srun(port: int | None) -> bool:
    """``take_place`` for a program that was started by srun itself; False where that is not so."""
    if "SLURM_PROCID" not in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return False
    try:
        from submitit.slurm.slurm import SlurmJobEnvironment
    except ImportError as error:
        raise UserError("under srun the package submitit is needed: pip install 'submitit>=1.5'") from error
    take_place(SlurmJobEnvironment(), port)
    return True


def being_preempted(job: str) -> bool:
    """Whether Slurm is taking the job's nodes for another (SIGTERM alone may also mean that somebody cancelled it)."""
    try:
        told = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    state = re.search(r"\bJobState=(\S+)", told)
    time_of_it = re.search(r"\bPreemptTime=(\S+)", told)
    return bool(state and time_of_it) and state[1] == "RUNNING" and time_of_it[1] not in ("None", "N/A")  # type: ignore


def _requeued(environment: Any) -> bool:
    """Puts the job back into the queue; whether that worked (said if not)."""
    print(f"{preemption.noted()}: putting job {environment.job_id} back into the queue", file=sys.stderr, flush=True)
    try:
        environment._requeue(0)  # scontrol requeue JOB; the local executor starts the tasks again
    except (OSError, subprocess.SubprocessError) as error:
        if getattr(error, "returncode", 0) < 0:
            return True  # scontrol was killed: Slurm has begun to clear the job away, as asked
        print(f"that failed: {error}. The same command goes on from here.", file=sys.stderr, flush=True)
        return False
    return True


def _vanish() -> None:
    """Ends the process without a result: Submitit would take a job that has one for finished."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with(status: int) -> None:
    """The process ends with ``status`` after Submitit has written its result: the cluster sees how the run ended."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
