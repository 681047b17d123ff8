"""Top-k accuracy and its mean over classes, in percent."""

from __future__ import annotations

import torch
from torch import Tensor

from vissl_like.meters.base import Meter
from vissl_like.registry import METERS
from vissl_like.utils.kinds import Count

DEFAULT_TOP = [1, 5]


@METERS.register("accuracy")
class AccuracyMeter(Meter):
    """Share of samples whose label is among the k highest scores, and the mean of the classes' own shares, in percent.

    Values are called ``top1``, ``top5``, ... and ``mean_per_class`` (top-1 within each class that occurs, averaged over
    them: what a majority guess cannot raise).

    Args:
        num_classes: C, width of the scores.

    Options:
        top: the values of k, each at most the number of classes (a larger one is left out: it would always be 100)
    """

    def __init__(self, num_classes: int, *, top: list[Count] = DEFAULT_TOP):
        self.num_classes = num_classes
        self.top = sorted({k for k in top if k < num_classes} | {1})
        self.left_out = sorted({k for k in top if k >= num_classes and k != 1})
        self.reset()

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Adds n samples: ``scores`` ``[n, C]``, ``labels`` ``[n]`` int64 in 0..C-1.

        Raises:
            ValueError: shapes do not fit, or a label lies outside.
        """
        labels = labels.cpu()
        if scores.dim() != 2 or scores.shape[1] != self.num_classes or labels.shape != scores.shape[:1]:
            raise ValueError(
                f"expected scores [n, {self.num_classes}] and labels [n], "
                f"got {list(scores.shape)} and {list(labels.shape)}"
            )
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= self.num_classes):
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1}, got {int(labels.min())}..{int(labels.max())}"
            )
        # argmax, not the first of topk: among equal scores the two may differ, and predictions are made with argmax.
        first = scores.argmax(dim=1).cpu() == labels
        hits = scores.topk(self.top[-1], dim=1).indices.cpu() == labels[:, None]  # [n, k]
        for k in self.top:
            self._hits[k] += int((first if k == 1 else first | hits[:, :k].any(dim=1)).sum())
        self._seen += torch.bincount(labels, minlength=self.num_classes)
        self._right += torch.bincount(labels[first], minlength=self.num_classes)

    def value(self) -> dict[str, float]:
        """``top<k>`` and ``mean_per_class`` in percent.

        Raises:
            ValueError: no sample has been added.
        """
        samples = int(self._seen.sum())
        if samples == 0:
            raise ValueError("the accuracy of no samples is not defined")
        present = self._seen > 0
        shares = self._right[present].double() / self._seen[present]
        values = {f"top{k}": 100 * self._hits[k] / samples for k in self.top}
        return {**values, "mean_per_class": 100 * float(shares.mean())}

    def reset(self) -> None:
        """Forgets every sample."""
        self._hits = dict.fromkeys(self.top, 0)
        self._seen = torch.zeros(self.num_classes, dtype=torch.int64)
        self._right = torch.zeros(self.num_classes, dtype=torch.int64)
