"""L2-regularised logistic regression on frozen features, its strength chosen on a part of the training images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vissl_like.evaluation.base import EvaluationResult, FeatureEvaluation, Features, required_labels, stratified_split
from vissl_like.meters.accuracy import AccuracyMeter
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction, Index, Positive

THREADED_SIZE = 50_000_000
DEFAULT_COSTS = [0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0]


@dataclass(frozen=True)
class Trial:
    """One strength on the held-out part: accuracy in percent, mean negative log-likelihood in nats, iterations."""

    cost: float
    accuracy: float
    log_loss: float
    iterations: int


@EVALUATIONS.register("linear")
class LinearEvaluation(FeatureEvaluation):
    """Linear probe: multinomial logistic regression with an L2 penalty on frozen features (scikit-learn, lbfgs).

    The objective is ``|w|^2 / 2 + C * sum of cross-entropies``, intercept free. C is the one of ``costs`` with the
    least cross-entropy on a stratified part of the TRAINING images (on a few hundred images it is steadier than
    accuracy); then all training images are fitted. Test labels serve for the final measures only.

    Options:
        costs: strengths C to choose from, each above 0 (larger fits the training images more closely); tried in
            increasing order until the cross-entropy has grown twice in a row
        split: part of the training images held out for the choice, in (0, 1); not used when there is one cost
        standardise: bring each feature to mean 0 and deviation 1 over the training images; false takes them as they are
        max_iterations: of the solver for each fit
        seed: of the held-out part
    """

    def __init__(
        self,
        *,
        costs: list[Positive] = DEFAULT_COSTS,
        split: Fraction = 0.2,
        standardise: bool = True,
        max_iterations: Count = 2000,
        seed: Index = 0,
    ):
        if not costs:
            raise UserError("EVALUATION.costs is empty; give at least one strength, such as [0.01]")
        if not 0 < split < 1:
            raise UserError(f"EVALUATION.split is {split}; it must lie between 0 and 1, both excluded")
        self.costs = sorted(set(costs))
        self.split, self.standardise, self.max_iterations, self.seed = split, standardise, max_iterations, seed

    def __call__(self, train: Features, test: Features, num_classes: int) -> EvaluationResult:
        """Evaluates; see ``FeatureEvaluation``.

        Raises:
            UserError: labels are missing, or there are fewer than two classes, or too few images to choose C.
        """
        labels, test_labels = required_labels(train, "training"), required_labels(test, "test")
        if len(labels.unique()) < 2:
            raise UserError(
                "the training images are of one class only: there is nothing for a linear probe to tell apart"
            )
        inputs, test_inputs = reduced(*prepared(train.features, test.features, self.standardise))
        cost, trials, notices = self._choose(inputs, labels.numpy())
        model, more = next(self._fits(inputs, labels.numpy(), [cost]))
        scores = class_scores(model, test_inputs, num_classes)
        meter = AccuracyMeter(num_classes)
        meter.update(scores, test_labels)
        details: dict[str, Any] = {
            "cost": cost,
            "trials": [vars(trial) for trial in trials],
            "split": self.split,
            "standardise": self.standardise,
            "seed": self.seed,
            "iterations": int(model.n_iter_[0]),
            "notices": notices + more,
        }
        return EvaluationResult("linear", meter.value(), scores.argmax(dim=1), details)

    def _choose(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[float, list[Trial], list[str]]:
        """The best cost, what each reached on the held-out part, and remarks."""
        if len(self.costs) == 1:
            return self.costs[0], [], []
        kept_rows, held_rows, single = stratified_split(torch.from_numpy(labels), self.split, self.seed)
        kept, held = kept_rows.numpy(), held_rows.numpy()
        if not len(held):
            raise UserError(
                "every class has a single training image, so none can be held out to choose the strength. Give one: "
                "config.EVALUATION.costs=[0.01]"
            )
        notices = []
        if single:
            notices.append(
                f"{len(single)} class(es) with a single training image have no part in the choice of C: numbers "
                f"{', '.join(map(str, single[:5]))}{', ...' if len(single) > 5 else ''}"
            )
        trials: list[Trial] = []
        for cost, (model, more) in zip(self.costs, self._fits(inputs[kept], labels[kept], self.costs)):
            trials.append(_trial(cost, model, inputs[held], labels[held]))
            notices += more
            losses = [trial.log_loss for trial in trials[-3:]]
            if len(losses) == 3 and losses[0] < losses[1] < losses[2]:
                break  # past the minimum; larger costs take longest and fit worse still
        best = min(trials, key=lambda trial: (trial.log_loss, trial.cost))
        if best.cost in (self.costs[0], self.costs[-1]):
            side = "smaller" if best.cost == self.costs[0] else "larger"
            notices.append(f"C={best.cost:g}, at the end of EVALUATION.costs, is the best; a {side} one may be better")
        return best.cost, trials, notices

    def _fits(self, inputs: np.ndarray, labels: np.ndarray, costs: Sequence[float]) -> Iterator[tuple[Any, list[str]]]:
        """A model for each cost in order, each starting from the one before, and remarks about it."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        model = LogisticRegression(max_iter=self.max_iterations, warm_start=True)
        # Thousands of small products: sharing one among threads costs more than it gives, much more on a busy machine.
        threads = 1 if inputs.size * len(np.unique(labels)) < THREADED_SIZE else None
        for cost in costs:
            model.set_params(C=cost)
            with threadpool_limits(threads), warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # said below, in our words
                model.fit(inputs, labels)
            stopped = int(model.n_iter_[0]) >= self.max_iterations
            yield model, [f"the fit with C={cost:g} stopped after {self.max_iterations} iterations"] * stopped


def prepared(train: Tensor, test: Tensor, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features as the probe sees them; statistics come from the training images alone.

    Args:
        train, test: ``[N, F]`` and ``[M, F]``.
        standardise: else only the mean is taken off, which changes no solution (the intercept is free).
    """
    mean = train.mean(dim=0)
    scale = train.std(dim=0, unbiased=False) if standardise else torch.ones_like(mean)
    # A feature that never changes carries nothing, and must not blow up where it does change in the test images.
    scale = torch.where(scale > 1e-6 * scale.max().clamp(min=1e-12), scale, torch.inf)
    return ((train - mean) / scale).numpy(), ((test - mean) / scale).numpy()


def reduced(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same problem in at most N dimensions.

    An L2-penalised solution lies in the span of the training rows, so coordinates there, ``[N, N]`` and ``[M, N]``,
    give the same scores as ``[N, F]`` and ``[M, F]`` with F > N (raw pixels) at a fraction of the time.
    """
    rows, width = train.shape
    if width <= rows:
        return train, test
    wide, other = torch.from_numpy(train).double(), torch.from_numpy(test).double()
    gram = wide @ wide.T
    # Centred or repeated rows make the Gram matrix singular; this little on its diagonal changes no score visibly.
    gram.diagonal().add_(1e-10 * gram.diagonal().mean().clamp(min=1e-12))
    root = torch.linalg.cholesky(gram)  # rows of `wide` in an orthonormal basis of their span
    coordinates = torch.linalg.solve_triangular(root, wide @ other.T, upper=False).T
    return root.float().numpy(), coordinates.float().numpy()


def class_scores(model: Any, inputs: np.ndarray, num_classes: int) -> Tensor:
    """Log-probabilities ``[M, C]``; minus infinity for classes without a training image."""
    scores = torch.full((len(inputs), num_classes), -torch.inf, dtype=torch.float64)
    scores[:, torch.from_numpy(model.classes_)] = log_probabilities(model, inputs)
    return scores


def log_probabilities(model: Any, inputs: np.ndarray) -> Tensor:
    """``[M, classes of the model]`` float64; scikit-learn's own take the logarithm of probabilities that became 0."""
    logits = torch.from_numpy(np.asarray(model.decision_function(inputs), dtype=np.float64))
    if logits.dim() == 1:  # two classes: one logit, for the second
        logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
    return logits.log_softmax(dim=1)


def _trial(cost: float, model: Any, inputs: np.ndarray, labels: np.ndarray) -> Trial:
    log_proba = log_probabilities(model, inputs).numpy()
    columns = np.searchsorted(model.classes_, labels)
    return Trial(
        cost=cost,
        accuracy=100 * float((log_proba.argmax(axis=1) == columns).mean()),
        log_loss=-float(log_proba[np.arange(len(labels)), columns].mean()),
        iterations=int(model.n_iter_[0]),
    )
