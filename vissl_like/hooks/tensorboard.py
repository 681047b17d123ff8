"""Curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vissl_like.hooks.base import Event, Hook, RunView
from vissl_like.registry import HOOKS
from vissl_like.utils.errors import UserError

FOLDER = "tensorboard"


@HOOKS.register("tensorboard")
class TensorboardHook(Hook):
    """Writes every measurement of every event to OUTPUT_DIR/tensorboard; needs the hook ``events`` for the losses.

    Show it with ``tensorboard --logdir OUTPUT_DIR``. The package ``tensorboard`` is an extra of this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writer: Any = None
        self._broken = False

    def on_start(self, run: RunView) -> None:
        """Opens the log; after a resume, TensorBoard hides what was logged beyond the step that it goes on from.

        Raises:
            UserError: tensorboard is not installed, or nothing would emit losses.
        """
        if run.settings.HOOKS.get("events") is None:
            raise UserError(
                "the hook 'tensorboard' draws what the hook 'events' emits, and that is not in HOOKS. Add "
                "HOOKS.events={}."
            )
        if not run.is_main:
            return
        writer_class = _summary_writer()
        start = run.progress.step
        try:
            self._writer = writer_class(str(run.output_dir / FOLDER), purge_step=start + 1 if start else None)
        except OSError as error:
            self._give_up(run, error)

    def on_event(self, run: RunView, event: Event) -> None:
        """One point per measurement, under ``kind/name``."""
        if self._writer is None or self._broken:
            return
        try:
            for name, value in scalars(event.fields, event.kind):
                self._writer.add_scalar(name, value, event.step, walltime=event.time)
        except OSError as error:
            self._give_up(run, error)

    def on_phase_end(self, run: RunView) -> None:
        """Puts what is buffered on disk."""
        self._finish(run, "flush")

    def on_end(self, run: RunView) -> None:
        """Closes the log."""
        self._finish(run, "close")

    def on_error(self, run: RunView, error: BaseException) -> None:
        """Closes the log."""
        self._finish(run, "close")

    def _finish(self, run: RunView, action: str) -> None:
        if self._writer is None or self._broken:
            return
        try:
            getattr(self._writer, action)()
        except OSError as error:
            self._give_up(run, error)

    def _give_up(self, run: RunView, error: OSError) -> None:
        self._broken = True
        run.say(
            f"TensorBoard's log in {run.output_dir / FOLDER} cannot be written ({error.strerror or error}); nothing "
            "more is logged there. Training goes on.",
            "warning",
        )


def scalars(fields: dict[str, Any], path: str) -> Iterator[tuple[str, float]]:
    """``(name, value)`` of every float, those of nested mappings included; ints and texts are settings and counts."""
    for key, value in fields.items():
        name = f"{path}/{key}"
        if isinstance(value, dict):
            yield from scalars(value, name)
        elif isinstance(value, float):
            yield name, value


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"the hook 'tensorboard' needs a package that is not there ({error}). Install it with "
            "`pip install vissl_like[tensorboard]`, or remove the hook with config.HOOKS.tensorboard=null."
        ) from error
    return SummaryWriter
