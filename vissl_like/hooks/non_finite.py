"""What to know about a step whose loss or gradient was NaN or infinite. The guard itself is part of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vissl_like.distributed import comm
from vissl_like.hooks.base import Event, Hook, RunView
from vissl_like.records import Batch
from vissl_like.registry import HOOKS
from vissl_like.utils.event_file import plain_record
from vissl_like.utils.files import write_atomic, write_json


@HOOKS.register("non_finite")
class NonFiniteHook(Hook):
    """Explains a NaN or infinity, and keeps the batch that it came with.

    The first time, OUTPUT_DIR/non_finite_step_N.safetensors gets the newest micro-batch (``view_0``, ... as the loader
    made them, ``index``) and the .json beside it the facts: what was not finite by part and module, learning rate,
    gradient norm, image paths. In a run of several processes each affected one writes its own, with ``_rank_R`` in the
    name.

    Options:
        save_batch: write these files
    """

    def __init__(self, *, save_batch: bool = True):
        super().__init__()
        self.save_batch = save_batch
        self._times = 0

    def on_event(self, run: RunView, event: Event) -> None:
        """Reacts to ``non_finite``: in full the first time, in a line later."""
        if event.kind != "non_finite":
            return
        self._times += 1
        if self._times > 1:
            run.say(f"not finite again at step {event.step} ({self._times} times so far)", "warning")
            return
        kept = self._keep(run, event) if self.save_batch else ""
        run.say(_explanation(event) + kept, "error")

    def state_dict(self) -> dict[str, Any]:
        """How often it happened, so that a resumed run does not explain it again."""
        return {"times": self._times}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting."""
        self._times = state.get("times", 0)

    def _keep(self, run: RunView, event: Event) -> str:
        """Writes the batch where it was met; returns the sentence about it."""
        if run.last_batch is None or comm.rank() not in (event.fields.get("ranks") or [0]):
            return ""
        suffix = f"_rank_{comm.rank()}" if comm.world_size() > 1 else ""
        path = run.output_dir / f"non_finite_step_{event.step}{suffix}.safetensors"
        try:
            _write_batch(path, run.last_batch, event)
        except OSError as error:
            return f" The batch could not be saved ({error.strerror or error})."
        return f" The newest micro-batch is kept in {path}, the facts in the .json beside it."


def _write_batch(path: Path, batch: Batch, event: Event) -> None:
    from safetensors.torch import save

    tensors = {f"view_{number}": view.detach().cpu().contiguous() for number, view in enumerate(batch.views)}
    tensors["index"] = batch.index.cpu().contiguous()
    write_atomic(path, save(tensors))
    write_json(path.with_suffix(".json"), plain_record(event.record()))


def _explanation(event: Event) -> str:
    fields = event.fields
    names = [str(name) for name in fields.get("what", [])]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    facts = (
        f"learning rate {fields.get('lr', float('nan')):.3g}, gradient norm {fields.get('grad_norm', float('nan')):.3g}"
    )
    paths = fields.get("paths", [])
    images = f"; images {', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}" if paths else ""
    where = f"process {_listed(fields.get('ranks', [0]))}"
    return (
        f"step {event.step}: not finite: {shown or 'a value'} on {where} ({facts}{images}). The weights were left as "
        "they were before this step. Usual causes: a learning rate too high for this batch or too short a warm-up "
        "(lower OPTIMIZER.base_lr, set TRAIN.clip_norm); half precision (TRAIN.precision=fp32 tells whether it is "
        "that); features or prototypes that are not normalised; too small a temperature; weights that went bad earlier "
        "(a 'weight' is named above: start from an older checkpoint)."
    )


def _listed(ranks: list[int]) -> str:
    return ", ".join(str(rank) for rank in ranks) or "unknown"
