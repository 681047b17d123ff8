"""Tells early that a run has stopped learning anything: the network gives every image the same answer."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from vissl_like.distributed import comm
from vissl_like.hooks.base import Hook, RunView
from vissl_like.hooks.representation import assignment_numbers, centred_directions, effective_rank, even_rows, spread
from vissl_like.records import ModelOutput
from vissl_like.registry import HOOKS
from vissl_like.utils.kinds import Count, Duration, Fraction, Positive

MAX_ROWS = 256
"""Rows of a batch that are looked at: enough for the numbers, and a few milliseconds."""
MIN_ROWS = 8
"""Fewer rows or dimensions tell nothing about rank or spread."""

# Measured on small healthy runs: the spread of embeddings falls to 0.06 in the first hundred steps of a network
# without BatchNorm in its head while the loss lies within 0.3 % of ln K, and recovers; the first principal direction
# takes up to 0.945 of the variance, RankMe stays above 3 (centred: 4), the entropy of single assignments reaches 0.9985
# of ln K. Each limit keeps its distance from that.
ONE_DIRECTION = 0.97
SAME_ANSWER_ENTROPY = 0.1
UNIFORM_ENTROPY = 0.999
UNIFORM_BELOW, LOSS_TOLERANCE = 0.001, 0.005
FIRST_STEPS = 100
"""Steps in which even a healthy network may be hard to tell from a collapsed one by RankMe or loss."""

GEOMETRY = ("spread", "rankme", "rankme_centred", "first_direction", "feature_rankme")
ASSIGNMENTS = ("assignment_entropy", "sample_entropy", "used_share")


@HOOKS.register("collapse")
class CollapseHook(Hook):
    """Warns when outputs become the same for all images, or the loss sits at its trivial value.

    Looked for, over ``patience`` looks in a row: embeddings all alike (spread near 0); embeddings along one or two
    directions only (RankMe, principal directions); one prototype taking every image; uniform outputs with the loss at
    its trivial value; and, once the start of the run is over, a loss that stays at its trivial value. The warning gives
    numbers, usual causes and what to try, once until the run recovers. Emits ``collapse_watch`` with the numbers at
    every look.

    Options:
        every: steps between looks
        patience: looks in a row that must find something before it is said
        min_spread: spread of l2-normalised embeddings (1 = even on the sphere) below which they count as all alike
        min_rank: directions (centred RankMe; after 100 steps also RankMe) below which embeddings count as collapsed
        start: how long a loss near its trivial value is normal, at least 100 steps
        temperature: softmax temperature that turns logits into assignments (0.1 in most methods)
        action: "warn", or "stop" the run with a checkpoint
    """

    def __init__(
        self,
        *,
        every: Count = 20,
        patience: Count = 5,
        min_spread: Fraction = 0.02,
        min_rank: Positive = 2.0,
        start: Duration = "10%",
        temperature: Positive = 0.1,
        action: Literal["warn", "stop"] = "warn",
    ):
        super().__init__()
        self.every, self.patience, self.min_spread, self.min_rank = every, patience, min_spread, min_rank
        self.start, self.temperature, self.action = start, temperature, action
        self._loss_sum, self._loss_steps = 0.0, 0
        self._bad_looks, self._clear_looks, self._warned = 0, 0, False

    def on_step(self, run: RunView) -> None:
        """Gathers the loss; every so many steps, looks."""
        assert run.last is not None
        if math.isfinite(run.last.loss):
            self._loss_sum += run.last.loss
            self._loss_steps += 1
        if run.progress.step % self.every == 0:
            loss = self._loss_sum / self._loss_steps if self._loss_steps else math.nan
            self._loss_sum, self._loss_steps = 0.0, 0
            self._look(run, loss)

    def state_dict(self) -> dict[str, Any]:
        """Losses of the unfinished stretch, looks in a row, and whether the user knows."""
        return {
            "loss_sum": self._loss_sum,
            "loss_steps": self._loss_steps,
            "bad_looks": self._bad_looks,
            "clear_looks": self._clear_looks,
            "warned": self._warned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on watching as before the restart."""
        if state:
            self._loss_sum, self._loss_steps = state["loss_sum"], state["loss_steps"]
            self._bad_looks, self._clear_looks = state["bad_looks"], state["clear_looks"]
            self._warned = state["warned"]

    def _look(self, run: RunView, loss: float) -> None:
        assert run.last is not None
        numbers = shared_numbers(measure(run.last.output, self.temperature), run.device)
        trivial = run.loss.trivial_value()
        findings = self._findings(run, numbers, loss, trivial)
        self._bad_looks = self._bad_looks + 1 if findings else 0
        self._clear_looks = 0 if findings else self._clear_looks + 1
        known = {name: value for name, value in numbers.items() if not math.isnan(value)}
        run.emit("collapse_watch", **known, loss=loss, trivial_loss=trivial, findings=list(findings))
        if self._bad_looks >= self.patience and not self._warned:
            self._warned = True
            run.say(self._warning(run, findings), "warning")
            if self.action == "stop":
                run.request_stop(f"collapse: {', '.join(findings)}")
        elif self._warned and self._clear_looks >= self.patience:
            self._warned = False
            run.say(f"no sign of collapse any more for {self.patience * self.every} steps (step {run.progress.step})")

    def _findings(self, run: RunView, numbers: dict[str, float], loss: float, trivial: float | None) -> dict[str, str]:
        """What looks wrong now, by name, each with a sentence. Comparisons with an unknown number (NaN) are False."""
        found = {}
        settled = run.progress.step >= FIRST_STEPS
        rank = numbers["rankme"] if settled else numbers["rankme_centred"]
        if numbers["spread"] < self.min_spread:
            found["same_embedding"] = (
                f"embeddings are the same for all images (spread {numbers['spread']:.4f}; 1 is even on the sphere)"
            )
        elif min(rank, numbers["rankme_centred"]) < self.min_rank or numbers["first_direction"] > ONE_DIRECTION:
            found["few_directions"] = (
                f"embeddings lie along one or two of {run.model.head.embedding_dim} directions (RankMe "
                f"{numbers['rankme']:.1f}, centred {numbers['rankme_centred']:.1f}; "
                f"{100 * numbers['first_direction']:.1f} % of the variance along the first)"
            )
        if numbers["assignment_entropy"] < SAME_ANSWER_ENTROPY:
            found["one_prototype"] = (
                "nearly all images go to one prototype (entropy of the mean assignment "
                f"{numbers['assignment_entropy']:.3f} of 1)"
            )
        if trivial is None:
            return found
        above = (loss - trivial) / max(abs(trivial), 1e-9)
        at = f"the loss ({loss:.4f}) equals its trivial value ({trivial:.4f})"
        if numbers["sample_entropy"] > UNIFORM_ENTROPY and -UNIFORM_BELOW <= above <= LOSS_TOLERANCE:
            found["uniform_outputs"] = f"{at} and outputs are uniform: every image belongs to all prototypes alike"
        elif abs(above) <= LOSS_TOLERANCE and settled and run.progress.reached(self.start):
            found["trivial_loss"] = at
        return found

    def _warning(self, run: RunView, findings: dict[str, str]) -> str:
        assert run.last is not None
        steps = self.patience * self.every
        remedies = list(dict.fromkeys(text for name in findings for text in REMEDIES[name]))
        lines = [
            f"the run has collapsed, or learns nothing. For {steps} steps, up to step {run.progress.step}:",
            *(f"  - {text}" for text in findings.values()),
            f"Learning rate now {run.last.lr:.3g} (peak {run.plan.peak_lr:.3g}), global batch "
            f"{run.plan.global_batch}. Usual causes, and what to try:",
            *(f"  {number}. {text}" for number, text in enumerate(remedies, 1)),
            "During a long warm-up this can pass; you will be told if it does.",
        ]
        return "\n".join(lines)


_LR = (
    "the learning rate is too high for this batch, or the warm-up too short: lower OPTIMIZER.base_lr, lengthen the "
    "warm-up"
)
_LR_EITHER_WAY = (
    "the learning rate does not suit this batch: mostly too high (lower OPTIMIZER.base_lr, lengthen the warm-up); "
    "in a short run, too low"
)
_TARGETS = (
    "targets are too soft: a smaller epsilon (0.03) where assignments are balanced, a lower teacher temperature (not a "
    "higher one) where there is a teacher"
)
_PROTOTYPES = (
    "too many prototypes for batch + queue, or prototypes that move from the first step: fewer, and freeze them longer"
)
_QUEUE = (
    "a queue that starts while features are still random, or that is too long for the data: start it later, shorten it"
)
_GUARD = (
    "what keeps the method from collapsing is not in effect: balancing, centring, the stopped gradient, the teacher's "
    "momentum (too high for so few steps), normalised prototypes"
)
_HEAD = "BatchNorm in the head that is missing, or in the wrong mode: switch it on where the method has it"
_VIEWS = "views that are easy to tell apart by one feature (colour, brightness): stronger or more varied augmentation"

REMEDIES: dict[str, tuple[str, ...]] = {
    "same_embedding": (_LR, _GUARD, _HEAD),
    "few_directions": (_LR, _VIEWS, _GUARD),
    "one_prototype": (_GUARD, _LR, _PROTOTYPES),
    "uniform_outputs": (_LR_EITHER_WAY, _TARGETS, _PROTOTYPES, _QUEUE),
    "trivial_loss": (_LR_EITHER_WAY, _TARGETS, _PROTOTYPES, _QUEUE),
}


@torch.no_grad()
def measure(output: ModelOutput | None, temperature: float) -> dict[str, float]:
    """``GEOMETRY`` and ``ASSIGNMENTS`` of this process's outputs; NaN for what cannot be told.

    That is: too few rows, no logits, values that are not finite. With several heads of logits, their mean.
    """
    numbers = dict.fromkeys(GEOMETRY + ASSIGNMENTS, math.nan)
    if output is None:
        return numbers
    embedding = even_rows(output.head.embedding, MAX_ROWS).float().cpu()
    features = even_rows(output.features, MAX_ROWS).float().cpu()
    if embedding.shape[0] < MIN_ROWS or not (embedding.isfinite().all() and features.isfinite().all()):
        return numbers
    numbers["spread"] = spread(embedding)
    numbers["feature_rankme"] = effective_rank(features)
    if embedding.shape[1] >= MIN_ROWS:
        numbers["rankme"] = effective_rank(embedding)
        numbers["rankme_centred"], numbers["first_direction"] = centred_directions(embedding)
    heads = [assignment_numbers(even_rows(logits, MAX_ROWS), temperature) for logits in output.head.logits]
    if heads:
        means = [sum(values) / len(heads) for values in zip(*heads, strict=True)]
        numbers.update(zip(ASSIGNMENTS, means, strict=True))
    return numbers


def shared_numbers(numbers: dict[str, float], device: torch.device) -> dict[str, float]:
    """Means over all processes, so that all of them conclude the same; called by all."""
    means = (
        comm.all_reduce(torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)) / comm.world_size()
    )
    return dict(zip(numbers, means.tolist(), strict=True))
