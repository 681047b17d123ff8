"""The training engine: settings to a finished run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from vissl_like.compat.classy import ClassyTrainer
from vissl_like.config.yaml_text import dump_yaml
from vissl_like.data.processes import explain_worker_death
from vissl_like.distributed import comm
from vissl_like.registry import ENGINES
from vissl_like.trainer.build import build_run, changed_settings
from vissl_like.trainer.checkpoint import Checkpoint, CheckpointStore
from vissl_like.trainer.lock import FolderLock
from vissl_like.trainer.run import Run
from vissl_like.trainer.signals import StopSignals
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import write_atomic, write_json

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


@ENGINES.register("train")
class TrainEngine:
    """Pre-trains a network on images without labels; goes on from the newest checkpoint of OUTPUT_DIR."""

    def __init__(self, loaded: Any):
        self.loaded = loaded

    def run(self) -> int:
        """Trains to the end or to a stop.

        Returns:
            0 when the length was reached, 130 or 143 after a signal, 3 when a hook asked to stop.
        """
        try:
            return self._train()
        except RuntimeError as error:
            # torch notices a dead worker in a signal handler: the error can come out of any line, clean-up included.
            raise explain_worker_death(error) or error from error
        finally:
            # ... and out of lines after this one; by now nobody needs to be told.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _train(self) -> int:
        settings = self.loaded.resolved
        output_dir = prepare_folder(settings.OUTPUT_DIR)
        torch.use_deterministic_algorithms(settings.TRAIN.deterministic)
        lock = FolderLock(output_dir)
        with StopSignals() as signals, _on_main(lock):
            # Before anything is built: whether weights are read from their file depends on a checkpoint to go on from.
            store = CheckpointStore(output_dir / "checkpoints", 1, None, None, _tell_before_start)
            newest = comm.broadcast_object(store.repair() if comm.is_main() else None)
            run = build_run(self.loaded, output_dir, signals, resuming=newest is not None)
            try:
                if newest is not None:
                    self._take_up(run, newest)
                write_records(self.loaded, output_dir, run)
                ClassyTrainer().train(run)
            except BaseException as error:
                run.on_error(error)
                raise
        if signals.requested:  # also one that came during the last checkpoint: nothing else should begin now
            run.request_stop(signals.requested)
        if run.stop_reason is None:
            return 0
        if comm.is_main():
            print(
                f"Stopped at step {run.progress.step} of {run.progress.total_steps}: {run.stop_reason}. "
                "The same command goes on from there.",
                file=sys.stderr,
            )
        return EXIT_CODES.get(run.stop_reason, 3)

    def _take_up(self, run: Run, newest: Checkpoint) -> None:
        """Resumes as CHECKPOINT.resume says, and never silently under other settings."""
        mode = self.loaded.resolved.CHECKPOINT.resume
        if mode == "never":
            raise UserError(
                f"OUTPUT_DIR {run.output_dir} holds a checkpoint of step {newest.step} and CHECKPOINT.resume is "
                "'never'. Choose another OUTPUT_DIR, or remove the old run."
            )
        changes = changed_settings(newest.manifest.get("settings", {}), run.parts.settings_record)
        facts = {"dataset_size": run.plan.dataset_size, "precision": run.plan.precision}
        changes += [f"{k}: {newest.manifest[k]} -> {v}" for k, v in facts.items() if newest.manifest.get(k, v) != v]
        if changes and mode != "force":
            shown = "\n".join(f"  {line}" for line in changes[:20])
            raise UserError(
                f"OUTPUT_DIR {run.output_dir} holds a run with other settings (saved -> now):\n{shown}\n"
                "Choose another OUTPUT_DIR, or go on regardless with config.CHECKPOINT.resume=force."
            )
        run.resume(newest)


def _tell_before_start(text: str, level: str) -> None:
    """Says something while there is no run yet that could record it."""
    print(f"{level}: {text}", file=sys.stderr)


def prepare_folder(path: str) -> Path:
    """The output folder, made if need be, and known to be writable.

    Raises:
        UserError: it cannot be made or written.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write_{os.getpid()}"
        try:
            probe.write_bytes(b"\0" * 4096)  # an empty file can be made on a full disk
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {folder} cannot be written: {error.strerror or error}. Choose another.") from error
    return folder


def write_records(loaded: Any, output_dir: Path, run: Run) -> None:
    """What was given, what was resolved, and with which versions. The given file re-runs the run."""
    if not comm.is_main():
        return
    try:
        _write_records(loaded, output_dir)
    except OSError as error:
        run.say(f"the settings could not be written beside the run: {error}", "error")


def _write_records(loaded: Any, output_dir: Path) -> None:
    write_atomic(output_dir / "settings_given.yaml", dump_yaml(loaded.given))
    write_atomic(output_dir / "settings_resolved.yaml", dump_yaml(loaded.record()))
    write_json(output_dir / "environment.json", describe_environment())


class _on_main:
    """Enters a context on the main process only."""

    def __init__(self, context: Any):
        self.context = context

    def __enter__(self) -> None:
        if comm.is_main():
            self.context.__enter__()

    def __exit__(self, *details: Any) -> None:
        if comm.is_main():
            self.context.__exit__(*details)
