"""Linear SVMs on frozen features of PASCAL VOC (Goyal et al. 2019, arXiv:1905.01235), with all images or with few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vissl_like.data.readers.voc import VocLabels, read_voc_labels
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Evaluation, EvaluationResult, Features
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.functional.average_precision import (
    average_precision,
    eleven_point_average_precision,
    mean_average_precision,
)
from vissl_like.evaluation.functional.low_shot import multi_label_shots
from vissl_like.evaluation.linear import reduced
from vissl_like.evaluation.machines import FOLDS, Fits, machine_targets, require_both, unit_rows
from vissl_like.evaluation.scoring import centred
from vissl_like.evaluation.store import cache_key
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Index, Positive

DEFAULT_COSTS = [0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0]
Measure = Callable[[Tensor, Tensor, "Tensor | None"], float]


@dataclass(frozen=True)
class Problem:
    """Features and labels of C classes, each of which is a problem of its own.

    Attributes:
        inputs, test_inputs: ``[N, D]`` and ``[M, D]`` float32.
        labels, test_labels: ``[N, C]`` and ``[M, C]`` int8: 1 shown, -1 not shown, 0 difficult objects only.
        classes: C names.
    """

    inputs: np.ndarray
    test_inputs: np.ndarray
    labels: np.ndarray
    test_labels: np.ndarray
    classes: list[str]


@EVALUATIONS.register("svm")
class SvmEvaluation(Evaluation):
    """Linear SVMs on frozen features of PASCAL VOC 2007, one for each class; mean average precision of all (VISSL).

    Images are brought to a shorter side of ``resize`` and then squashed to a square, not cropped; features x become
    ``x / (|x| + 1e-5)``, pixels after their mean is taken off. Each class has scikit-learn's ``LinearSVC`` (squared
    hinge, dual, positives weigh 2) with the cost of best mean average precision over three folds of the training
    images, fitted again on all of them. Difficult objects are negatives in training and left out of the test.

    The folds are measured with the average precision that the test is measured with; the official script takes
    scikit-learn's there, which has no envelope.

    With ``shots`` it is the low-shot protocol instead: k positives and (C - 1) k negatives for each class, no folds;
    for each cost the mean over draws, and of these the best, which is chosen on the TEST images: it is optimistic.

    Options:
        path: the folder ``VOCdevkit``
        year: which ``VOC<year>`` of it
        train_split: images to learn from
        test_split: images to be scored on; they need labels
        image_size: side of the square, in pixels
        resize: shorter side before squashing, in pixels; null leaves the step out
        costs: strengths C to choose from, each above 0
        eleven_point: measure as VOC 2007 did, by eleven recalls; false is the area under the envelope (VOC 2010, VISSL)
        max_iterations: of the solver for each fit
        shots: numbers k of positives for the low-shot protocol, the largest of which counts; null uses all images
        draws: independent samples for each k
        negatives: of a low-shot sample: k of each other class, or (C - 1) k of all images without the class
        seed: of the solver and of the samples
    """

    pixels = True

    def __init__(
        self,
        *,
        path: str,
        year: Count = 2007,
        train_split: str = "trainval",
        test_split: str = "test",
        image_size: Count = 224,
        resize: Count | None = 256,
        costs: list[Positive] = DEFAULT_COSTS,
        eleven_point: bool = False,
        max_iterations: Count = 2000,
        shots: list[Count] | None = None,
        draws: Count = 5,
        negatives: Literal["each class", "all"] = "each class",
        seed: Index = 0,
    ):
        for name, values in (("costs", costs), ("shots", shots)):
            if values is not None and not values:
                raise UserError(f"EVALUATION.{name} is empty; give at least one value, such as [1]")
        self.path, self.year, self.train_split, self.test_split = path, year, train_split, test_split
        self.image_size, self.resize = image_size, resize
        self.costs, self.max_iterations, self.seed = sorted(set(costs)), max_iterations, seed
        self.shots = None if shots is None else sorted(set(shots))
        self.draws, self.negatives = draws, negatives
        self.eleven_point = eleven_point
        self.measure: Measure = eleven_point_average_precision if eleven_point else average_precision

    def run(self, bench: Bench) -> EvaluationResult | None:
        """See ``Evaluation``.

        Raises:
            UserError: files are missing, or a class has too few images.
        """
        train_labels, test_labels = self._labels()
        sets = [bench.images(labels.images) for labels in (train_labels, test_labels)]
        bench.require_room(*sets, image_size=self.image_size, max_images=bench.protocol.max_images)
        changes: dict[str, Any] = {"image_size": self.image_size, "resize": self.resize, "fit": "squash"}
        train, test = (bench.features(source, **changes) for source in sets)
        if not comm.is_main():
            return None
        if bench.subject.pixels:
            train, test = centred(train, test)
        problem = _problem(train, test, train_labels, test_labels)
        result = self._all_images(problem) if self.shots is None else self._few_images(problem, self.shots)
        result.train_images, result.test_images = len(train), len(test)
        result.skipped = [*train.skipped, *test.skipped]
        return result

    def identity(self, bench: Bench) -> str:
        """Images and labels of both splits."""
        facts = [
            [bench.images(found.images).identity, found.classes, found.labels.tolist()] for found in self._labels()
        ]
        return cache_key({"sets": facts})

    def typical_images(self) -> list[str]:
        """See ``Evaluation``: the training split."""
        return self._labels()[0].images

    def _labels(self) -> tuple[VocLabels, VocLabels]:
        train = read_voc_labels(self.path, self.train_split, year=str(self.year))
        return train, read_voc_labels(self.path, self.test_split, year=str(self.year), classes=train.classes)

    def _all_images(self, problem: Problem) -> EvaluationResult:
        """All training images; the cost of each class by its folds."""
        fits = Fits(self.max_iterations, self.seed)
        scores = np.empty(problem.test_labels.shape)
        costs: dict[str, float] = {}
        averages: dict[str, dict[str, float]] = {}
        least = 1 if len(self.costs) == 1 else FOLDS
        for column, name in enumerate(problem.classes):
            targets = machine_targets(problem.labels[:, column], name, least)
            costs[name], averages[name] = self._choose(problem.inputs, targets, fits)
            scores[:, column] = fits.scores(problem.inputs, targets, problem.test_inputs, costs[name])
        precisions = self._precisions(scores, problem)
        ends = [name for name, cost in costs.items() if len(self.costs) > 1 and cost in (self.costs[0], self.costs[-1])]
        notices = fits.notices()
        if ends:
            notices.append(
                f"{len(ends)} class(es) take a cost at an end of EVALUATION.costs; one beyond may be better: "
                f"{', '.join(ends[:5])}{', ...' if len(ends) > 5 else ''}"
            )
        details = {"cost_per_class": costs, "fold_averages": averages}
        return self._result({"map": _mean(precisions)}, precisions, problem, details, notices)

    def _choose(self, inputs: np.ndarray, targets: np.ndarray, fits: Fits) -> tuple[float, dict[str, float]]:
        """The cost of best mean average precision over the folds (the smallest of equals), and what each reached."""
        from sklearn.model_selection import StratifiedKFold

        if len(self.costs) == 1:
            return self.costs[0], {}
        folds = list(StratifiedKFold(FOLDS).split(inputs, targets))
        means = []
        for cost in self.costs:
            values = []
            for kept, held in folds:
                scores = fits.scores(inputs[kept], targets[kept], inputs[held], cost)
                values.append(self.measure(torch.from_numpy(scores), torch.from_numpy(targets[held]), None))
            means.append(float(np.mean(values)))
        return self.costs[int(np.argmax(means))], {f"{c:g}": 100 * mean for c, mean in zip(self.costs, means)}

    def _few_images(self, problem: Problem, sizes: list[int]) -> EvaluationResult:
        """Low-shot samples of each size; the cost of each size by the test images, as in the protocol."""
        fits, metrics, notices = Fits(self.max_iterations, self.seed), {}, []
        details: dict[str, Any] = {"draws": self.draws, "negatives": self.negatives, "per_k": {}}
        # The file says 1, -1, 0 for shown, not shown, difficult; the sampler 1, 0, -1.
        labels = torch.from_numpy(np.select([problem.labels == 1, problem.labels == -1], [1, 0], -1))
        precisions = np.empty(0)
        for k in sizes:
            table = np.empty((len(self.costs), self.draws, len(problem.classes)))
            for draw in range(self.draws):
                sample = multi_label_shots(labels, k, seed=self.seed, draw=draw, negatives=self.negatives)
                for row, cost in enumerate(self.costs):
                    scores = self._sample_scores(problem, sample.targets.numpy(), cost, fits)
                    table[row, draw] = self._precisions(scores, problem)
            means = np.nanmean(table, axis=2)  # [costs, draws]: mean over the classes that have positives
            best = int(np.argmax(means.mean(axis=1)))
            precisions = table[best].mean(axis=0)
            metrics[f"map_k{k}"] = 100 * float(means[best].mean())
            details["per_k"][f"k{k}"] = {
                "cost": self.costs[best],
                "per_draw": (100 * means[best]).tolist(),
                "sd": 100 * float(means[best].std(ddof=1)) if self.draws > 1 else None,
                "per_cost": {f"{cost:g}": 100 * float(mean) for cost, mean in zip(self.costs, means.mean(axis=1))},
            }
            for what, short in (("positives", sample.short_positives), ("negatives", sample.short_negatives)):
                if short:
                    named = ", ".join(f"{problem.classes[c]} (has {count})" for c, count in list(short.items())[:5])
                    more = ", ..." if len(short) > 5 else ""
                    notices.append(f"k={k}: {len(short)} class(es) with fewer {what} than asked for: {named}{more}")
        if len(self.costs) > 1:
            notices.append(
                f"optimistic: for each k the best of {len(self.costs)} costs is taken on the TEST images, as the "
                "protocol has it; with one value in EVALUATION.costs nothing is chosen"
            )
        return self._result(metrics, precisions, problem, details, notices + fits.notices())

    def _sample_scores(self, problem: Problem, chosen: np.ndarray, cost: float, fits: Fits) -> np.ndarray:
        """Scores ``[M, C]`` of machines that learnt from a sample ``[N, C]`` (1, 0; -1 is not in it)."""
        scores = np.empty(problem.test_labels.shape)
        for column, name in enumerate(problem.classes):
            rows = chosen[:, column] >= 0
            targets = np.where(chosen[rows, column] == 1, 1, -1)
            require_both(targets, name, 1)
            scores[:, column] = fits.scores(problem.inputs[rows], targets, problem.test_inputs, cost)
        return scores

    def _precisions(self, scores: np.ndarray, problem: Problem) -> np.ndarray:
        """Average precision of each class on the test images ``[C]``, in [0, 1]; NaN for one without positives."""
        labels = torch.from_numpy(problem.test_labels)
        found = mean_average_precision(torch.from_numpy(scores), labels, labels == 0, self.measure)
        return found.per_class.numpy()

    def _result(
        self,
        metrics: dict[str, float],
        precisions: np.ndarray,
        problem: Problem,
        details: dict[str, Any],
        notices: list[str],
    ) -> EvaluationResult:
        """The last of the metrics counts; ``precisions`` ``[C]`` in [0, 1] are those that it is the mean of."""
        known = np.flatnonzero(~np.isnan(precisions))
        absent = [name for name, value in zip(problem.classes, precisions, strict=True) if np.isnan(value)]
        if absent:
            notices = [f"{len(absent)} class(es) have no test image and do not count: {', '.join(absent)}", *notices]
        facts = {
            "eleven_point": self.eleven_point,
            "costs": self.costs,
            **details,
            "ap_per_class": {problem.classes[column]: 100 * float(precisions[column]) for column in known},
            "notices": notices,
        }
        return EvaluationResult(
            "svm", metrics, None, facts, main=list(metrics)[-1], items=100 * precisions[known], item_ids=known
        )


def _problem(train: Features, test: Features, train_labels: VocLabels, test_labels: VocLabels) -> Problem:
    """Rows of images that could be read, with their own labels."""
    inputs, others = unit_rows(train.features).numpy(), unit_rows(test.features).numpy()
    return Problem(
        *reduced(inputs, others),
        train_labels.labels[train.indices.numpy()],
        test_labels.labels[test.indices.numpy()],
        train_labels.classes,
    )


def _mean(precisions: np.ndarray) -> float:
    return 100 * float(np.nanmean(precisions))
