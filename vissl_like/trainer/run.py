"""The run: a classy-vision task whose phases are epochs and whose steps are optimizer steps."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from vissl_like.compat.classy import ClassyTask
from vissl_like.distributed import comm, watchdog
from vissl_like.distributed.sharding import whole_state
from vissl_like.hooks.base import Event
from vissl_like.records import Batch, Progress, Skipped
from vissl_like.trainer.between_epochs import EpochFeatures, StoppedBetweenEpochs
from vissl_like.trainer.checkpoint import Checkpoint, load_states, wall_clock
from vissl_like.trainer.network import resume_teacher
from vissl_like.trainer.parts import Parts
from vissl_like.trainer.resharding import Resharding
from vissl_like.trainer.rng import restore_rng_state, rng_state
from vissl_like.trainer.sharded_state import load_into, put_together, take_out
from vissl_like.trainer.step import StepReport
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import new_private_folder


class Run(ClassyTask):
    """One training run. Hooks get this object; what they may use are the public names without arguments of ``Parts``.

    Attributes:
        progress: where the run stands.
        last: report of the newest step, None before the first.
        last_batch: the newest micro-batch.
        stop_reason: why the run ends before its length, None while it goes on.
        metrics: numbers emitted at this step, by ``kind.name``; saved with a checkpoint of the step.
    """

    train = True

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts
        self.settings, self.plan, self.model, self.loss = parts.settings, parts.plan, parts.model, parts.loss
        self.optimizer, self.dataset, self.device = parts.optimizer, parts.dataset, parts.device
        self.output_dir, self.plugins, self.build_dataset = parts.output_dir, parts.plugins, parts.build_dataset
        self.hooks = sorted(parts.hooks.values(), key=lambda hook: hook.runs_last)
        self.progress = Progress(0, parts.plan.total_steps, parts.plan.steps_per_epoch)
        self.last: StepReport | None = None
        self.last_batch: Batch | None = None
        self.stop_reason: str | None = None
        self.metrics: dict[str, float] = {}
        self._metrics_step = 0
        self.resumed_from: int | None = None
        self._loader: Any = None
        self._batches: Iterator[Batch] | None = None
        self._saved_at: int | None = None
        self._known_skipped = 0
        self._told_skipped: set[str] = set()

    # -- what hooks may call ----------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return comm.is_main()

    @property
    def trunk(self) -> nn.Module:
        """The trunk that is worth measuring and keeping: the teacher's where there is one (CHECKPOINT.backbone)."""
        return self.parts.backbone.trunk

    def banner(self) -> list[tuple[str, str]]:
        """What is worth knowing before the first step, as rows ``(label, text)``."""
        resume = "new run" if self.resumed_from is None else f"resumed from step {self.resumed_from}"
        return [*self.parts.banner, ("Start", resume)]

    def emit(self, kind: str, **fields: Any) -> None:
        """Sends an event to every hook; numbers of it become ``metrics`` under ``kind.name``."""
        event = Event(kind, self.progress.step, self.progress.epoch, time.time(), fields)
        if self._metrics_step != self.progress.step:
            self.metrics, self._metrics_step = {}, self.progress.step
        self.metrics.update({f"{kind}.{name}": value for name, value in fields.items() if isinstance(value, float)})
        for hook in self.hooks:
            hook.on_event(self, event)

    def say(self, text: str, level: str = "info") -> None:
        """Tells the user something, and records it; ``level`` is info, warning or error."""
        self.emit("message", text=text, level=level)

    def request_stop(self, reason: str) -> None:
        """Ends the run after this step, with a checkpoint."""
        self.stop_reason = self.stop_reason or reason

    def save_checkpoint(self, reason: str) -> Path | None:
        """Writes a checkpoint of this step; called by all processes. None if it could not be written (said why)."""
        step = self.progress.step
        watchdog.beat(f"writing the checkpoint of step {step}")
        common = {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.parts.step.precision.scaler.state_dict(),
            "teacher": {} if self.parts.teacher is None else self.parts.teacher.state_dict(),
            "loss": self._loss_state(per_rank=False),
            "hooks": {name: hook.state_dict() for name, hook in self.parts.hooks.items()},
            "skipped_updates": self.parts.policy.in_a_row,
        }
        per_rank = {"rng": rng_state(), "loss": self._loss_state(per_rank=True)}
        record = {**self.parts.record, "step": step, "epoch": round(self.progress.epoch, 4), "written": wall_clock()}
        manifest = {
            "reason": reason,
            "epoch": self.progress.epoch,
            "metrics": {name: value for name, value in self.metrics.items() if math.isfinite(value)},
            "settings": self.parts.settings_record,
            "dataset_size": self.plan.dataset_size,
            "precision": self.plan.precision,
        }
        common, shards = take_out(common, self.optimizer)
        backbone = whole_state(self.trunk.state_dict())
        path = self.parts.store.save(step, common, per_rank, backbone, record, manifest, shards)
        if path is not None:
            self._saved_at = step
            self.emit("checkpoint", path=str(path), reason=reason)
        return path

    # -- classy-vision's contract: the trainer calls these ----------------------------------------------------------

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Run:
        """Not a way in: a run takes built objects (see ``trainer.build``)."""
        raise TypeError("a Run is made from built objects: use vissl_like.trainer.build.build_run(settings)")

    @property
    def where(self) -> float:
        """Finished share of the run."""
        return self.progress.fraction

    def done_training(self) -> bool:
        """Whether the length is reached or a stop was asked for."""
        return self.stop_reason is not None or self.progress.step >= self.progress.total_steps

    def get_classy_state(self, deep_copy: bool = False) -> dict[str, Any]:
        """The step; everything else is in checkpoints."""
        return {"step": self.progress.step}

    def set_classy_state(self, state: dict[str, Any]) -> None:
        """Moves to a step; used when resuming."""
        self.progress = Progress(int(state["step"]), self.progress.total_steps, self.progress.steps_per_epoch)

    def prepare(self, num_dataloader_workers: int = 0, dataloader_mp_context: Any = None) -> None:
        """Nothing: built objects come ready."""

    def resume(self, checkpoint: Checkpoint) -> None:
        """Takes up where a checkpoint left off; called by all processes."""
        resharding = Resharding(self.loss, self.plan, self.settings.SEED)
        common, per_rank = load_states(checkpoint, resharding)
        common = put_together(common, checkpoint, self.model, self.parts.teacher, self.optimizer)
        load_into(self.model, common["model"])
        chosen = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        if self.parts.teacher is not None:
            resume_teacher(self.parts.teacher, self.model, common.get("teacher") or {}, say=self.say)
        self.optimizer.load_state_dict(common["optimizer"])
        for group, options in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(options)  # the settings of this run, not those of the saved one
        self.parts.step.precision.scaler.load_state_dict(common["scaler"])
        self.loss.load_state_dict({**common["loss"], **per_rank["loss"]})
        for name, hook in self.parts.hooks.items():
            hook.load_state_dict(common["hooks"].get(name, {}))
        self.parts.policy.in_a_row = common["skipped_updates"]
        self.set_classy_state(common)
        self.resumed_from = self._saved_at = self.progress.step
        restore_rng_state(per_rank["rng"])
        if int(checkpoint.manifest["world_size"]) != self.plan.world_size:
            self.say(*resharding.describe(checkpoint))

    def on_start(self) -> None:
        """Makes the loader for the rest of the run (its workers start with the first step) and tells the hooks."""
        self._loader = self.parts.make_loader(self.progress.step)
        self.model.train()
        self._tell("on_start")
        self._tell_skipped(self.dataset.skipped if self.is_main else [])

    def on_phase_start(self) -> None:
        """An epoch begins, or goes on after a resume."""
        self._phase = self.progress.step // self.progress.steps_per_epoch
        if self.progress.step % self.progress.steps_per_epoch == 0 and not self.done_training():
            watchdog.rest()  # clustering takes as long as it takes; a pass over the images says that it goes on
            features = EpochFeatures(self.parts, self.progress)
            try:
                self.loss.before_epoch(features, self.progress)
            except StoppedBetweenEpochs:
                self._agree_on_stop()
                if self.progress.step == 0:
                    self._saved_at = 0  # nothing is trained, and half a pass is worth nothing: it is begun anew
            self._tell_skipped(features.skipped)
        self._tell("on_phase_start")

    def train_step(self) -> None:
        """One optimizer step; ends the phase by StopIteration, as classy-vision's trainer expects."""
        watchdog.beat(f"step {self.progress.step} of {self.progress.total_steps}")
        self._agree_on_stop()
        if self.done_training() or self.progress.step // self.progress.steps_per_epoch > self._phase:
            raise StopIteration
        if self._batches is None:
            self._batches = iter(self._loader)
        started = time.perf_counter()
        micro_batches = [next(self._batches) for _ in range(self.plan.accumulation)]
        waited = time.perf_counter() - started
        self.last_batch = micro_batches[-1]
        if self.last is not None:
            self.last.output = None  # hooks have looked at it: its memory is needed now
        report = self.parts.step(micro_batches, self.progress)
        report.data_wait, report.step_time = waited, time.perf_counter() - started
        self.last = report
        self.progress = Progress(self.progress.step + 1, self.progress.total_steps, self.progress.steps_per_epoch)
        self._mention_skipped_images(gather=False)
        if report.skipped_update:
            self.last_batch = micro_batches[report.first_bad]
            self.parts.policy.judge(self, report)
        else:
            self.parts.policy.in_a_row = 0

    def eval_step(self) -> None:
        """Never called: measuring is done by hooks and by the evaluate engine."""
        raise TypeError("this task has no test phase")

    def on_phase_end(self) -> None:
        """An epoch is over, or the run stops inside one."""
        self._mention_skipped_images(gather=True)
        self._tell("on_phase_end")
        self._agree_on_stop()

    def on_end(self) -> None:
        """Last words: a checkpoint if the newest step has none."""
        self._close_loader()
        reason = self.stop_reason or "end"
        if self._saved_at != self.progress.step and self.save_checkpoint(reason) is None:
            self._rescue(reason)
        watchdog.rest()
        self._tell("on_end")

    def init_distributed_data_parallel_model(self) -> None:
        """Nothing: the wrapped model comes built."""

    def _rescue(self, reason: str) -> None:
        """The last state could not be written where it belongs: puts it into the system's folder for temporary files.

        Where the processes are on several machines it is the home folder, which clusters share between them.

        Raises:
            UserError: always, with the place; the run did not end well.
        """
        where_it_belongs = self.parts.store.folder
        shared = comm.local_world_size() < comm.world_size()
        place = comm.broadcast_object(new_private_folder("vissl_like_rescue_", shared) if comm.is_main() else None)
        self.parts.store.folder = place
        saved = self.save_checkpoint(reason)
        if saved is None:
            raise UserError(
                f"the last checkpoint (step {self.progress.step}) can be written neither to {where_it_belongs} nor to "
                f"{place}. Free space and start the same command again: it goes on from the newest checkpoint."
            )
        raise UserError(
            f"{where_it_belongs} cannot be written, so the state of step {self.progress.step} is in {saved}. Free "
            f"space, move that folder to {where_it_belongs}, and start the same command again."
        )

    # -- inside -----------------------------------------------------------------------------------------------------

    def on_error(self, error: BaseException) -> None:
        """Tells the hooks that the run dies of ``error``."""
        watchdog.rest()
        self._close_loader()
        for hook in self.hooks:
            hook.on_error(self, error)

    def _close_loader(self) -> None:
        """Ends the worker processes in order."""
        if isinstance(self._batches, Generator):
            self._batches.close()

    def _tell(self, event: str) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self)

    def _loss_state(self, per_rank: bool) -> dict[str, Any]:
        own = set(self.loss.per_rank_buffers)
        return {key: value for key, value in self.loss.state_dict().items() if (key in own) == per_rank}

    def _agree_on_stop(self) -> None:
        """A signal to any process stops all of them at the same step."""
        mine = self.parts.signals.requested or self.stop_reason
        reasons = [reason for reason in comm.all_gather_object(mine) if reason] if comm.active() else [mine]
        if reasons and reasons[0]:
            self.request_stop(reasons[0])

    def _mention_skipped_images(self, gather: bool) -> None:
        """Images met since the last time; those of other processes are gathered at the end of a phase."""
        if comm.active() != gather:
            return
        skipped = self._loader.skipped
        self._tell_skipped(skipped[self._known_skipped :])
        self._known_skipped = len(skipped)

    def _tell_skipped(self, mine: list[Skipped]) -> None:
        """Images that this process and all others met and could not read; each is told once in a run."""
        for image in chain.from_iterable(comm.all_gather_object(mine)):
            if image.path not in self._told_skipped:
                self._told_skipped.add(image.path)
                self.emit("skipped_image", path=image.path, reason=image.reason)
