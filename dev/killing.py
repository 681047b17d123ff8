"""Training runs that can be killed: started quickly, killed at a chosen moment, compared bit by bit.

Used by random_kills.py. Importing torch takes longer than these runs, so a run is forked from a process that has
imported it. What is forked is the public command line (``vissl_like.engines.cli.main``) with the arguments a user would
give, in a process group of its own; two processes get the environment that torchrun gives. The built-in launcher is
started as a program.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = str(ROOT / "tools" / "run_distributed_engines.py")
LONGEST_S = 300.0
"""A run that takes longer hangs."""
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes orphans of killed processes ours, so that their end can be waited for."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def prepare() -> None:
    """Imports what runs need, once for all that are forked later."""
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    for room in ("engines.train", "losses", "models", "hooks", "optimizers", "schedules", "data", "clustering"):
        module = importlib.import_module(f"vissl_like.{room}")
        for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
            with contextlib.suppress(ImportError):  # a component whose package is not installed
                importlib.import_module(found.name)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise SystemExit(f"{threads} threads run here after the imports; only a process with one can be forked safely")


@dataclass
class Started:
    """One start of a run.

    Attributes:
        group: process group of everything that belongs to it.
        members: the training processes in rank order, or the launcher alone.
        launcher: whether the built-in launcher was started.
        log: what it prints.
        statuses: exit statuses of processes that have ended, minus the signal for those that were killed.
    """

    group: int
    members: list[int]
    launcher: bool
    log: Path
    statuses: dict[int, int] = field(default_factory=dict)

    def anything_left(self) -> bool:
        """Whether any process of the group lives, loading processes included."""
        while True:
            try:
                pid, status = os.waitpid(-self.group, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.statuses[pid] = os.waitstatus_to_exitcode(status)

    def runs(self) -> bool:
        """Whether a training process or the launcher lives."""
        self.anything_left()
        return any(pid not in self.statuses for pid in self.members)

    def settle(self, patience_s: float = 60.0) -> bool:
        """Waits for the end of training (behind a launcher: of all processes); False if it had to be forced."""
        deadline = time.monotonic() + patience_s
        while self.anything_left() if self.launcher else self.runs():
            if time.monotonic() > deadline:
                self.end()
                return False
            time.sleep(0.005)
        return True

    def end(self) -> None:
        """Ends what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        while self.anything_left():
            time.sleep(0.005)

    def kill(self, victim: str, number: int) -> None:
        """Sends SIGKILL to ``launcher``, to ``one process`` (the one of that number), or to ``all processes``."""
        with contextlib.suppress(ProcessLookupError):
            if victim == "launcher":
                os.kill(self.members[0], signal.SIGKILL)
            elif victim == "all processes":
                os.killpg(self.group, signal.SIGKILL)
            else:
                chosen = workers_of(self.members[0]) if self.launcher else self.members
                os.kill(chosen[number % len(chosen)], signal.SIGKILL) if chosen else None

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(argv: list[str], processes: int, launcher: bool, log: Path) -> Started:
    """Starts the command: forked in one or several processes, or the built-in launcher as a program."""
    log.touch()
    common = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if launcher or processes == 0:
        return Started(group := _fork(argv, common, log, 0, program=True), [group], launcher, log)
    if processes == 1:
        return Started(group := _fork(argv, common, log, 0), [group], False, log)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    members: list[int] = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**common, **{name: str(value) for name, value in {**place, **meeting}.items()}}
        members.append(_fork(argv, environment, log, members[0] if members else 0))
    return Started(members[0], members, False, log)


def _fork(argv: list[str], environment: dict[str, str], log: Path, group: int, program: bool = False) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, group)
        return pid
    status = 1
    try:
        os.setpgid(0, group)
        os.environ.update(environment)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        if program:
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, PROGRAM, *argv])
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        from vissl_like.engines.cli import main

        status = main(argv)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def workers_of(launcher: int) -> list[int]:
    """The training processes that a launcher has started."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return []


@dataclass(frozen=True)
class Writing:
    """What lies in the checkpoint folder of a run.

    Attributes:
        half: files of the half-written checkpoint with their bytes, None if there is none.
        step: of the half-written checkpoint.
        removed: old checkpoints that are just being removed.
        newest: step of the newest complete checkpoint, None if there is none.
        damaged: checkpoints that were set aside.
    """

    half: dict[str, int] | None
    step: int | None
    removed: int
    newest: int | None
    damaged: int

    @property
    def stage(self) -> str:
        """What a checkpoint was about to have: the name of the file written last, ``nothing yet``, or ``-``."""
        if self.half is None:
            return "an old one is being removed" if self.removed else "-"
        order = ("manifest.json", "backbone.json", "backbone.safetensors", "state.pt")
        found = next((name for name in order if name in self.half), None)
        return found or ("rank_*.pt" if self.half else "nothing yet")


def look(output: Path) -> Writing:
    """Looks into ``output/checkpoints`` without reading any file."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(output / "checkpoints")
    half, step = None, None
    for name in names:
        if found := re.fullmatch(r"\.step_(\d+)\.tmp", name):
            with contextlib.suppress(OSError):
                half = {entry.name: entry.stat().st_size for entry in os.scandir(output / "checkpoints" / name)}
                step = int(found[1])
    steps = [int(name[5:]) for name in names if re.fullmatch(r"step_\d+", name)]
    removed = sum(name.endswith(".removed") for name in names)
    damaged = sum(name.endswith(".damaged") for name in names)
    return Writing(half, step, removed, max(steps, default=None), damaged)


class Watch:
    """Looks at a run from its start on; what an earlier start has left half-written does not count."""

    def __init__(self, output: Path):
        self.output, self.first = output, look(output)
        self._stale = self.first.half is not None
        self._stale_removed = bool(self.first.removed)

    def look(self) -> Writing:
        """As ``look``; call it often, to see that leftovers have gone."""
        now = look(self.output)
        self._stale = self._stale and now.half is not None
        self._stale_removed = self._stale_removed and bool(now.removed)
        now = replace(now, half=None, step=None) if self._stale else now
        return replace(now, removed=0) if self._stale_removed else now


def differences(left: Path, right: Path) -> list[str]:
    """What two finished runs do not have in common: every value of the final state, the backbone file, every loss.

    Tensors are compared as bytes, numbers by type and value: nothing is rounded.
    """
    import torch

    found = []
    ends = [output / "checkpoints" / f"step_{look(output).newest or 0:08d}" for output in (left, right)]
    files = [sorted(path.name for path in end.glob("*.pt")) for end in ends]
    if ends[0].name != ends[1].name or files[0] != files[1] or not files[0]:
        return [f"{ends[0].name} with {files[0]} and {ends[1].name} with {files[1]}"]
    for name in files[0]:
        flat = [dict(_flat(torch.load(end / name, weights_only=True), name)) for end in ends]
        found += [f"{place} is in one only" for place in sorted(flat[0].keys() ^ flat[1].keys())]
        found += [place for place in flat[0] if place in flat[1] and flat[0][place] != flat[1][place]]
    backbones = [_backbone(end / "backbone.safetensors") for end in ends]
    found += [] if backbones[0] == backbones[1] else ["backbone.safetensors"]
    curves = [losses(output) for output in (left, right)]
    return found + ([] if curves[0] == curves[1] and curves[0] else ["the losses in events.jsonl"])


def _backbone(file: Path) -> tuple[dict[str, Any], bytes]:
    """Header (its texts come in any order) and the bytes of all tensors."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def losses(output: Path) -> list[tuple[int, float]]:
    """Step and loss of every step record, in the order of the file."""
    lines = (output / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines) if record["kind"] == "step"]


def _flat(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield place, (str(value.dtype), tuple(value.shape), data)
    elif isinstance(value, dict):
        yield place, ("dict", tuple(map(repr, value)))
        for key, inner in value.items():
            yield from _flat(inner, f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        yield place, (type(value).__name__, len(value))
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{place}/{number}")
    else:
        yield place, (type(value).__name__, repr(value))
