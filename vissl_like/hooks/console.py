"""What the user sees while a run goes on."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from typing import Any, TextIO

from vissl_like import __version__
from vissl_like.hooks.base import Event, Hook, RunView
from vissl_like.hooks.step_means import StepMeans, memory_mib
from vissl_like.registry import HOOKS
from vissl_like.utils.kinds import Positive

WIDTH = 118
SKIPPED_SHOWN = 5
BAR_REFRESH_S = 0.25


@HOOKS.register("console")
class ConsoleHook(Hook):
    """Prints the start banner, progress, messages and results, on a terminal with a bar, elsewhere as plain lines.

    A line tells epoch, step, loss, learning rate, images per second, the share of time spent waiting for data, memory
    and the time left. Everything that says something in words (a field ``text`` of an event) is printed. Nothing but
    plain text goes to a file or a pipe.

    Options:
        seconds: least time between progress lines where there is no terminal, in s; the first and the last step always
            get one
    """

    def __init__(self, *, seconds: Positive = 5.0):
        super().__init__()
        self.seconds = seconds
        self._display: PlainDisplay | BarDisplay | None = None
        self._waiting: list[Event] = []
        self._means = StepMeans()
        self._clock = _Clock()
        self._skipped = 0

    def on_start(self, run: RunView) -> None:
        """The banner, then what was said before it."""
        if not run.is_main:
            return
        self._display = make_display(sys.stdout, self.seconds)
        for line in banner_lines(run.banner()):
            self._display.say(line)
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._tell(event)
        self._display.start(run.progress.step, run.progress.total_steps)
        self._clock.start(run.progress.step)

    def on_step(self, run: RunView) -> None:
        """Progress, when it is time for it; numbers are means since the last time."""
        if self._display is None:
            return
        assert run.last is not None
        step, total = run.progress.step, run.progress.total_steps
        self._means.add(step, run.last)
        self._clock.tick(step)
        if self._display.due(first=self._clock.steps == 1, last=step == total):
            left = self._clock.seconds_left(step, total)
            self._display.progress(step, progress_line(run, self._means, left))
            self._means.clear()

    def on_event(self, run: RunView, event: Event) -> None:
        """What is in words; a message that comes before the banner waits for it."""
        if not run.is_main:
            return
        if self._display is None:
            self._waiting.append(event)
        else:
            self._tell(event)

    def on_end(self, run: RunView) -> None:
        """How far the run came, how long it took, and where its files are."""
        if self._display is None:
            return
        self._display.stop()
        step, total = run.progress.step, run.progress.total_steps
        how = f"stopped ({run.stop_reason})" if run.stop_reason is not None else "finished"
        took = duration_text(self._clock.elapsed())
        self._display.say(f"{how} at step {step} of {total} after {took}; files are in {run.output_dir}")

    def on_error(self, run: RunView, error: BaseException) -> None:
        """Leaves the terminal in order for the message about ``error``."""
        if self._display is not None:
            self._display.stop()
        # What was said before the banner may be about this error.
        waiting, self._waiting = self._waiting, []
        if waiting and run.is_main:
            self._display = self._display or PlainDisplay(sys.stdout, self.seconds)
            for event in waiting:
                self._tell(event)

    def _tell(self, event: Event) -> None:
        assert self._display is not None
        text, level = self._words(event)
        if text:
            prefix = "" if level == "info" else f"{level}: "
            self._display.say(prefix + text, level)

    def _words(self, event: Event) -> tuple[str, str]:
        """Text and level of an event; no text if it is only numbers."""
        fields = event.fields
        if event.kind == "checkpoint":
            return f"checkpoint of step {event.step}: {fields.get('path')}", "info"
        if event.kind == "skipped_image":
            self._skipped += 1
            if self._skipped > SKIPPED_SHOWN + 1:
                return "", "info"
            if self._skipped == SKIPPED_SHOWN + 1:
                return "more unreadable images are skipped; they are not listed here", "warning"
            return f"unreadable image skipped: {fields.get('path')} ({fields.get('reason')})", "warning"
        return str(fields.get("text", "")), str(fields.get("level", "info"))


class PlainDisplay:
    """Lines of plain text for a file, a pipe or a simple terminal."""

    def __init__(self, stream: TextIO, seconds: float):
        self.stream, self.seconds = stream, seconds
        self._last = 0.0

    def start(self, step: int, total: int) -> None:
        """Nothing to prepare."""

    def due(self, first: bool, last: bool) -> bool:
        """Whether a progress line should be printed now."""
        return first or last or time.monotonic() - self._last >= self.seconds

    def progress(self, step: int, text: str) -> None:
        """One line."""
        self._last = time.monotonic()
        self.say(text)

    def say(self, text: str, level: str = "info") -> None:
        """A message."""
        print(text, file=self.stream, flush=True)

    def stop(self) -> None:
        """Nothing to tidy up."""


class BarDisplay:
    """A progress bar at the foot of a terminal, messages above it."""

    def __init__(self, stream: TextIO):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=stream, highlight=False)
        # No thread of its own: data workers are forked from this process.
        self._progress = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %  {task.description}", markup=False),
            console=self._console,
            auto_refresh=False,
        )
        self._task: Any = None
        self._last = 0.0

    def start(self, step: int, total: int) -> None:
        """Shows the bar."""
        self._task = self._progress.add_task("starting", total=total, completed=step)
        self._progress.start()

    def due(self, first: bool, last: bool) -> bool:
        """Whether the bar should be drawn anew now."""
        return first or last or time.monotonic() - self._last >= BAR_REFRESH_S

    def progress(self, step: int, text: str) -> None:
        """Moves the bar and changes its text."""
        self._last = time.monotonic()
        self._progress.update(self._task, completed=step, description=text)
        self._progress.refresh()

    def say(self, text: str, level: str = "info") -> None:
        """A message above the bar."""
        style = {"warning": "yellow", "error": "bold red"}.get(level)
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Leaves the bar as it is and gives the terminal back."""
        self._progress.stop()


class _Clock:
    """Time since the start, and the time that is left at this pace."""

    def __init__(self) -> None:
        self.steps = 0
        self._started = time.monotonic()
        self._first_done: tuple[int, float] | None = None

    def start(self, step: int) -> None:
        """The run begins, or goes on, at ``step``."""
        self._started, self.steps, self._first_done = time.monotonic(), 0, None

    def tick(self, step: int) -> None:
        """A step is done."""
        self.steps += 1
        if self._first_done is None:
            self._first_done = (step, time.monotonic())

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def seconds_left(self, step: int, total: int) -> float | None:
        """Seconds to the end at the mean pace so far, evaluations and checkpoints included; None at the first step.

        The first step is left out: starting data workers and warming up is not typical.
        """
        if self._first_done is None or step <= self._first_done[0]:
            return None
        first, when = self._first_done
        return (time.monotonic() - when) / (step - first) * (total - step)


def make_display(stream: TextIO, seconds: float) -> PlainDisplay | BarDisplay:
    """A bar on a capable terminal, else plain lines."""
    terminal = getattr(stream, "isatty", lambda: False)() and os.environ.get("TERM", "dumb") not in ("", "dumb")
    return BarDisplay(stream) if terminal else PlainDisplay(stream, seconds)


def banner_lines(rows: list[tuple[str, str]]) -> list[str]:
    """The start banner: labels in one column, long texts wrapped in the other."""
    column = max((len(label) for label, _ in rows), default=0) + 2
    lines = [f"vissl_like {__version__}"]
    for label, text in rows:
        wrapped = textwrap.wrap(text, max(30, WIDTH - column), break_long_words=False, break_on_hyphens=False) or [""]
        lines.append(f"{label:<{column}}{wrapped[0]}".rstrip())
        lines += [" " * column + line for line in wrapped[1:]]
    return lines


def progress_line(run: RunView, means: StepMeans, seconds_left: float | None) -> str:
    """One line about where the run stands."""
    progress, memory = run.progress, memory_mib(run.device)
    epochs = progress.total_steps / progress.steps_per_epoch
    parts = [
        f"epoch {progress.epoch:.2f}/{epochs:.4g}",
        f"step {progress.step}/{progress.total_steps}",
        f"loss {means.loss:.4f}",
        f"lr {means.lr:.3g}",
        f"{means.images_per_s:.0f} images/s",
        f"waiting {100 * means.data_wait:.0f} %",
        f"{memory['process'] / 1024:.1f} GiB"
        + (f" + GPU {memory['cuda_peak'] / 1024:.1f}" if "cuda_peak" in memory else ""),
    ]
    if seconds_left is not None:
        parts.append(f"{duration_text(seconds_left)} left")
    return "  ".join(parts)


def duration_text(seconds: float) -> str:
    """``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
