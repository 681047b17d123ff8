"""Logistic regression on frozen features of a few labelled images of each class."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vissl_like.evaluation.base import EvaluationResult, FeatureEvaluation, Features, required_labels
from vissl_like.evaluation.functional.low_shot import k_shot
from vissl_like.evaluation.linear import class_scores, prepared, reduced
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Index, Positive

if TYPE_CHECKING:
    from vissl_like.evaluation.bench import Bench

DEFAULT_SHOTS = [1, 2, 4, 8, 16]


@EVALUATIONS.register("low_shot")
class LowShotEvaluation(FeatureEvaluation):
    """Multinomial logistic regression on frozen features of k labelled images of each class, for several k.

    The objective is that of the linear probe, ``|w|^2 / 2 + C * sum of cross-entropies``, with one C for all: there are
    too few labelled images to choose it on, and the test images are not asked. Each k gives ``top1_k<k>``, the mean
    over independent draws of the k images; the largest k counts. A test image's part in it is how often, over the
    draws, it was answered rightly: intervals are over test images, not over draws (their spread is in the record).
    The majority class beside it is that of all training images, which k images of each class do not tell.

    Options:
        shots: numbers k of labelled images of each class; a class with fewer gives all that it has
        draws: independent choices of the images for each k
        cost: strength C, above 0 (larger fits the few images more closely)
        standardise: bring each feature to mean 0 and deviation 1 over ALL training images, whose labels it does not
            use (the deviation over one or two images would say nothing); false takes them as they are
        max_iterations: of the solver for each fit
        seed: of the draws
    """

    def __init__(
        self,
        *,
        shots: list[Count] = DEFAULT_SHOTS,
        draws: Count = 5,
        cost: Positive = 0.1,
        standardise: bool = True,
        max_iterations: Count = 2000,
        seed: Index = 0,
    ):
        if not shots:
            raise UserError("EVALUATION.shots is empty; give at least one number of images of each class, such as [1]")
        self.shots = sorted(set(shots))
        self.draws, self.cost, self.standardise = draws, cost, standardise
        self.max_iterations, self.seed = max_iterations, seed

    def __call__(self, train: Features, test: Features, num_classes: int) -> EvaluationResult:
        """Evaluates; see ``FeatureEvaluation``.

        Raises:
            UserError: labels are missing, or there are fewer than two classes.
        """
        labels, test_labels = required_labels(train, "training"), required_labels(test, "test")
        if len(labels.unique()) < 2:
            raise UserError("the training images are of one class only: there is nothing to tell apart")
        inputs, test_inputs = prepared(train.features, test.features, self.standardise)
        metrics: dict[str, float] = {}
        per_draw: dict[str, list[float]] = {}
        notices, stopped = [], 0
        correct = torch.empty(0)
        for k in self.shots:
            parts = []
            for draw in range(self.draws):
                chosen = k_shot(labels, k, num_classes=num_classes, seed=self.seed, draw=draw)
                rows = chosen.indices.numpy()
                scores, early = self._fit(inputs[rows], labels.numpy()[rows], test_inputs, num_classes)
                parts.append(scores.argmax(dim=1) == test_labels)
                stopped += early
            correct = torch.stack(parts).double()  # [draws, M]; that of the last, largest k stays
            metrics[f"top1_k{k}"] = 100 * float(correct.mean())
            per_draw[f"k{k}"] = (100 * correct.mean(dim=1)).tolist()
            if chosen.short:
                notices.append(_short_classes(k, chosen.short))
        if stopped:
            fits = len(self.shots) * self.draws
            notices.append(f"{stopped} of {fits} fits stopped after {self.max_iterations} iterations")
        details: dict[str, Any] = {
            "draws": self.draws,
            "cost": self.cost,
            "standardise": self.standardise,
            "seed": self.seed,
            "sd": {name: float(np.std(values, ddof=1)) for name, values in per_draw.items() if self.draws > 1},
            "per_draw": per_draw,
            "notices": notices,
        }
        items = (100 * correct.mean(dim=0)).numpy()
        return EvaluationResult("low_shot", metrics, None, details, main=f"top1_k{self.shots[-1]}", items=items)

    def run(self, bench: Bench) -> EvaluationResult | None:
        """See ``FeatureEvaluation``; the majority class stands under every k."""
        result = super().run(bench)
        if result is not None and result.chance is not None:
            result.chance.metrics = dict.fromkeys(result.metrics, result.chance.metrics["top1"])
            result.chance.main = result.main
        return result

    def _fit(
        self, inputs: np.ndarray, labels: np.ndarray, test_inputs: np.ndarray, num_classes: int
    ) -> tuple[Tensor, bool]:
        """Scores ``[M, C]`` of the test images, and whether the solver was stopped early."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        own, other = reduced(inputs, test_inputs)
        model = LogisticRegression(C=self.cost, max_iter=self.max_iterations)
        with threadpool_limits(1), warnings.catch_warnings():  # small products: sharing them among threads costs more
            warnings.simplefilter("ignore", ConvergenceWarning)  # said in our words
            # One image a class is what is asked for here.
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
            model.fit(own, labels)
        return class_scores(model, other, num_classes), int(model.n_iter_[0]) >= self.max_iterations


def _short_classes(k: int, short: dict[int, int]) -> str:
    named = ", ".join(f"{label} (has {count})" for label, count in list(short.items())[:5])
    more = ", ..." if len(short) > 5 else ""
    return f"k={k}: {len(short)} class(es) with fewer training images give all they have: numbers {named}{more}"
