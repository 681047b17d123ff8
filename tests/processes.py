"""Runs a function in several real processes that form a gloo group."""

from __future__ import annotations

import gc
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_in_processes(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """``function(rank, world_size, *arguments)`` in each process; results (tensors, numbers, lists) in rank order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (function, world_size, port, folder, arguments), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _enter(rank: int, function: Callable[..., Any], world_size: int, port: int, folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, world_size, *arguments), Path(folder) / f"{rank}.pt")
        gc.collect()  # data-parallel wrappers lie in reference cycles and must not outlive the group
        dist.barrier()
    finally:
        dist.destroy_process_group()
