"""What is known of each kill and of each run's end, and the tables of it; see random_kills.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

RESUMED, ANEW, AGAIN, STUCK = "resumed", "begun anew", "killed again while starting", "could not go on"
COLUMNS = ("runs", "kills", "while writing", RESUMED, ANEW, AGAIN, "half-written left", "damaged", STUCK, "differ")


@dataclass
class Kill:
    """One kill and what came of it.

    Attributes:
        method, processes, launcher, workers: which run.
        run: its number.
        victim: who was killed.
        aimed: whether the moment was chosen for a checkpoint being written.
        second: from the start of the run, or from the meeting of the launcher's processes.
        stage: what was being written at that moment, see ``killing.Writing.stage``.
        left: what lay half-written when all processes had ended, None if nothing.
        newest: step of the newest complete checkpoint then.
        forced: whether the other processes did not end by themselves within a minute.
        outcome: what the next start did.
        note: what was wrong with that.
    """

    method: str
    processes: int
    launcher: bool
    workers: int
    run: int
    victim: str
    aimed: bool
    second: float
    stage: str
    left: dict[str, int] | None
    newest: int | None
    forced: bool
    outcome: str = ""
    note: str = ""


@dataclass
class Ending:
    """How one run ended: nothing in ``differs`` if as the straight one."""

    method: str
    processes: int
    run: int
    kills: int
    damaged: int
    differs: list[str]


def tables(kills: list[Kill], endings: list[Ending]) -> str:
    """The counts as Markdown: by method, by victim, and what lay in half-written folders."""
    lines = ["| method | processes | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for method, processes in [*dict.fromkeys((e.method, e.processes) for e in endings), ("all", None)]:
        chosen = [k for k in kills if processes is None or (k.method, k.processes) == (method, processes)]
        ended = [e for e in endings if processes is None or (e.method, e.processes) == (method, processes)]
        lines.append(f"| {method} | {processes or ''} | " + " | ".join(map(str, counts(chosen, ended))) + " |")
    lines += ["", "| killed | kills | while writing | half-written left |", "|---|---|---|---|"]
    for victim in dict.fromkeys((k.victim, k.processes, k.launcher) for k in kills):
        chosen = [k for k in kills if (k.victim, k.processes, k.launcher) == victim]
        how = "" if victim[1] == 1 else " (built-in launcher)" if victim[2] else " (started as torchrun does)"
        written, left = sum(k.stage != "-" for k in chosen), sum(k.left is not None for k in chosen)
        lines.append(f"| {victim[0]}{how} | {len(chosen)} | {written} | {left} |")
    lines += ["", "| the newest file of the checkpoint at the kill | kills |", "|---|---|"]
    stages = Counter(k.stage for k in kills)
    lines += [f"| {'no checkpoint was being written' if s == '-' else s} | {n} |" for s, n in stages.most_common()]
    return "\n".join(lines) + "\n"


def counts(kills: list[Kill], endings: list[Ending]) -> list[int]:
    """One number for each of ``COLUMNS``."""
    outcomes = Counter(kill.outcome for kill in kills)
    return [
        *(len(endings), len(kills), sum(kill.stage != "-" for kill in kills)),
        *(outcomes[RESUMED], outcomes[ANEW], outcomes[AGAIN], sum(kill.left is not None for kill in kills)),
        *(sum(e.damaged for e in endings), outcomes[STUCK], sum(bool(e.differs) for e in endings)),
    ]
