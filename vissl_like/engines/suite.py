"""The suite engine: many evaluations of many checkpoints, one table."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from vissl_like.config.yaml_text import dump_inline
from vissl_like.distributed import comm
from vissl_like.engines.evaluate import measure, origin_of, prepare
from vissl_like.engines.interrupts import interrupts
from vissl_like.engines.suite_cells import Cell, ahead_of
from vissl_like.engines.suite_jobs import Entry, Job, jobs_of
from vissl_like.engines.suite_tables import markdown, overview_text, suite_page
from vissl_like.engines.train import prepare_folder
from vissl_like.evaluation.names import slug_of
from vissl_like.evaluation.results import ResultStore
from vissl_like.evaluation.scoring import Scored
from vissl_like.evaluation.store import FeatureStore
from vissl_like.registry import ENGINES
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.errors import SettingsError, UserError
from vissl_like.utils.files import write_atomic, write_json
from vissl_like.visualize.page import render_page

PAGE_SECONDS = 20.0
"""The page, whose chart takes seconds to draw, is brought up to date so often; results after every entry."""


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
            optionally, ``references`` (figures by name, shown beside: percentages of the metric that counts, or
            {metric: AP50_voc07, value: 82.6}); null removes one that a base has
        checkpoints: by name, its path (of a run or a file of weights), or arguments that choose one; null for the one
            that the settings name
        only: entries to measure now, written as in the lines that a suite prints (``elpv_knn`` or ``elpv_knn, ours``);
            their results are kept and no table is written; null: all, and the tables
    """

    required_settings = ()
    submits_array = True
    after_jobs = "once they have ended, the same command without config.SLURM.USE_SLURM: nothing is measured again"
    used_sections = ("DATA", "MODEL", "DISTRIBUTED", "EVALUATE", "TRAIN")

    def __init__(
        self,
        loaded: Any,
        *,
        entries: dict[str, Entry | None],
        checkpoints: dict[str, str | list[str]] | None = None,
        only: list[str] | None = None,
    ):
        self.loaded = loaded
        self.entries = entries
        self.checkpoints = checkpoints
        self.only = None if only is None else list(only)

    def run(self) -> int:
        """Runs all entries; Ctrl-C and SIGTERM stop it, and what is finished is kept.

        Returns:
            0, or 2 if an entry could not be run (said), or 130 or 143 if it was stopped.

        Raises:
            UserError: settings of an entry are wrong (all are told together), or OUTPUT_DIR cannot be written.
        """
        folder = prepare_folder(self.loaded.resolved.OUTPUT_DIR)
        jobs = self.jobs()
        cells: list[Cell] = []
        with interrupts():
            try:
                self._run(folder, jobs, cells)
            except KeyboardInterrupt as stopped:
                name = str(stopped.args[0]) if stopped.args else "SIGINT"
                _say(_told_at_stop(name, folder, jobs, cells), sys.stderr)
                if comm.is_main() and cells and self.only is None:
                    self._write(folder, cells, len(jobs), page=True)
                return 143 if name == "SIGTERM" else 130
        failed = [cell for cell in cells if cell.problem]
        if self.only is None:
            _say(f"\n{overview_text(cells)}\nall measures: {folder / 'results.md'}\nreport: {folder / 'report.html'}")
        if failed:
            _say(f"{len(failed)} of {len(jobs)} could not be run; see above", sys.stderr)
        return 2 if failed else 0

    def _run(self, folder: Path, jobs: list[Job], cells: list[Cell]) -> None:
        """Fills ``cells``, one after the other."""
        features, results = FeatureStore(folder / "features"), ResultStore(folder / "results")
        drawn = -PAGE_SECONDS
        for number, job in enumerate(jobs, 1):
            start = time.perf_counter()
            heading = f"[{number}/{len(jobs)}] {job.name}"
            _say(f"{heading} ...")
            cell = Cell(job.entry, job.checkpoint, references=job.references)
            try:
                given = prepare(job.loaded, folder)
                cell.notices, cell.made = given.notices, origin_of(job.loaded, given)
                cell.scored = measure(given, features, folder / "files" / slug_of(job.name), results)
            except UserError as error:
                cell.problem = str(error)
            cell.ahead = ahead_of(cell, next((other for other in cells if other.entry == job.entry), None))
            cells.append(cell)
            _say(f"{heading}, {time.perf_counter() - start:.0f} s: {cell.problem or _told(cell.scored)}")
            problem = None
            if comm.is_main() and self.only is None:
                page = number == len(jobs) or time.monotonic() - drawn >= PAGE_SECONDS
                drawn = time.monotonic() if page else drawn
                problem = self._write(folder, cells, len(jobs), page=page)
            problem = comm.broadcast_object(problem)
            if problem is not None:
                raise UserError(problem)

    def jobs(self) -> list[Job]:
        """Every entry of every checkpoint with its settings, checked before anything runs.

        Raises:
            SettingsError: something is wrong; problems of all entries are told.
        """
        jobs = jobs_of(self.loaded, self.entries, self.checkpoints)
        if self.only is None:
            return jobs
        strange = sorted(set(self.only) - {job.name for job in jobs})
        if strange:
            known = ", ".join(job.name for job in jobs)
            raise SettingsError([f"ENGINE.only: there is no entry {name!r}; there are {known}" for name in strange])
        return [job for job in jobs if job.name in self.only]

    def job_arguments(self) -> dict[str, list[str]]:
        """For each entry of each checkpoint, what makes a job of its own out of this suite's settings.

        Features and results are shared through OUTPUT_DIR; a job whose result is kept already ends in seconds.
        """
        return {job.name: [f"config.ENGINE.only={dump_inline([job.name])}"] for job in self.jobs()}

    def _write(self, folder: Path, cells: list[Cell], total: int, *, page: bool) -> str | None:
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
            if page:
                write_atomic(folder / "report.html", render_page(suite_page(folder, cells, total)))
        except OSError as error:
            return f"{folder} cannot be written: {error.strerror or error}"
        return None


def _told(scored: list[Scored]) -> str:
    return ", ".join(f"{row.name} {row.result.metrics[row.result.main]:.1f}" for row in scored)


def _say(text: str, stream: Any = None) -> None:
    """Prints at once, on the main process."""
    if comm.is_main():
        print(text, file=stream, flush=True)


def _told_at_stop(name: str, folder: Path, jobs: list[Job], cells: list[Cell]) -> str:
    done = sum(not cell.problem for cell in cells)
    where = f" in [{len(cells) + 1}/{len(jobs)}] {jobs[len(cells)].name}" if len(cells) < len(jobs) else ""
    failed = f", {len(cells) - done} could not be run" if done < len(cells) else ""
    return (
        f"\n{name}: stopped{where}. {done} of {len(jobs)} are finished{failed}; nothing that is finished is lost "
        f"({folder}). The same command goes on from there."
    )
