"""Weighted k nearest neighbours on l2-normalised features (Wu et al. 2018, arXiv:1805.01978; protocol of DINO)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from vissl_like.compat.faiss import get_faiss
from vissl_like.evaluation.base import EvaluationResult, FeatureEvaluation, Features, required_labels
from vissl_like.meters.accuracy import AccuracyMeter
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.kinds import Count, Positive

QUERY_ROWS = 512
BANK_ROWS = 16384
"""Rows of queries and of the bank that are compared at a time: 32 MiB of float32 similarities."""
FAISS_ROWS = 16384
"""Banks above this are searched by faiss on a CPU; below it, importing faiss would cost more than it saves."""
DEFAULT_K = [20]


def weighted_knn(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: list[int], temperature: float, num_classes: int
) -> dict[int, Tensor]:
    """Class that the k nearest rows of the bank vote for, each with weight ``exp(cosine / temperature)``.

    Args:
        bank: ``[N, F]`` features, any scale.
        bank_labels: ``[N]`` int64 in 0..C-1.
        queries: ``[M, F]`` features, any scale.
        k: numbers of neighbours; one larger than N counts as N, with a warning.
        temperature: above 0; small values let the nearest decide.
        num_classes: C.

    Returns:
        for each k asked for, ``[M]`` int64 predictions on the CPU.
    """
    parts: dict[int, list[Tensor]] = {size: [] for size in k}
    for size in k:
        if size > len(bank):
            warnings.warn(f"k-NN with k={size} uses all {len(bank)} images that there are", stacklevel=2)
    for votes in knn_votes(bank, bank_labels, queries, k=k, temperature=temperature, num_classes=num_classes):
        for size in k:
            parts[size].append(votes[size].argmax(dim=1).cpu())
    empty = torch.empty(0, dtype=torch.int64)
    return {size: torch.cat(found) if found else empty for size, found in parts.items()}


def knn_votes(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: list[int], temperature: float, num_classes: int
) -> Iterator[dict[int, Tensor]]:
    """Votes ``[m, C]`` by k for stretches of m queries in order; arguments as in ``weighted_knn``.

    The votes of a query are relative to its nearest neighbour's weight, so that no temperature overflows.
    """
    bank = functional.normalize(bank.float(), dim=1)
    bank_labels = bank_labels.to(bank.device)
    widest = min(max(k), len(bank))
    for rows in queries.split(QUERY_ROWS):
        rows = functional.normalize(rows.to(bank.device).float(), dim=1)
        similarity, position = nearest_rows(bank, rows, widest)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        labels = bank_labels[position]
        votes = {}
        for size in k:
            table = torch.zeros(len(rows), num_classes, device=bank.device)
            votes[size] = table.scatter_add_(1, labels[:, :size], weights[:, :size])
        yield votes


def nearest_rows(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the highest inner product, nearest first; the full matrix never exists.

    On a CPU a large bank is searched by faiss, which is faster than torch there; the neighbours are the same up to
    ties.

    Args:
        bank: ``[N, F]``.
        queries: ``[m, F]``.
        k: at most N.

    Returns:
        inner products ``[m, k]`` and positions in the bank ``[m, k]``.
    """
    if bank.device.type == "cpu" and len(bank) > FAISS_ROWS:
        faiss = get_faiss()
        found = faiss.knn(queries.numpy(), bank.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    best = queries.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), BANK_ROWS):
        similarity = queries @ bank[start : start + BANK_ROWS].T  # [m, rows]
        found, columns = similarity.topk(min(k, similarity.shape[1]), dim=1)
        best, where = torch.cat([best, found], dim=1), torch.cat([where, columns + start], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, order)
    return best, where


@EVALUATIONS.register("knn")
class KnnEvaluation(FeatureEvaluation):
    """Weighted k-NN classification of frozen features by cosine similarity; nothing is trained.

    The first k gives ``top1``; where there are several, each gives ``top1_k<k>`` too.

    Options:
        k: numbers of neighbours, the one that counts first (20 in DINO); one above the number of images takes all
        temperature: of the votes exp(cosine / temperature), above 0 (0.07 in DINO, 0.1 in VISSL)
    """

    def __init__(self, *, k: list[Count] = DEFAULT_K, temperature: Positive = 0.07):
        self.k = list(dict.fromkeys(k))
        self.temperature = temperature

    def __call__(self, train: Features, test: Features, num_classes: int) -> EvaluationResult:
        """Evaluates; see ``FeatureEvaluation``.

        Raises:
            UserError: labels are missing, or there is no image.
        """
        bank_labels, labels = required_labels(train, "training"), required_labels(test, "test")
        meters = {k: AccuracyMeter(num_classes, top=[1]) for k in self.k}
        predictions, start = [], 0
        for votes in knn_votes(
            train.features.to(self.device),
            bank_labels,
            test.features,
            k=self.k,
            temperature=self.temperature,
            num_classes=num_classes,
        ):
            rows = len(votes[self.k[0]])
            for k, meter in meters.items():
                meter.update(votes[k], labels[start : start + rows])
            predictions.append(votes[self.k[0]].argmax(dim=1).cpu())
            start += rows
        metrics = meters[self.k[0]].value()
        if len(meters) > 1:
            metrics.update({f"top1_k{k}": meter.value()["top1"] for k, meter in meters.items()})
        notices = [f"k={k} uses all {len(train)} training images" for k in self.k if k > len(train)]
        details = {"k": self.k, "temperature": self.temperature, "notices": notices}
        return EvaluationResult("knn", metrics, torch.cat(predictions), details)
