"""How a run's processes are started: this process, local ones, those that torchrun or srun has started, or a job."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

from vissl_like.distributed import comm, preemption, watchdog
from vissl_like.distributed.job import take_place_under_srun
from vissl_like.distributed.meeting import by_host, meet
from vissl_like.plugins import announce_plugins
from vissl_like.registry import ENGINES
from vissl_like.utils.environment import available_cores
from vissl_like.utils.errors import UserError

_ENDS_WITH: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 3, signal.SIGUSR2: 3}
"""Exit status of a run that a signal has stopped."""


def launch(loaded: Any) -> int:
    """Runs the engine that the settings name, in as many processes as they ask for.

    Args:
        loaded: ``LoadedSettings``.

    Returns:
        exit status: 0 done, 2 a mistake of the user's (or processes that did not meet), 3 stopped by a hook or by
        SIGUSR1 or SIGUSR2, 4 stood still, 130 or 143 stopped by SIGINT or SIGTERM, 1 anything else.
    """
    wanted = loaded.resolved.DISTRIBUTED.processes
    started_by_other = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    started_by_other = started_by_other or take_place_under_srun(loaded.resolved.DISTRIBUTED.port)
    if loaded.resolved.SLURM.USE_SLURM:
        if started_by_other:
            print("SLURM.USE_SLURM submits a job: start it by itself, not under torchrun or srun", file=sys.stderr)
            return 2
        from vissl_like.distributed.slurm import submit_run

        return submit_run(loaded)
    if started_by_other:
        given = int(os.environ["WORLD_SIZE"])
        if wanted not in (1, given):
            print(f"DISTRIBUTED.processes is {wanted}, but the launcher started {given} processes", file=sys.stderr)
            return 2
        return run_process(int(os.environ["RANK"]), given, None, loaded)
    if wanted == 1:
        return run_process(0, 1, None, loaded)
    return _spawn(loaded, wanted)


def _spawn(loaded: Any, processes: int) -> int:
    import torch.multiprocessing as mp

    port = loaded.resolved.DISTRIBUTED.port or _free_port()
    context = mp.get_context("spawn")
    workers: list[Any] = []
    received: list[int] = []
    told: set[int] = set()

    # A signal to this process alone (kill, a container's stop) must reach those that train.
    def forward(number: int, _: object) -> None:
        received.append(number)
        told.update(worker.pid for worker in workers)
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid, number)

    for number in _ENDS_WITH:
        signal.signal(number, forward)
    for rank in range(processes):
        if received:
            break
        arguments = (os.getpid(), rank, processes, port, loaded)
        worker = context.Process(target=_worker, args=arguments, name=f"process {rank}")
        worker.start()
        workers.append(worker)
    if not workers:
        return _ENDS_WITH[received[0]]
    for worker in workers:
        if received and worker.pid not in told:  # the signal came while this one was being started
            os.kill(worker.pid, received[0])
    return _watch(workers, received)


def _watch(workers: list[Any], received: list[int]) -> int:
    """Waits for all; when one fails or is killed the others are stopped, and the first failure is told.

    Args:
        workers: started processes.
        received: signals that were passed on to them; it grows. A process that is not ready to hear one dies of it.
    """
    from multiprocessing.connection import wait

    status, running = 0, list(workers)
    while running:
        ready = set(wait([worker.sentinel for worker in running]))
        for worker in [worker for worker in running if worker.sentinel in ready]:
            worker.join()
            running.remove(worker)
            if worker.exitcode != 0 and status == 0:
                status = worker.exitcode
                if -status in received:
                    status = _ENDS_WITH[-status]
                if status < 0:
                    print(f"{worker.name} was killed by signal {-status}; stopping the others", file=sys.stderr)
                    status = 1
                if status not in (130, 143, 3):
                    _stop(running)
    return status


def _stop(workers: list[Any]) -> None:
    """SIGTERM to all at once and, to those that are still there after 20 seconds, SIGKILL."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + 20
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()


def _worker(launcher: int, rank: int, world_size: int, port: int, loaded: Any) -> None:
    os.environ.update(LOCAL_RANK=str(rank))
    _end_with_parent()
    if os.getppid() != launcher:  # it died while this process was loading: nobody would ever stop this one
        sys.exit(143)
    sys.exit(run_process(rank, world_size, port, loaded))


def _end_with_parent() -> None:
    """Asks Linux for SIGTERM when the launcher dies, even by kill -9: finish the step, save, leave."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def run_process(rank: int, world_size: int, port: int | None, loaded: Any) -> int:
    """One process of the run, from joining the group to leaving it.

    Args:
        rank: of this process.
        world_size: processes of the run.
        port: where processes of this machine meet; None takes MASTER_ADDR and MASTER_PORT.
        loaded: ``LoadedSettings``.

    Returns:
        exit status, see ``launch``.
    """
    import torch

    settings = loaded.resolved
    announce_plugins(loaded.plugins)
    if settings.TRAIN.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    torch.set_num_threads(settings.TRAIN.threads or max(1, available_cores() // local_world))
    stall = settings.DISTRIBUTED.stall_minutes
    stall = settings.DISTRIBUTED.timeout_minutes if stall is None else stall
    watchdog.arm(stall * 60, f"process {rank} of {world_size} on {socket.gethostname()}")
    try:
        _join_group(rank, world_size, port, settings)
        options = {str(key): value for key, value in settings.ENGINE.items() if key != "name"}
        status = ENGINES.get(settings.ENGINE.name)(loaded, **options).run()
        if preemption.in_job():
            preemption.agree()
        return status
    except UserError as error:
        print(f"{'' if rank == 0 else f'process {rank}: '}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        if world_size > 1:
            print(f"process {rank} of {world_size} failed:", file=sys.stderr)
        traceback.print_exc()
        return 1
    finally:
        try:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                watchdog.beat("leaving the group of processes")
                # The data-parallel wrapper lies in reference cycles; it must not outlive the group and its threads.
                gc.collect()
                comm.forget_patience()
                torch.distributed.destroy_process_group()
        finally:
            watchdog.disarm()


def _join_group(rank: int, world_size: int, port: int | None, settings: Any) -> None:
    """Takes this process's GPU and meets the others.

    Raises:
        UserError: CUDA was asked for and is not there, or a process did not come.
    """
    import torch
    import torch.distributed as dist

    device, has_gpu = settings.DISTRIBUTED.device, torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("DISTRIBUTED.device is 'cuda', but torch sees no GPU. Use device=cpu or auto.")
    use_gpu = has_gpu and device != "cpu"
    if use_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if world_size == 1:
        return
    backend = settings.DISTRIBUTED.backend
    if backend == "auto":
        backend = (
            "nccl"
            if use_gpu and int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) <= torch.cuda.device_count()
            else "gloo"
        )
    if port is not None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store, hosts = meet(rank, world_size, address, port, settings.DISTRIBUTED.handshake_minutes * 60)
    timeout = datetime.timedelta(minutes=settings.DISTRIBUTED.timeout_minutes)
    store.set_timeout(timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    if rank == 0:
        places = by_host(enumerate(hosts))
        print(f"{world_size} processes met at {address}:{port} over {backend}: {places}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
