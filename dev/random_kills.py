"""Kills training runs by ``kill -9`` at random moments, starts the same command again until they end, and compares.

Every method, with one process and with two. A straight run is made by the ordinary command; a control run, which is
never killed, is made as the killed ones are, and tells how long they take. A run is then killed up to five times: at a
moment that is uniform over the life of a run (behind the launcher, for half of them, from its first instant) or, for
the share ``--aimed``, while a checkpoint is being written (one is written at every step). Its end must be that of the
straight run, bit by bit. Killed are: the process; with two processes started as torchrun does, one of them or both;
with the built-in launcher, the launcher, one process or all.

Usage: python dev/random_kills.py --out DIR [--kills 200] [--seed 0] [--only swav,dino] [--aimed 0.4] [--jobs 1]
The same command again makes what is missing. Leaves DIR/random_kills.md and .json; exit status 1 if any run could not
go on or ended otherwise. Linux only.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch comes in: a process with threads cannot be forked

import argparse
import json
import platform
import random
import re
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kill_records import AGAIN, ANEW, COLUMNS, RESUMED, STUCK, Ending, Kill, counts, tables
from killing import LONGEST_S, ROOT, Started, Watch, adopt_orphans, differences, look, prepare, start

METHODS = runpy.run_path(str(ROOT / "tests" / "runs" / "methods.py"))["METHODS"]
"""The small settings of the tests."""
STEPS = 12
SETTINGS = [
    *("config=quick/synthetic", "config.TRAIN.threads=1", "config.HOOKS.events={every: 1}"),
    *("config.CHECKPOINT.every=1 steps", "config.CHECKPOINT.keep=2"),
]
MOST_KILLS_OF_A_RUN, KILLS_WITH_LAUNCHER = 5, 2


class Campaign:
    """All runs of one method with one number of processes."""

    def __init__(self, method: str, processes: int, out: Path, aimed: float, dice: random.Random):
        self.method, self.processes, self.aimed, self.dice = method, processes, aimed, dice
        self.out = out / f"{method}_{processes}"
        self.kills: list[Kill] = []
        self.endings: list[Ending] = []
        self.life = 0.0

    def prepare(self) -> None:
        """The straight and the control run."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        program = start(self._argv("straight", 0, True), 0, self.processes > 1, self.out / "straight.log")
        self._finish(program, "the straight run")
        begun = time.monotonic()
        control = start(self._argv("control", 0, False), self.processes, False, self.out / "control.log")
        control.settle(LONGEST_S)
        self.life = time.monotonic() - begun
        self._finish(control, "the control run")
        if found := differences(self.out / "control", self.out / "straight"):
            raise SystemExit(f"{self.out}: a run that nobody killed differs from the straight one: {found[:5]}")

    def run(self, most: int, launcher: bool) -> None:
        """One run, killed up to so many times."""
        number = len(self.endings)
        name = f"run_{number}"
        workers = 0 if launcher else int(self.dice.random() < 0.25)
        argv = self._argv(name, workers, launcher)
        mine: list[Kill] = []
        output = self.out / name
        while True:
            watch = Watch(output)
            log = self.out / f"{name}_{len(mine)}.log"
            started = start(argv, self.processes, launcher, log)
            try:
                kill = None
                if len(mine) < most:
                    kill = self._kill(started, number, launcher, workers, watch)
                else:
                    started.settle(LONGEST_S)
            finally:
                failed = kill is None and any(started.statuses.get(pid) != 0 for pid in started.members)
                if launcher or kill is None:
                    started.end()
            if mine:
                self._judge(mine[-1], watch.first.newest, started, failed)
            if kill is None:
                break
            mine.append(kill)
            self.kills.append(kill)
        damaged = max(look(output).damaged, self._said_damaged(name))
        differs = [f"exit statuses {started.statuses}"] if failed else differences(output, self.out / "straight")
        self.endings.append(Ending(self.method, self.processes, number, len(mine), damaged, differs))
        if not differs and not damaged:
            shutil.rmtree(output)

    def _argv(self, name: str, workers: int, launcher: bool) -> list[str]:
        several = [f"config.DISTRIBUTED.processes={self.processes}"] if launcher and self.processes > 1 else []
        where = [f"config.OUTPUT_DIR={self.out / name}", f"config.DATA.WORKERS={workers}"]
        return [*SETTINGS, *METHODS[self.method], *where, *several]

    def _kill(self, started: Started, number: int, launcher: bool, workers: int, watch: Watch) -> Kill | None:
        """Waits for a moment and kills; None if the run has ended before."""
        victims = ["process"] if self.processes == 1 else ["one process", "all processes"]
        victims += ["launcher", "launcher"] if launcher else []
        victim, aimed = self.dice.choice(victims), self.dice.random() < self.aimed
        early = launcher and not aimed and self.dice.random() < 0.5  # while the processes load, too
        begun = time.monotonic()
        if launcher and not early and not _wait(started, lambda: " met at " in started.text()):
            return None
        begun = begun if early else time.monotonic()
        if aimed:
            target = self.dice.randint(min((watch.look().newest or 0) + 1, STEPS), STEPS)
            files, later = self.dice.randint(0, 3 + self.processes), self.dice.uniform(0, 0.003)

            def written() -> bool:
                now = watch.look()
                return now.step is not None and now.half is not None and now.step >= target and len(now.half) >= files

            if not _wait(started, written):
                return None
            time.sleep(later)
        else:
            deadline = begun + self.dice.uniform(0, self.life)
            if not _wait(started, lambda: watch.look() is not None and time.monotonic() >= deadline):
                return None
        seen = watch.look()
        second = time.monotonic() - begun
        started.kill("one process" if victim == "process" else victim, self.dice.randrange(2))
        forced = not started.settle()
        if all(started.statuses.get(pid) == 0 for pid in started.members):
            return None  # it had ended just before
        left = watch.look()
        facts = (self.method, self.processes, launcher, workers, number, victim, aimed, round(second, 3))
        return Kill(*facts, seen.stage, left.half, left.newest, forced)

    def _judge(self, kill: Kill, newest: int | None, started: Started, failed: bool) -> None:
        """What the start after a kill did: it must go on from the newest folder that has a checkpoint's name."""
        spoken = re.search(r"^Start\s+(?:new run|resumed from step (\d+))$", started.text(), re.MULTILINE)
        if failed:
            kill.outcome, kill.note = STUCK, started.text()[-2000:]
        elif spoken is None:
            kill.outcome = AGAIN
        else:
            kill.outcome = ANEW if spoken[1] is None else RESUMED
            if (None if spoken[1] is None else int(spoken[1])) != newest:
                kill.note = f"went on from {spoken[1]}, the newest checkpoint was {newest}"

    def _said_damaged(self, name: str) -> int:
        return sum(log.read_text(errors="replace").count("is damaged") for log in self.out.glob(f"{name}_*.log"))

    def _finish(self, started: Started, what: str) -> None:
        settled = started.settle(LONGEST_S)
        started.end()
        if not settled or any(started.statuses.get(pid) != 0 for pid in started.members):
            raise SystemExit(f"{self.out}: {what} did not end well: {started.text()[-2000:]}")


def _wait(started: Started, reached: Callable[[], bool]) -> bool:
    """Whether the moment came before the run ended."""
    deadline = time.monotonic() + LONGEST_S
    while started.runs() and time.monotonic() < deadline:
        if reached():
            return True
        time.sleep(0.001)
    return False


def kill_all_of(groups: list[tuple[str, int, int]], queue: int, options: argparse.Namespace) -> None:
    """Makes runs of ``(method, processes, kills)`` and writes the records of each, as long as the queue names one."""
    adopt_orphans()
    while place := os.read(queue, 1):
        method, processes, share = groups[place[0]]
        dice = random.Random(f"{options.seed} {method} {processes}")
        campaign = Campaign(method, processes, options.out, options.aimed, dice)
        campaign.prepare()
        while len(campaign.kills) < share:
            launcher = processes > 1 and not campaign.endings
            most = min(share - len(campaign.kills), KILLS_WITH_LAUNCHER if launcher else MOST_KILLS_OF_A_RUN)
            campaign.run(most, launcher)
        records = {"kills": [asdict(k) for k in campaign.kills], "endings": [asdict(e) for e in campaign.endings]}
        (options.out / f"{method}_{processes}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
        numbers = ", ".join(f"{n} {c}" for n, c in zip(COLUMNS, counts(campaign.kills, campaign.endings), strict=True))
        print(f"{method}, {processes}: {numbers}; a run takes {campaign.life:.1f} s", flush=True)


def main() -> None:
    """Kills, compares, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the tables")
    parser.add_argument("--kills", type=int, default=200, help="kills over all methods")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--only", default="", help="methods, by comma")
    parser.add_argument("--aimed", type=float, default=0.4, help="share of kills aimed at a checkpoint being written")
    parser.add_argument("--jobs", type=int, default=1, help="methods at a time")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in METHODS if not options.only or name in options.only.split(",")]
    both = [(name, processes) for name in chosen for processes in (1, 2)]
    edges = [options.kills * place // len(both) for place in range(len(both) + 1)]
    groups = [(*group, high - low) for group, low, high in zip(both, edges, edges[1:])]
    left = [group for group in groups if not (options.out / f"{group[0]}_{group[1]}.json").exists()]
    prepare()
    left.sort(key=lambda group: group[1])  # one process first: they need less
    queue, names = os.pipe()
    os.write(names, bytes(range(len(left))))
    os.close(names)
    jobs = [os.fork() or _job(left, queue, options) for _ in range(options.jobs)]
    statuses = [os.waitpid(job, 0)[1] for job in jobs]
    kills: list[Kill] = []
    endings: list[Ending] = []
    for method, processes in both:
        file = options.out / f"{method}_{processes}.json"
        records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"kills": [], "endings": []}
        kills += [Kill(**record) for record in records["kills"]]
        endings += [Ending(**record) for record in records["endings"]]
    _write(options, kills, endings)
    print("\n" + tables(kills, endings))
    wrong = [k for k in kills if k.outcome == STUCK or k.note] + [e for e in endings if e.differs]
    for item in wrong:
        print(item)
    sys.exit(1 if any(statuses) or wrong or any(ending.damaged for ending in endings) else 0)


def _job(groups: list[tuple[str, int, int]], queue: int, options: argparse.Namespace) -> int:
    """The life of one job's process; never returns."""
    status = 1
    try:
        kill_all_of(groups, queue, options)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _write(options: argparse.Namespace, kills: list[Kill], endings: list[Ending]) -> None:
    import torch

    facts: dict[str, Any] = {"seed": options.seed, "aimed": options.aimed, "kills_wanted": options.kills}
    facts |= {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    records = {**facts, "kills": [asdict(kill) for kill in kills], "endings": [asdict(ending) for ending in endings]}
    (options.out / "random_kills.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (options.out / "random_kills.md").write_text(tables(kills, endings), encoding="utf-8")


if __name__ == "__main__":
    main()
