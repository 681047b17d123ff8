"""Where the time of a step goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vissl_like.hooks.base import Hook, RunView
from vissl_like.registry import HOOKS
from vissl_like.utils.files import write_atomic
from vissl_like.utils.kinds import Count, Index

FOLDER = "profile"
TABLE_ROWS = 20


@HOOKS.register("profile")
class ProfileHook(Hook):
    """Profiles a few steps with torch.profiler, for the main process.

    Writes OUTPUT_DIR/profile/steps_A_B.json, a trace to open in ui.perfetto.dev or chrome://tracing, and steps_A_B.txt,
    the 20 operations that take most time. Profiled steps are slower than others; their results are the same.

    Options:
        start: steps to let pass first, counted from the start of the run; the first ones are not typical
        steps: how many to profile
    """

    def __init__(self, *, start: Index = 10, steps: Count = 5):
        super().__init__()
        self.start, self.steps = start, steps
        self._profiler: Any = None
        self._first = 0

    def on_start(self, run: RunView) -> None:
        """Says so if the run is already past the steps asked for, or never comes to them."""
        if run.progress.step > self.start or run.progress.total_steps <= self.start:
            run.say(
                f"nothing to profile: steps {self.start + 1} to {self.start + self.steps} were asked for, this run "
                f"does steps {run.progress.step + 1} to {run.progress.total_steps}. Set HOOKS.profile.start.",
                "warning",
            )
        self._begin_if_due(run)

    def on_step(self, run: RunView) -> None:
        """Begins or ends profiling when it is time."""
        if self._profiler is not None and run.progress.step >= self._first + self.steps - 1:
            self._write(run)
        self._begin_if_due(run)

    def on_end(self, run: RunView) -> None:
        """Writes what there is if the run ends meanwhile."""
        if self._profiler is not None:
            self._write(run)

    def on_error(self, run: RunView, error: BaseException) -> None:
        """Ends profiling without writing."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _begin_if_due(self, run: RunView) -> None:
        if not run.is_main or self._profiler is not None or run.progress.step != self.start:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if run.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._first = run.progress.step + 1
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()

    def _write(self, run: RunView) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        folder = run.output_dir / FOLDER
        stem = f"steps_{self._first}_{run.progress.step}"
        key = "self_device_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _export_trace(profiler, folder / f"{stem}.json")
            table = profiler.key_averages().table(sort_by=key, row_limit=TABLE_ROWS)
            write_atomic(folder / f"{stem}.txt", table + "\n")
        except OSError as error:
            run.say(f"the profile could not be written ({error.strerror or error}). Training goes on.", "warning")
            return
        run.say(f"profile of steps {self._first} to {run.progress.step}: {folder / stem}.json and .txt")


def _export_trace(profiler: Any, path: Path) -> None:
    temporary = path.with_suffix(".tmp.json")
    profiler.export_chrome_trace(str(temporary))
    temporary.replace(path)
