"""The sweep engine: one run for each point of a grid, one table."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vissl_like.config.load import LoadedSettings, load_settings
from vissl_like.config.yaml_text import dump_inline, dump_yaml
from vissl_like.distributed import comm, preemption
from vissl_like.engines.sweep_table import markdown, read_json, row_of
from vissl_like.registry import ENGINES
from vissl_like.utils.errors import SettingsError, UserError
from vissl_like.utils.files import write_atomic, write_json

RECORD = "sweep_point.json"
WITHOUT_EFFECT = (
    "ENGINE",
    "OUTPUT_DIR",
    "CHECKPOINT",
    "DISTRIBUTED",
    "SLURM",
    "REPORT",
    "TRAIN.threads",
    "DATA.WORKERS",
    "DATA.PREFETCH",
    "DATA.START_METHOD",
)
"""Settings that do not make a point another one."""
SIGNALLED = (130, 143)


@dataclass
class Point:
    """One run of a sweep.

    Attributes:
        name: of the run and of its folder.
        varied: what is different from the other runs, by setting.
        loaded: its settings.
    """

    name: str
    varied: dict[str, str]
    loaded: LoadedSettings

    @property
    def folder(self) -> Path:
        """Its OUTPUT_DIR."""
        return Path(self.loaded.resolved.OUTPUT_DIR).expanduser()

    @property
    def identity(self) -> str:
        """Digest of the settings that its result depends on."""
        values = copy.deepcopy(OmegaConf.to_container(self.loaded.resolved))
        assert isinstance(values, dict)
        for key in WITHOUT_EFFECT:
            group, _, name = key.rpartition(".")
            (values[group] if group else values).pop(name, None)
        engine = self.loaded.resolved.ENGINE.name
        return hashlib.sha256(f"{engine}\n{dump_yaml(values)}".encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What its last run left, empty if there was none or it had other settings."""
        record = read_json(self.folder / RECORD)
        return record if record.get("identity") == self.identity else {}


@ENGINES.register("sweep")
class SweepEngine:
    """Runs an engine for every point of a grid, each in OUTPUT_DIR/<point>, and writes sweep.md and sweep.json.

    The points run one after the other, under Slurm as an array of jobs. Started again, a sweep goes on: points that
    ended well are not run again, those that were stopped resume. A point that cannot be run (settings that its data do
    not fit) does not keep the others from running, unless there are several processes.

    Options:
        grid: lists of values by setting, such as {LOSS.temperature: [0.1, 0.2], SEED: [0, 1]}; every combination of
            them is a point
        points: further points by name, each with arguments as on a command line, such as [config.OPTIMIZER=lars]
        engine: what runs at each point
        only: names of the points to run now; null: all, []: none, only the table is written anew
    """

    required_settings = ()
    submits_array = True

    def __init__(
        self,
        loaded: Any,
        *,
        grid: dict[str, list[Any]] | None = None,
        points: dict[str, list[str]] | None = None,
        engine: str = "full",
        only: list[str] | None = None,
    ):
        self.loaded, self.engine = loaded, engine
        self.grid, self.named = dict(grid or {}), dict(points or {})
        self.only = None if only is None else list(only)

    def run(self) -> int:
        """Runs the points that are wanted and have not ended well before.

        Returns:
            0; the status of a run that a signal stopped; or that of the first point that did not end well.

        Raises:
            SettingsError: settings of a point are wrong; the problems of all are told before anything runs.
        """
        points = self.points()
        statuses = []
        for number, point in enumerate(points, 1):
            if self.only is not None and point.name not in self.only:
                continue
            status, done = 0, comm.broadcast_object(point.record().get("status") == 0)
            _say(f"[{number}/{len(points)}] {point.name}{': done before' if done else ''}")
            if not done:
                status = self._run(point)
                preemption.agree()
            statuses.append(status)
            self._write(points)
            if status in SIGNALLED or (status and preemption.noted()):
                ended = sum(point.record().get("status") == 0 for point in points)
                _say(f"stopped: {ended} of {len(points)} points have ended well. The same command goes on.")
                return status
        if not statuses:
            self._write(points)
        if comm.is_main():
            print(f"\n{(self.folder / 'sweep.md').read_text(encoding='utf-8')}", flush=True)
        return next((status for status in statuses if status), 0)

    def job_arguments(self) -> dict[str, list[str]]:
        """For each point that has not ended well, what makes a job of its own out of this sweep's settings."""
        points = self.points()
        self._write(points)
        chosen = [point for point in points if self.only is None or point.name in self.only]
        waiting = [point.name for point in chosen if point.record().get("status") != 0]
        return {name: [f"config.ENGINE.only={dump_inline([name])}"] for name in waiting}

    @property
    def folder(self) -> Path:
        """Of the table; those of the points lie in it."""
        return Path(self.loaded.resolved.OUTPUT_DIR).expanduser()

    def points(self) -> list[Point]:
        """Every point with its settings, checked.

        Raises:
            SettingsError: there are none, or settings are wrong.
        """
        wanted = {**self._combinations(), **{name: ({}, list(given)) for name, given in self.named.items()}}
        if not wanted:
            raise SettingsError(["ENGINE.grid and ENGINE.points are empty: name at least one point"])
        points, problems = [], [f"ENGINE.only: there is no point {name!r}" for name in set(self.only or ()) - {*wanted}]
        for name, (varied, arguments) in wanted.items():
            if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
                problems.append(f"ENGINE.points: {name!r} names a folder; use letters, digits, and _ . + -")
            problems += [
                f"ENGINE, {name}: {argument} has no effect on a point"
                for argument in arguments
                if re.match(r"config\.(ENGINE|OUTPUT_DIR|DISTRIBUTED|SLURM)\b", argument)
            ]
            place = [f"config.ENGINE={self.engine}", f"config.OUTPUT_DIR={dump_inline(str(self.folder / name))}"]
            try:
                loaded = load_settings([*arguments, *place], self.loaded)
            except UserError as error:
                told = error.problems if isinstance(error, SettingsError) else [str(error)]
                problems += [f"ENGINE, {name}: {text}" for text in told]
                continue
            shown = varied or {"arguments": " ".join(arguments)}
            points.append(Point(name, shown, loaded))
        if problems:
            raise SettingsError(list(dict.fromkeys(problems)))
        return points

    def _combinations(self) -> dict[str, tuple[dict[str, str], list[str]]]:
        labels = _labels(list(self.grid))
        found: dict[str, tuple[dict[str, str], list[str]]] = {}
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            varied = {key: dump_inline(value) for key, value in zip(self.grid, values)}
            name = "_".join(f"{labels[key]}-{_slug(text)}" for key, text in varied.items())
            while name in found:  # two long values that begin alike
                name += "-2"
            found[name] = (varied, [f"config.{key}={text}" for key, text in varied.items()])
        return found

    def _run(self, point: Point) -> int:
        options = {str(key): value for key, value in point.loaded.resolved.ENGINE.items() if key != "name"}
        problem = None
        try:
            status = int(ENGINES.get(self.engine)(point.loaded, **options).run())
        except UserError as error:
            if comm.active():
                raise
            status, problem = 2, str(error)
            print(f"{point.name}: {error}", file=sys.stderr, flush=True)
        if comm.is_main():
            record = {"name": point.name, "identity": point.identity, "status": status, "problem": problem}
            with contextlib.suppress(OSError):  # a folder that cannot be written was told; the table says "not begun"
                point.folder.mkdir(parents=True, exist_ok=True)
                write_json(point.folder / RECORD, record)
        return status

    def _write(self, points: list[Point]) -> None:
        """The table of what is there now. Jobs of an array take turns, so that the last one has seen all."""
        if not comm.is_main():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _turn(self.folder / ".sweep_lock"):
                rows = [row_of(point.name, point.varied, point.folder, point.record()) for point in points]
                write_json(self.folder / "sweep.json", {"engine": self.engine, "points": rows})
                write_atomic(self.folder / "sweep.md", markdown(rows))
        except OSError as error:
            raise UserError(f"OUTPUT_DIR {self.folder} cannot be written: {error.strerror or error}") from error


def _labels(keys: list[str]) -> dict[str, str]:
    """The shortest ends of dotted keys that tell them apart."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        labels[key] = next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key)
    return labels


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII).strip("_.")[:40] or "empty"


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    with open(path, "a", encoding="utf-8") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    if comm.is_main():
        print(text, flush=True)
