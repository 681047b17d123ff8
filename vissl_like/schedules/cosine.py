"""Linear warm-up, then half a cosine: the schedule of SwAV and DINO."""

from __future__ import annotations

from fvcore.common.param_scheduler import CosineParamScheduler, LinearParamScheduler

from vissl_like.records import Progress
from vissl_like.registry import SCHEDULES
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Duration, Fraction, NonNegative


@SCHEDULES.register("cosine")
class Cosine:
    """Linear warm-up to the base value, then a half cosine to the final one, step by step.

    With T steps and W of warm-up: step t < W gives ``start + (base - start) t / (W - 1)`` (the last warm-up step
    already has the base value), step t >= W gives ``final + (base - final) (1 + cos(pi (t - W) / (T - W))) / 2``.

    Options:
        final_ratio: final value as a share of the base
        final: final value itself, instead of the share (a rate that is not scaled with the batch, decay that rises)
        warmup: length of the warm-up
        warmup_start_ratio: value at step 0 as a share of the base
    """

    def __init__(
        self,
        base: float,
        *,
        final_ratio: Fraction = 0.0,
        warmup: Duration = "0 steps",
        warmup_start_ratio: Fraction = 0.0,
        final: NonNegative | None = None,
    ):
        if final is not None and final_ratio:
            raise UserError(f"a cosine schedule takes final ({final:g}) or final_ratio ({final_ratio:g}), not both")
        self.warmup = warmup
        self._rise = LinearParamScheduler(base * warmup_start_ratio, base)
        self._fall = CosineParamScheduler(base, base * final_ratio if final is None else final)

    def __call__(self, progress: Progress) -> float:
        """Value for the update that starts at ``progress.step``."""
        warmup = progress.steps_of(self.warmup)
        if warmup >= progress.total_steps:
            raise UserError(
                f"the warmup of a cosine schedule is {self.warmup!r} = {warmup} steps, but the run has only "
                f"{progress.total_steps} steps"
            )
        if progress.step < warmup:
            return float(self._rise(progress.step / max(1, warmup - 1)))
        return float(self._fall((progress.step - warmup) / (progress.total_steps - warmup)))
