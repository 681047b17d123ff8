"""Weighted k nearest neighbours on l2-normalised features (Wu et al. 2018, arXiv:1805.01978; protocol of DINO)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from vissl_like.compat.faiss import get_faiss
from vissl_like.distributed import watchdog
from vissl_like.evaluation.base import EvaluationResult, FeatureEvaluation, Features, required_labels
from vissl_like.meters.accuracy import AccuracyMeter
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.kinds import Count, Positive

QUERY_ROWS = 512
BANK_ROWS = 16384
"""Rows of queries and of the bank that are compared at a time: 32 MiB of float32 similarities."""
BANK_BYTES = 128 * 2**20
"""Most bytes of the bank's rows that are copied at a time."""
QUERY_BYTES = 512 * 2**20
"""Most bytes of queries for which the bank is gone through once."""
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
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    k: list[int],
    temperature: float,
    num_classes: int,
    device: torch.device | None = None,
) -> Iterator[dict[int, Tensor]]:
    """Votes ``[m, C]`` by k for stretches of m queries in order; arguments as in ``weighted_knn`` and ``nearest_rows``.

    The votes of a query are relative to its nearest neighbour's weight, so that no temperature overflows.
    """
    device = bank.device if device is None else device
    bank_labels = bank_labels.to(device)
    widest = min(max(k), len(bank))
    for block in queries.split(_rows_of(queries, QUERY_BYTES)):
        similarity, position = nearest_rows(bank, block, widest, cosine=True, device=device)
        for near, where in zip(similarity.split(QUERY_ROWS), position.split(QUERY_ROWS), strict=True):
            weights = ((near - near[:, :1]) / temperature).exp()
            labels = bank_labels[where]
            votes = {}
            for size in k:
                table = torch.zeros(len(near), num_classes, device=device)
                votes[size] = table.scatter_add_(1, labels[:, :size], weights[:, :size])
            yield votes


def nearest_rows(
    bank: Tensor, queries: Tensor, k: int, *, cosine: bool = False, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the highest inner product, nearest first.

    The bank is gone through once, a bounded number of rows at a time, and only so much of it is ever copied: it may be
    mapped from a file and larger than the memory. The full matrix of products never exists either. On a CPU a large
    bank is searched by faiss, which is faster than torch there; the neighbours are the same up to ties.

    Args:
        bank: ``[N, F]``.
        queries: ``[m, F]``.
        k: at most N.
        cosine: rank by the cosine; rows may have any length then.
        device: where the products are computed, to which the bank is brought part by part; None for the bank's own.

    Returns:
        inner products (or cosines) ``[m, k]`` and positions in the bank ``[m, k]``, on ``device``.
    """
    device = bank.device if device is None else device
    queries = queries.to(device).float()
    if cosine:
        queries = functional.normalize(queries, dim=1)
    search = _faiss_search if device.type == "cpu" and len(bank) > FAISS_ROWS and len(queries) else _torch_search
    best = queries.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    start = 0
    for part in bank.split(min(BANK_ROWS, _rows_of(bank, BANK_BYTES))):
        watchdog.go_on("comparing features")  # millions of them, amid a training
        part = part.to(device).float()
        if cosine:
            part = functional.normalize(part, dim=1)
        found, columns = search(queries, part, min(k, len(part)))
        best, where = torch.cat([best, found], dim=1), torch.cat([where, columns + start], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, order)
        start += len(part)
    return best, where


def _rows_of(matrix: Tensor, most: int) -> int:
    """How many rows take so many bytes in float32; one at least."""
    return max(1, most // (4 * max(1, matrix.shape[1])))


def _torch_search(queries: Tensor, part: Tensor, k: int) -> tuple[Tensor, Tensor]:
    pairs = [(rows @ part.T).topk(k, dim=1) for rows in queries.split(QUERY_ROWS)]
    return torch.cat([pair.values for pair in pairs]), torch.cat([pair.indices for pair in pairs])


def _faiss_search(queries: Tensor, part: Tensor, k: int) -> tuple[Tensor, Tensor]:
    faiss = get_faiss()
    values, columns = faiss.knn(queries.numpy(), part.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(values), torch.from_numpy(columns)


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
            train.features,
            bank_labels,
            test.features,
            k=self.k,
            temperature=self.temperature,
            num_classes=num_classes,
            device=self.device,
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
