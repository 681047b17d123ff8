"""How the processes of a run find each other: a timed handshake that names those who do not come.

The main process keeps a small store at one address; each process writes its name there. Only when all are there does
torch's own process group begin, on the same store; it would wait in silence for the missing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Iterable
from typing import Any

from vissl_like.utils.errors import UserError

GRACE_S = 10.0
"""How much longer than the main process the others wait, so that they hear its verdict."""
_GO = "go"


def meet(rank: int, world_size: int, address: str, port: int, patience_s: float) -> tuple[Any, list[str]]:
    """Waits for all processes of the run.

    Args:
        rank: of this process.
        world_size: processes wanted.
        address: where the main process is.
        port: its port there.
        patience_s: longest wait, in seconds.

    Returns:
        the store, for ``init_process_group``, and the host of each process in rank order.

    Raises:
        UserError: somebody is missing; each process says what it knows.
    """
    from torch.distributed import PrefixStore

    deadline = time.monotonic() + patience_s
    # torchrun keeps such a store at that address itself, and keeps it when it starts the processes again.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    base = _open_store(rank, world_size, address, port, patience_s)
    store = PrefixStore(f"meeting_{attempt}", base)
    store.set(f"host_{rank}", socket.gethostname())
    if rank == 0:
        _gather(store, world_size, f"{address}:{port}", deadline, patience_s)
    else:
        _hear_verdict(store, rank, f"{address}:{port}", deadline + GRACE_S - time.monotonic())
    hosts = [store.get(f"host_{other}").decode() for other in range(world_size)]
    return PrefixStore(f"run_{attempt}", base), hosts


def _open_store(rank: int, world_size: int, address: str, port: int, patience_s: float) -> Any:
    from torch.distributed import DistError, TCPStore

    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    timeout = datetime.timedelta(seconds=patience_s)
    try:
        return TCPStore(address, port, world_size, keeps, timeout, wait_for_workers=False)
    except (DistError, RuntimeError) as error:
        if keeps:
            raise UserError(
                f"the main process cannot listen at {address}:{port}: {_first_line(error)}. Another program may have "
                "the port; choose one with DISTRIBUTED.port."
            ) from error
        raise UserError(
            f"no main process at {address}:{port} within {patience_s:.0f} s, from {socket.gethostname()}: "
            f"{_first_line(error)}. It has not started, or a firewall is between; DISTRIBUTED.handshake_minutes is the "
            "wait."
        ) from error


def _gather(store: Any, world_size: int, where: str, deadline: float, patience_s: float) -> None:
    missing = list(range(world_size))
    while missing:
        missing = [rank for rank in missing if not store.check([f"host_{rank}"])]
        if missing and time.monotonic() > deadline:
            here = [rank for rank in range(world_size) if rank not in missing]
            hosts = by_host([(rank, store.get(f"host_{rank}").decode()) for rank in here])
            text = (
                f"wanted {world_size} processes, found {len(here)} at {where} within {patience_s:.0f} s. Missing: "
                f"{ranges(missing)}. Here: {hosts}"
            )
            store.set("verdict", text)
            time.sleep(min(1.0, GRACE_S / 2))  # the store goes with this process: let the others read it
            raise UserError(f"{text}. Look into the logs of the missing; DISTRIBUTED.handshake_minutes is the wait.")
        time.sleep(0.05 if missing else 0)
    store.set("verdict", _GO)


def _hear_verdict(store: Any, rank: int, where: str, wait_s: float) -> None:
    verdict = "the main process was there, but said nothing"
    with contextlib.suppress(Exception):  # torch's kinds of time-outs and broken connections differ by version
        store.wait(["verdict"], datetime.timedelta(seconds=max(0.1, wait_s)))
        verdict = store.get("verdict").decode()
    if verdict != _GO:
        raise UserError(f"process {rank} met the main process at {where}, but the run cannot begin: {verdict}")


def by_host(named: Iterable[tuple[int, str]]) -> str:
    """``0-3 on first, 4-7 on second``."""
    places: dict[str, list[int]] = {}
    for rank, host in named:
        places.setdefault(host, []).append(rank)
    return ", ".join(f"{ranges(ranks)} on {host}" for host, ranks in places.items())


def ranges(numbers: Iterable[int]) -> str:
    """``0-2, 5`` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
