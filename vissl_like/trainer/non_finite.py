"""What to do when the loss or a gradient was not finite; the step itself has left the weights alone by then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vissl_like.distributed import comm
from vissl_like.trainer.step import StepReport
from vissl_like.utils.errors import UserError

if TYPE_CHECKING:
    from vissl_like.trainer.run import Run


class NonFiniteError(UserError):
    """Loss or gradients were not finite, and the settings say to stop."""


class NonFinitePolicy:
    """Stops the run, or lets it go on for some updates in a row.

    Args:
        mode: ``stop`` or ``skip``.
        limit: with ``skip``, how many updates in a row may be left out.
    """

    def __init__(self, mode: str, limit: int):
        self.mode, self.limit, self.in_a_row = mode, limit, 0

    def judge(self, run: Run, report: StepReport) -> None:
        """Tells the hooks what was not finite, and ends the run if the settings say so.

        In fp16 an overflowing gradient is no accident: the scale of the loss is lowered and the run goes on, unless it
        is below 1 already.

        Raises:
            NonFiniteError: the run is to stop.
        """
        indices = run.last_batch.index.tolist() if run.last_batch is not None else []
        told = comm.all_gather_object((report.non_finite, indices))  # first of all: every process must get here
        names = list(dict.fromkeys(name for found, _ in told for name in found))
        # Gradients are averaged over processes, so a bad one makes all bad; loss parts tell which process it was.
        names.sort(key=lambda name: name.startswith("gradient"))
        own = [any(not name.startswith("gradient") for name in found) for found, _ in told]
        ranks = [rank for rank, (found, _) in enumerate(told) if (own[rank] if any(own) else found)]
        indices = [index for rank in ranks for index in told[rank][1]]
        scaler = run.parts.step.precision.scaler
        gradients_only = all(name.startswith("gradient") for name in names)
        if scaler.is_enabled() and gradients_only and scaler.get_scale() >= 1:
            return
        self.in_a_row += 1
        run.emit(
            "non_finite",
            what=names,
            ranks=ranks,
            lr=report.lr,
            grad_norm=report.grad_norm,
            indices=indices,
            paths=[run.dataset.path(index) for index in indices[:10]],
        )
        if self.mode == "stop" or self.in_a_row > self.limit:
            raise NonFiniteError(
                f"step {run.progress.step}: not finite: {', '.join(names[:4])}. The weights are as before this step; "
                f"the newest checkpoint is in {run.parts.store.folder}. Lower OPTIMIZER.base_lr, lengthen the warm-up, "
                "set TRAIN.clip_norm, or use TRAIN.precision=fp32; TRAIN.non_finite=skip leaves such steps out."
            )
