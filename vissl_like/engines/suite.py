"""The suite engine: many evaluations of many checkpoints, one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from vissl_like.config.load import LoadedSettings, load_settings
from vissl_like.distributed import comm
from vissl_like.engines.evaluate import measure, origin_of, prepare
from vissl_like.engines.suite_tables import REFERENCE, Cell, markdown, suite_page
from vissl_like.engines.train import prepare_folder
from vissl_like.evaluation.base import MAJORITY
from vissl_like.evaluation.results import ResultStore
from vissl_like.evaluation.scoring import Scored
from vissl_like.evaluation.store import FeatureStore
from vissl_like.evaluation.subjects import PIXELS, RANDOM, slug_of
from vissl_like.registry import ENGINES
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.errors import SettingsError, UserError
from vissl_like.utils.files import write_atomic, write_json
from vissl_like.visualize.page import render_page

OF_THE_SUITE = ("config.ENGINE", "config.OUTPUT_DIR", "config.DISTRIBUTED", "config.REPORT")
ONLY = "checkpoint"
"""Name of the checkpoint where ENGINE.checkpoints names none."""


class Entry(TypedDict, total=False):
    """One evaluation of a suite: ``arguments`` as on a command line, and figures from elsewhere to stand beside it."""

    arguments: list[str]
    references: dict[str, float]


@ENGINES.register("suite")
class SuiteEngine:
    """Runs many evaluations of one or several checkpoints and writes results.json, results.md and report.html.

    An entry is what one would type to run that evaluation alone. What the suite's own command line says (but its
    ENGINE) holds for every entry, below what the entry says; what a checkpoint says comes last. Features and results
    are kept in OUTPUT_DIR; started again, it goes on where it was stopped, and repeats nothing whose weights, images,
    labels, options and protocol are the same. An entry that cannot be run (data that are missing, weights that do not
    fit) is named at the end and does not keep the others from running.

    Options:
        entries: evaluations by name, each with ``arguments`` such as [config=benchmark/knn, config=base/data/elpv] and,
            optionally, ``references`` (percentages by name, shown beside); null removes one that a base has
        checkpoints: by name, arguments that choose one, such as [config.EVALUATE.weights=runs/elpv]; null for the one
            that the settings name
    """

    required_settings = ()
    used_sections = ("DATA", "MODEL", "DISTRIBUTED", "EVALUATE", "TRAIN")

    def __init__(
        self, loaded: Any, *, entries: dict[str, Entry | None], checkpoints: dict[str, list[str]] | None = None
    ):
        self.loaded = loaded
        self.entries = {name: entry for name, entry in entries.items() if entry is not None}
        self.checkpoints = dict(checkpoints or {ONLY: []})

    def run(self) -> int:
        """Runs all entries.

        Returns:
            0, or 2 if an entry could not be run (said).

        Raises:
            UserError: settings of an entry are wrong (all are told together), or OUTPUT_DIR cannot be written.
        """
        folder = prepare_folder(self.loaded.resolved.OUTPUT_DIR)
        jobs = self.jobs()
        features, results = FeatureStore(folder / "features"), ResultStore(folder / "results")
        cells: list[Cell] = []
        for number, job in enumerate(jobs, 1):
            start = time.perf_counter()
            cell = Cell(job.entry, job.checkpoint, references=job.references)
            try:
                given = prepare(job.loaded, folder)
                cell.notices, cell.made = given.notices, origin_of(job.loaded, given)
                cell.scored = measure(given, features, folder / "files" / slug_of(job.name), results)
            except UserError as error:
                cell.problem = str(error)
            cells.append(cell)
            seconds = time.perf_counter() - start
            if comm.is_main():
                said = cell.problem or _told(cell.scored)
                print(f"[{number}/{len(jobs)}] {job.name}, {seconds:.0f} s: {said}", flush=True)
            problem = comm.broadcast_object(self._write(folder, cells, len(jobs)) if comm.is_main() else None)
            if problem is not None:
                raise UserError(problem)
        if comm.is_main():
            print(f"\n{markdown(cells)}\nreport: {folder / 'report.html'}", flush=True)
        failed = [cell for cell in cells if cell.problem]
        if failed and comm.is_main():
            print(f"{len(failed)} of {len(jobs)} could not be run; see above", file=sys.stderr, flush=True)
        return 2 if failed else 0

    def jobs(self) -> list[Job]:
        """Every entry of every checkpoint with its settings, checked before anything runs.

        Raises:
            SettingsError: something is wrong; problems of all entries are told.
        """
        if not self.entries:
            raise SettingsError(["ENGINE.entries is empty: name at least one evaluation"])
        jobs: list[Job] = []
        problems = [*_name_problems(self.entries, "entries"), *_name_problems(self.checkpoints, "checkpoints")]
        for name, entry in self.entries.items():
            for checkpoint, chosen in self.checkpoints.items():
                arguments = [*entry.get("arguments", []), *chosen]
                problems += [
                    f"ENGINE.entries.{name} ({checkpoint}): {argument} has no effect here, only on the command line"
                    for argument in arguments
                    if argument.startswith(OF_THE_SUITE)
                ]
                try:
                    loaded = load_settings([*arguments, "config.ENGINE=evaluate"], self.loaded)
                except UserError as error:
                    told = error.problems if isinstance(error, SettingsError) else [str(error)]
                    problems += [f"ENGINE.entries.{name} ({checkpoint}): {text}" for text in told]
                    continue
                jobs.append(Job(name, checkpoint, loaded, entry.get("references", {})))
        if problems:
            raise SettingsError(list(dict.fromkeys(problems)))
        return jobs

    def _write(self, folder: Path, cells: list[Cell], total: int) -> str | None:
        """Everything so far; each file is replaced as a whole. What keeps it from being written, None if nothing."""
        record = {
            "finished": sum(not cell.problem for cell in cells),
            "wanted": total,
            "cells": [cell.record() for cell in cells],
            "versions": describe_environment(),
        }
        try:
            write_json(folder / "results.json", record)
            write_atomic(folder / "results.md", markdown(cells))
            write_atomic(folder / "report.html", render_page(suite_page(folder, cells, total)))
        except OSError as error:
            return f"{folder} cannot be written: {error.strerror or error}"
        return None


@dataclass
class Job:
    """One entry of one checkpoint with its settings."""

    entry: str
    checkpoint: str
    loaded: LoadedSettings
    references: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Both names."""
        return self.entry if self.checkpoint == ONLY else f"{self.entry}, {self.checkpoint}"


def _name_problems(names: Iterable[str], what: str) -> list[str]:
    """Names that would be taken for a floor's in a table, or share a folder."""
    problems, folders = [], dict[str, str]()
    for name in names:
        if name in (RANDOM, PIXELS, MAJORITY) or name.startswith(REFERENCE):
            problems.append(f"ENGINE.{what}: {name!r} is what a floor is called; take another name")
        slug = slug_of(name)
        if not slug or slug in folders:
            other = f"names the same folder as {folders[slug]!r}" if slug else "has none of them"
            problems.append(f"ENGINE.{what}: folders are named by Latin letters and digits, and {name!r} {other}")
        folders[slug] = name
    return problems


def _told(scored: list[Scored]) -> str:
    return ", ".join(f"{row.name} {row.result.metrics[row.result.main]:.1f}" for row in scored)
