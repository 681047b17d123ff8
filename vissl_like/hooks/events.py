"""The event stream: what happened in a run, as JSON lines; the one source of curves, reports and other loggers."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

from vissl_like.hooks.base import Event, Hook, RunView
from vissl_like.hooks.step_means import StepMeans, memory_mib
from vissl_like.registry import HOOKS
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.event_file import EventWriter, keep_events
from vissl_like.utils.kinds import Count

FILE_NAME = "events.jsonl"
PREVIOUS_NAME = "events.previous.jsonl"


@HOOKS.register("events")
class EventsHook(Hook):
    """Writes OUTPUT_DIR/events.jsonl: step and epoch means, and every event of the run.

    Records ``step`` (means over ``every`` steps) and ``epoch`` (over a pass) are emitted as events too, so other hooks
    can use them. A resumed run first removes what a killed one wrote after the checkpoint: each step is there once.
    A run that starts anew in a used folder keeps the former stream as events.previous.jsonl.

    Options:
        every: steps that a step record is averaged over
    """

    def __init__(self, *, every: Count = 10):
        super().__init__()
        self.every = every
        self._window, self._epoch = StepMeans(), StepMeans()
        self._writer: EventWriter | None = None
        self._waiting: list[Event] = []
        self._lost, self._told = 0, False

    def on_start(self, run: RunView) -> None:
        """Opens the stream, cuts it back to the step that the run starts from, and writes ``run_start``."""
        if not run.is_main:
            return
        path = run.output_dir / FILE_NAME
        self._writer = EventWriter(path)
        note = ""
        try:
            if path.exists() and run.progress.step == 0:
                os.replace(path, path.with_name(PREVIOUS_NAME))
                note = f"the events of an earlier run in this folder are now in {PREVIOUS_NAME}"
            elif path.exists():
                note = self._cut_back(run)
        except OSError as error:
            self._nuisance(run, error)
        self._write(run, self._event(run, "run_start", _start_facts(run)))
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._write(run, event)
        if note:
            run.say(note)

    def on_step(self, run: RunView) -> None:
        """Adds the step to its means, and emits those that are complete."""
        assert run.last is not None
        step = run.progress.step
        self._window.add(step, run.last)
        self._epoch.add(step, run.last)
        if step % self.every == 0:
            self._flush(run, "step", self._window)
        if step % run.progress.steps_per_epoch == 0:
            self._flush(run, "epoch", self._epoch, complete=True)

    def on_event(self, run: RunView, event: Event) -> None:
        """Writes the event; one that comes before ``on_start`` waits for it."""
        if not run.is_main:
            return
        if self._writer is None:
            self._waiting.append(event)
        else:
            self._write(run, event)

    def on_end(self, run: RunView) -> None:
        """Emits what is left of step and epoch, and writes ``run_end``."""
        self._finish(run, "run_end", {"stop_reason": run.stop_reason})

    def on_error(self, run: RunView, error: BaseException) -> None:
        """The same, with the error."""
        self._finish(run, "error", {"error": type(error).__name__, "reason": str(error)})

    def state_dict(self) -> dict[str, Any]:
        """Steps that no record holds yet."""
        return {"window": self._window.state_dict(), "epoch": self._epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on averaging where the checkpoint was written."""
        if state:
            self._window.load_state_dict(state["window"])
            self._epoch.load_state_dict(state["epoch"])

    def _cut_back(self, run: RunView) -> str:
        """Removes records of steps that will be done again; says how many."""
        start = run.progress.step
        # A run that was stopped wrote the means of an unfinished window, whose steps are still in our state.
        unfinished = {
            "step": self._window.first if self._window.steps else start + 1,
            "epoch": self._epoch.first if self._epoch.steps else start + 1,
        }
        dropped, torn = keep_events(
            run.output_dir / FILE_NAME, lambda record: record["step"] < unfinished.get(record["kind"], start + 1)
        )
        if not dropped and not torn:
            return ""
        cut = f" and {torn} torn line(s)" if torn else ""
        return f"{dropped} event record(s){cut} written after step {start} were removed: those steps are done again"

    def _flush(self, run: RunView, kind: str, means: StepMeans, **more: Any) -> None:
        fields = {**means.fields(), "memory_mib": memory_mib(run.device), **more}
        means.clear()
        run.emit(kind, **fields)

    def _finish(self, run: RunView, kind: str, facts: dict[str, Any]) -> None:
        if self._window.steps:
            self._flush(run, "step", self._window)
        if self._epoch.steps:
            self._flush(run, "epoch", self._epoch, complete=False)
        if self._writer is not None:
            self._write(run, self._event(run, kind, facts))
            self._writer.close()

    def _event(self, run: RunView, kind: str, fields: dict[str, Any]) -> Event:
        return Event(kind, run.progress.step, run.progress.epoch, time.time(), fields)

    def _write(self, run: RunView, event: Event) -> None:
        assert self._writer is not None
        try:
            self._writer.append(event.record())
        except OSError as error:
            self._lost += 1
            self._nuisance(run, error)
            return
        if self._lost:
            lost, self._lost, self._told = self._lost, 0, False
            run.say(f"events are written again; {lost} record(s) were lost", "warning")

    def _nuisance(self, run: RunView, error: OSError) -> None:
        """Says once that writing fails, until it works again. Saying it emits an event, which fails as well."""
        if self._told:
            return
        self._told = True
        run.say(
            f"{run.output_dir / FILE_NAME} cannot be written ({error.strerror or error}). Training goes on; curves "
            "will have gaps until there is space or permission again.",
            "warning",
        )


def _start_facts(run: RunView) -> dict[str, Any]:
    return {
        "started_from": run.progress.step,
        "total_steps": run.progress.total_steps,
        "steps_per_epoch": run.progress.steps_per_epoch,
        "trivial_loss": run.loss.trivial_value(),
        "plan": dataclasses.asdict(run.plan),
        "banner": [list(row) for row in run.banner()],
        "versions": describe_environment(),
    }
