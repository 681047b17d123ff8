"""Linear support vector machines as VISSL fits them on frozen features (Goyal et al. 2019, arXiv:1905.01235)."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor

from vissl_like.utils.errors import UserError

FOLDS = 3
"""Of the training images, over which the cost of a class is chosen."""

EPSILON = 1e-5


class Fits:
    """Fits machines and counts those that were stopped early.

    Args:
        max_iterations: of the solver.
        seed: of the order in which it visits the images.
    """

    def __init__(self, max_iterations: int, seed: int):
        self.max_iterations, self.seed = max_iterations, seed
        self.done, self.stopped = 0, 0

    def scores(self, inputs: np.ndarray, targets: np.ndarray, others: np.ndarray, cost: float) -> np.ndarray:
        """Distances ``[M]`` of other images from the plane that separates targets 1 from -1, times its slope.

        Args:
            inputs: ``[N, D]``.
            targets: ``[N]``, 1 or -1, both of them there.
            others: ``[M, D]``.
            cost: C.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        model = LinearSVC(
            C=cost,
            loss="squared_hinge",
            penalty="l2",
            dual=True,
            tol=1e-4,
            class_weight={1: 2, -1: 1},
            max_iter=self.max_iterations,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted, and said once
            model.fit(inputs, targets)
        self.done += 1
        self.stopped += int(model.n_iter_) >= self.max_iterations
        return model.decision_function(others)

    def notices(self) -> list[str]:
        """How many were stopped."""
        text = f"{self.stopped} of {self.done} fits stopped after {self.max_iterations} iterations"
        return [text] if self.stopped else []


def unit_rows(features: Tensor) -> Tensor:
    """``x / (|x| + 1e-5)`` for rows ``[N, F]``, as VISSL's SVMs have it."""
    return features / (features.norm(dim=1, keepdim=True) + EPSILON)


def machine_targets(labels: np.ndarray, name: str, least: int) -> np.ndarray:
    """1 or -1 for each training image ``[N]``; difficult objects are negatives, as in the protocol.

    Args:
        labels: ``[N]``: 1 shown, -1 not shown, 0 difficult objects only.
        name: of the class.
        least: images of each kind that must be there.

    Raises:
        UserError: there are fewer.
    """
    targets = np.where(labels == 1, 1, -1)
    require_both(targets, name, least)
    return targets


def require_both(targets: np.ndarray, name: str, least: int) -> None:
    """Refuses targets ``[N]`` of a class with fewer than ``least`` of 1 or of -1.

    Raises:
        UserError: there are fewer.
    """
    positives = int((targets == 1).sum())
    if min(positives, len(targets) - positives) < least:
        raise UserError(
            f"class {name!r} has {positives} training images that show it and {len(targets) - positives} that do not; "
            f"{least} of each are needed{' to choose its cost over three folds' if least == FOLDS else ''}. Give more "
            "images (EVALUATION.train_split; EVALUATE.max_images leaves images out)"
            + (", or one cost: config.EVALUATION.costs=[1]" if least == FOLDS else "")
            + "."
        )
