"""Average precision of PASCAL VOC (Everingham et al. 2010): area under the envelope, and the older eleven points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vissl_like.utils.errors import UserError


def average_precision(scores: Tensor, labels: Tensor, ignore: Tensor | None = None) -> float:
    """Area under the monotone precision envelope (VOC 2010 and later, and VISSL's VOC07 SVM).

    The envelope at a rank is the highest precision at this or any later rank. It is summed where recall changes, which
    is at the positives: ``AP = 1/P * sum over positives of the envelope``. This is not scikit-learn's
    ``average_precision_score``, which has no envelope.

    Scores are sorted descending and stably: of equal scores, the row that comes first ranks first.

    Args:
        scores: ``[n]``, higher means more likely positive.
        labels: ``[n]``, positive where > 0.
        ignore: ``[n]`` bool, rows that are left out before ranking ("difficult"); None = none.

    Returns:
        in [0, 1]; NaN where no positive is left.

    Raises:
        UserError: a score that counts is NaN.
        ValueError: the shapes differ.
    """
    hits, positive = _hits(scores, labels, ignore)
    if not positive.any():
        return float("nan")
    return float(_envelope(hits)[positive].mean())


def eleven_point_average_precision(scores: Tensor, labels: Tensor, ignore: Tensor | None = None) -> float:
    """VOC 2007's measure: mean over recalls t = 0, 0.1, ... 1 of the highest precision at a recall of at least t.

    Whether a recall reaches t is decided in whole numbers (``10 * hits >= j * P``): 3 of 10 positives do reach 0.3,
    which fails where 0.1 is added up in floating point.

    Ties, arguments, result and errors as for ``average_precision``.
    """
    hits, positive = _hits(scores, labels, ignore)
    if not positive.any():
        return float("nan")
    envelope, total = _envelope(hits), int(positive.sum())
    reached = [int((10 * hits >= step * total).nonzero()[0]) for step in range(11)]
    return float(envelope[reached].mean())


@dataclass(frozen=True)
class ClassAveragePrecisions:
    """Average precision of every class.

    Attributes:
        mean: plain mean over the classes that have positives, in [0, 1].
        per_class: ``[C]`` float64; NaN for a class without positives.
        without_positives: those classes; they do not count in the mean.
    """

    mean: float
    per_class: Tensor
    without_positives: list[int]


def mean_average_precision(
    scores: Tensor,
    labels: Tensor,
    ignore: Tensor | None = None,
    measure: Callable[[Tensor, Tensor, Tensor | None], float] = average_precision,
) -> ClassAveragePrecisions:
    """Average precision per class and its plain mean.

    Args:
        scores: ``[n, C]``.
        labels: ``[n, C]``, positive where > 0.
        ignore: ``[n, C]`` bool, pairs of image and class that do not count; None = none.
        measure: ``average_precision`` or ``eleven_point_average_precision``.

    Raises:
        UserError: no class has a positive, or a score is NaN.
        ValueError: the shapes differ.
    """
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must be [n, C] alike")
    columns = [None] * scores.shape[1] if ignore is None else list(ignore.unbind(1))
    values = [measure(scores[:, c], labels[:, c], column) for c, column in enumerate(columns)]
    per_class = torch.tensor(values, dtype=torch.float64)
    known = ~per_class.isnan()
    if not known.any():
        raise UserError(
            f"none of the {scores.shape[1]} classes has a positive among the {len(scores)} images, so there is no "
            "average precision. Check the labels of the test images (1 = the class is in the image)."
        )
    return ClassAveragePrecisions(float(per_class[known].mean()), per_class, (~known).nonzero().flatten().tolist())


def _hits(scores: Tensor, labels: Tensor, ignore: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positives up to and with each rank ``[m]`` int64, and which ranks are positive ``[m]`` bool."""
    if scores.ndim != 1 or scores.shape != labels.shape or (ignore is not None and ignore.shape != scores.shape):
        raise ValueError(f"scores {tuple(scores.shape)}, labels {tuple(labels.shape)} and ignore must be [n] alike")
    if ignore is not None:
        scores, labels = scores[~ignore.bool()], labels[~ignore.bool()]
    if scores.isnan().any():
        raise UserError(
            f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN and cannot be ranked. Look for non-finite "
            "features or a classifier that diverged."
        )
    positive = labels[scores.argsort(descending=True, stable=True)] > 0
    return positive.cumsum(0), positive


def _envelope(hits: Tensor) -> Tensor:
    """``[m]`` float64: the highest precision at this or any later rank."""
    precision = hits.double() / torch.arange(1, len(hits) + 1, device=hits.device)
    return precision.flip(0).cummax(0).values.flip(0)
