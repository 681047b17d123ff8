"""How well predicted classes cover the true ones, pixel by pixel (Long, Shelhamer and Darrell 2015, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

VOID = 255
"""Label of pixels that do not count."""


def confusion(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """How many pixels of each class were taken for which.

    Args:
        truth: any shape, integers 0..C-1, or 255 where a pixel does not count.
        predicted: the same shape, 0..C-1.
        num_classes: C, at most 255.

    Returns:
        ``[C, C]`` int64, rows by the true class.
    """
    truth, predicted = truth.long(), predicted.long()
    counted = truth != VOID
    pairs = truth[counted] * num_classes + predicted[counted]
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(table: Tensor) -> Tensor:
    """Of each class, the pixels that are and are called so, over those that are or are called so.

    Args:
        table: ``[C, C]`` of ``confusion``, added up over all images.

    Returns:
        ``[C]`` float64 in [0, 1]; NaN for a class that the truth does not contain, also where it is predicted: which
        classes count depends on the images alone, so that it is the same for every network.
    """
    counts = table.double()
    both = counts.diagonal()
    there = counts.sum(dim=1)
    return torch.where(there > 0, both / (counts.sum(dim=0) + there - both), torch.nan)


def class_accuracy(table: Tensor) -> Tensor:
    """Share of each class's pixels that are called so: ``[C]`` float64, NaN for a class that is nowhere."""
    counts = table.double()
    return counts.diagonal() / counts.sum(dim=1)


def segmentation_metrics(table: Tensor) -> dict[str, float]:
    """Percentages: ``mIoU``, ``pixel_accuracy``, ``mean_accuracy``; the means are over the classes in the truth.

    Args:
        table: ``[C, C]``, see ``confusion``.

    Raises:
        ValueError: no pixel was counted.
    """
    total = int(table.sum())
    if not total:
        raise ValueError("no pixel was counted")
    return {
        "mIoU": 100 * float(torch.nanmean(intersection_over_union(table))),
        "pixel_accuracy": 100 * int(table.diagonal().sum()) / total,
        "mean_accuracy": 100 * float(torch.nanmean(class_accuracy(table))),
    }
