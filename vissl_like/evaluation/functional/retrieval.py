"""Image retrieval: the revisited Oxford and Paris protocols (Radenovic et al. 2018), and copy detection on Copydays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vissl_like.utils.errors import UserError, nearest

MAX_SIMILARITIES = 2**24
"""Similarities held at a time (64 MiB of float32), or one query's row where the gallery is longer than this."""
GALLERY_ROWS = 2**16
"""Rows of the gallery that are multiplied at a time, so that a memory-mapped one is read in pieces."""
PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""For each protocol, the groups of the ground truth that count as positive and those that count as junk."""


@dataclass(frozen=True)
class QueryTruth:
    """Gallery positions that show a query's object; all others are negatives.

    Attributes:
        easy: clearly visible.
        hard: visible with difficulty (small, turned, partly hidden).
        junk: neither right nor wrong; they are taken out of the ranking.
    """

    easy: Sequence[int]
    hard: Sequence[int]
    junk: Sequence[int]

    def split(self, protocol: str) -> tuple[list[int], list[int]]:
        """Positives and junk under a protocol.

        Args:
            protocol: ``easy`` (hard is junk), ``medium`` (easy and hard are positive) or ``hard`` (easy is junk).

        Raises:
            UserError: another protocol.
        """
        if protocol not in PROTOCOLS:
            raise UserError(
                f"unknown retrieval protocol '{protocol}': there are {', '.join(PROTOCOLS)}."
                + nearest(protocol, PROTOCOLS)
            )
        groups = {"easy": self.easy, "hard": self.hard, "junk": self.junk}
        positives, junk = ([i for name in names for i in groups[name]] for names in PROTOCOLS[protocol])
        return positives, junk


@dataclass(frozen=True)
class RetrievalScores:
    """Scores over the queries that have positives.

    Attributes:
        mean_average_precision: in [0, 1]; NaN where no query counts, like the other means.
        average_precision: ``[Q]`` float64, NaN for a skipped query.
        precision: by k, mean precision among the first k.
        recall_at_1: share of queries whose first image (junk removed) is a positive.
        counted: queries that count.
        skipped: queries without positives.
    """

    mean_average_precision: float
    average_precision: Tensor
    precision: dict[int, float]
    recall_at_1: float
    counted: int
    skipped: int


def ranks_of(
    queries: Tensor, gallery: Tensor, wanted: Sequence[Sequence[int]], *, max_similarities: int = MAX_SIMILARITIES
) -> list[Tensor]:
    """Exact ranks of some gallery images for every query, by inner product, without sorting the gallery.

    An image's rank is the number of gallery images that are more similar, plus those equally similar at an earlier
    position. Similarities are computed once, in float32 or wider, ``max_similarities`` at a time (at least one
    query's row).

    Args:
        queries: ``[Q, F]``, normalised if cosine is meant.
        gallery: ``[N, F]``.
        wanted: for each query, gallery positions.
        max_similarities: bound on those held in memory.

    Returns:
        for each query, int64 ranks from 0 in the order of its ``wanted``, on the CPU.

    Raises:
        UserError: a position is not in the gallery or is named twice for a query, or a similarity is NaN.
        ValueError: the shapes do not fit.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or len(queries) != len(wanted):
        raise ValueError(
            f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} must be [Q, F] and [N, F], with one "
            f"list of positions for each query, not {len(wanted)}"
        )
    for number, images in enumerate(wanted):
        _check_positions(number, images, len(gallery))
    rows, found = max(1, max_similarities // max(1, len(gallery))), []
    for start in range(0, len(queries), rows):
        similarity = _similarities(queries[start : start + rows], gallery)
        if similarity.isnan().any():
            raise UserError("some similarities of queries and gallery are NaN: look for non-finite features")
        for row, images in zip(similarity, wanted[start : start + rows], strict=True):
            found.append(_ranks_in_row(row, torch.tensor(list(images), dtype=torch.int64, device=row.device)).cpu())
    return found


def without_junk(positive_ranks: Tensor, junk_ranks: Tensor) -> Tensor:
    """Ranks of the positives, increasing, each reduced by the number of junk images before it."""
    ranks = positive_ranks.sort().values
    return ranks - torch.searchsorted(junk_ranks.sort().values, ranks)


def trapezoid_average_precision(ranks: Tensor, num_positives: int) -> float:
    """Area under precision over recall by trapezoids, one for each positive that was found.

    The j-th positive (from 0) at rank r (from 0) adds ``(p0 + p1) / (2 P)`` with ``p0 = j / r`` (1 at r = 0) and
    ``p1 = (j + 1) / (r + 1)``.

    Args:
        ranks: ``[f]`` int64, increasing, from 0: the positives that were found.
        num_positives: P >= f, with those that were not found and so add nothing.

    Returns:
        in [0, 1].
    """
    order, ranks = torch.arange(len(ranks), dtype=torch.float64), ranks.double()
    left = torch.where(ranks == 0, torch.ones_like(ranks), order / ranks.clamp(min=1))
    return float((left + (order + 1) / (ranks + 1)).sum() / (2 * num_positives))


def precision_at(ranks: Tensor, k: int) -> float:
    """Share of positives among the first k images, or up to the last positive where that comes before k.

    The official rule: the list ends at the last positive, so a query with few positives can reach 1 at any k.

    Args:
        ranks: ``[P]`` int64, junk-free ranks of all positives, from 0; at least one.
        k: at least 1.
    """
    length = min(int(ranks.max()) + 1, k)
    return int((ranks < length).sum()) / length


def score_protocols(
    queries: Tensor,
    gallery: Tensor,
    truths: Sequence[QueryTruth],
    *,
    protocols: Iterable[str] = ("easy", "medium", "hard"),
    ks: Sequence[int] = (1, 5, 10),
    max_similarities: int = MAX_SIMILARITIES,
) -> dict[str, RetrievalScores]:
    """Revisited-Oxford/Paris scores under several protocols, from one ranking.

    Args:
        queries: ``[Q, F]``, normalised.
        gallery: ``[N, F]``, normalised.
        truths: of each query.
        protocols: names in ``PROTOCOLS``.
        ks: for precision@k.
        max_similarities: see ``ranks_of``.

    Raises:
        UserError: see ``ranks_of`` and ``QueryTruth.split``.
    """
    wanted = [[*truth.easy, *truth.hard, *truth.junk] for truth in truths]
    ranks = ranks_of(queries, gallery, wanted, max_similarities=max_similarities)
    places = [dict(zip(images, row.tolist(), strict=True)) for images, row in zip(wanted, ranks, strict=True)]
    scores = {}
    for protocol in protocols:
        clean, counts = [], []
        for truth, place in zip(truths, places, strict=True):
            positives, junk = (
                torch.tensor([place[i] for i in part], dtype=torch.int64) for part in truth.split(protocol)
            )
            clean.append(without_junk(positives, junk))
            counts.append(len(positives))
        scores[protocol] = _summary(clean, counts, ks)
    return scores


def score_copies(
    queries: Tensor,
    database: Tensor,
    positives: Sequence[Sequence[int]],
    *,
    limit: int = 20,
    max_similarities: int = MAX_SIMILARITIES,
) -> RetrievalScores:
    """Copydays: only the first ``limit`` images of a ranking are looked at; a positive further down adds nothing.

    Args:
        queries: ``[Q, F]``, normalised.
        database: ``[N, F]``, normalised: originals, then distractors.
        positives: of each query, positions in the database.
        limit: 20 in the official script.
        max_similarities: see ``ranks_of``.

    Returns:
        scores without precision@k.

    Raises:
        UserError: see ``ranks_of``.
    """
    ranks = ranks_of(queries, database, positives, max_similarities=max_similarities)
    found = [row.sort().values[: int((row < limit).sum())] for row in ranks]
    return _summary(found, [len(images) for images in positives], ())


def _summary(ranks: list[Tensor], num_positives: list[int], ks: Sequence[int]) -> RetrievalScores:
    """Means over the queries with positives; ``ranks`` are increasing and free of junk."""
    counted = [number for number, count in enumerate(num_positives) if count]
    values = torch.full((len(ranks),), torch.nan, dtype=torch.float64)
    for number in counted:
        values[number] = trapezoid_average_precision(ranks[number], num_positives[number])
    return RetrievalScores(
        mean_average_precision=_mean([float(values[number]) for number in counted]),
        average_precision=values,
        precision={k: _mean([precision_at(ranks[number], k) for number in counted]) for k in ks},
        recall_at_1=_mean([float((ranks[number] == 0).any()) for number in counted]),
        counted=len(counted),
        skipped=len(ranks) - len(counted),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _check_positions(query: int, images: Sequence[int], gallery_size: int) -> None:
    """Ground truth that names an image twice, or one that is not there, would give a plausible wrong score."""
    outside = [image for image in images if not 0 <= image < gallery_size]
    if outside:
        raise UserError(
            f"the ground truth of query {query} names image {outside[0]}, but the gallery has {gallery_size} (from 0). "
            "Ground truth and gallery list must belong together."
        )
    if len(set(images)) < len(images):
        twice = next(image for image in images if list(images).count(image) > 1)
        raise UserError(
            f"the ground truth of query {query} names image {twice} more than once: an image is easy, hard or junk"
        )


def _similarities(queries: Tensor, gallery: Tensor) -> Tensor:
    """``[q, N]`` on the queries' device, in float32 or wider; the gallery is read in stretches."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    queries, similarity = queries.to(dtype), queries.new_empty(len(queries), len(gallery), dtype=dtype)
    for start in range(0, len(gallery), GALLERY_ROWS):
        part = gallery[start : start + GALLERY_ROWS].to(queries)
        similarity[:, start : start + len(part)] = queries @ part.T
    return similarity


def _ranks_in_row(row: Tensor, images: Tensor) -> Tensor:
    """Ranks ``[t]`` of t images in one query's similarities ``[N]``: counted against the levels that they lie on."""
    levels = row[images].unique()  # increasing, at most t
    below = torch.searchsorted(levels, row)  # [N], levels strictly below each image
    counts = below.bincount(minlength=len(levels) + 1)
    above = counts.flip(0).cumsum(0).flip(0)[1:]  # [levels], images strictly above each level
    tied = (torch.searchsorted(levels, row, right=True) > below).nonzero().flatten()  # images on a level, in order
    keys = (below[tied] * len(row) + tied).sort().values  # by level, then by position
    level = below[images]
    before = torch.searchsorted(keys, level * len(row) + images) - torch.searchsorted(keys, level * len(row))
    return above[level] + before
