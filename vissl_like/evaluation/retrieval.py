"""Revisited Oxford and Paris (Radenovic et al. 2018, arXiv:1803.11285), and sets in the same form."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from vissl_like.data.readers.retrieval import RetrievalSet, read_retrieval
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Evaluation, EvaluationResult, Features
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.descriptors import (
    common_notices,
    further_images,
    refuse_pixels,
    row_table,
    rows_at,
    unit_rows,
    unread_notices,
    whole_set,
)
from vissl_like.evaluation.functional.pooling import PcaWhitening, multi_scale
from vissl_like.evaluation.functional.retrieval import QueryTruth, RetrievalScores, score_protocols
from vissl_like.evaluation.store import cache_key
from vissl_like.evaluation.subjects import OUTPUT, Encoding, Source
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Positive

DEFAULT_SCALES = [1.0]
KS = (1, 5, 10)
MAIN = "medium"


@EVALUATIONS.register("retrieval")
class RetrievalEvaluation(Evaluation):
    """Image retrieval by cosine similarity: mean average precision of the easy, medium and hard protocols.

    Junk images are taken out of each ranking. Precision among the first 1, 5 and 10, and how often the first image is
    right (recall at 1), are those of the medium protocol, and so are the values of each query. Queries without a right
    answer under a protocol do not count there.

    Options:
        path: gnd.json (imlist, qimlist, gnd with easy, hard, junk, bbx), or the folder that holds it
        images: folder of the images; null for jpg beside gnd.json
        image_size: longest side in pixels (never enlarged), or side of the square with fit squash
        fit: longest keeps the shape, one image at a time; squash makes squares, so that raw pixels can be compared too
        scales: factors of the image's sides; descriptors are averaged over them ([1, 0.7071, 0.5] in DINO)
        crop_queries: show the box of each query only (the standard protocol, VISSL); false shows queries whole (DINO)
        whiten: dimensions that PCA-whitening leaves; null for none; raw pixels are never whitened
        whiten_on: folder or list of other images that it is learnt on; null for the gallery itself
    """

    def __init__(
        self,
        *,
        path: str,
        images: str | None = None,
        image_size: Count = 1024,
        fit: Literal["longest", "squash"] = "longest",
        scales: list[Positive] = DEFAULT_SCALES,
        crop_queries: bool = True,
        whiten: Count | None = None,
        whiten_on: str | None = None,
    ):
        if not scales:
            raise UserError("EVALUATION.scales is empty; give at least one factor, such as [1.0]")
        if whiten_on is not None and whiten is None:
            raise UserError(
                f"EVALUATION.whiten_on names images ({whiten_on}), but nothing is whitened: set EVALUATION.whiten to a "
                "number of dimensions, or leave whiten_on out"
            )
        self.path, self.images, self.image_size, self.fit = path, images, image_size, fit
        self.scales, self.crop_queries, self.whiten, self.whiten_on = list(scales), crop_queries, whiten, whiten_on
        self.pixels = fit == "squash"

    @cached_property
    def truth(self) -> RetrievalSet:
        """The ground truth, read when first asked for."""
        return read_retrieval(self.path, self.images)

    def run(self, bench: Bench) -> EvaluationResult | None:
        """See ``Evaluation``.

        Raises:
            UserError: files are missing or wrong; no query has a right answer; pixels of different shapes; whitening
                to more dimensions than there can be.
        """
        if not self.pixels:
            refuse_pixels(bench)
        gallery_source, query_source = self._gallery(bench), self._queries(bench)
        bench.require_room(gallery_source, query_source, image_size=self.image_size)
        encoding, changes = self._encoding(bench), whole_set(self.image_size, self.fit)
        gallery = bench.features(gallery_source, encoding, **changes)
        queries = bench.features(query_source, encoding, **changes)
        further = None
        if self.whiten_on is not None and not bench.subject.pixels:
            changes["max_images"] = bench.protocol.max_images
            further = bench.features(further_images(bench, self.whiten_on), encoding, **changes)
        if not comm.is_main():
            return None
        return self._scored(bench, gallery, queries, further)

    def identity(self, bench: Bench) -> str:
        """The images, the boxes shown, who is right for what, and what the whitening is learnt on."""
        facts = {
            "gallery": self._gallery(bench).identity,
            "queries": self._queries(bench).identity,
            "truth": [[group.tolist() for group in (q.easy, q.hard, q.junk)] for q in self.truth.queries],
            "whitening": None if self.whiten_on is None else further_images(bench, self.whiten_on).identity,
        }
        return cache_key(facts)

    def typical_images(self) -> list[str]:
        """See ``Evaluation``: the gallery."""
        return self.truth.database

    def _gallery(self, bench: Bench) -> Source:
        return bench.images(self.truth.database)

    def _queries(self, bench: Bench) -> Source:
        queries = self.truth.queries
        boxes = [query.box for query in queries] if self.crop_queries else None
        return bench.images([query.image for query in queries], boxes=boxes)

    def _encoding(self, bench: Bench) -> Encoding:
        """Pixels and single images as they are; else the mean over scales."""
        if bench.subject.pixels or self.scales == [1.0]:
            return OUTPUT
        return Encoding(f"output, mean over scales {self.scales}", partial(_over_scales, self.scales))

    def _scored(self, bench: Bench, gallery: Features, queries: Features, further: Features | None) -> EvaluationResult:
        finish = self._finisher(bench, gallery, further)
        truths, lost = self._readable_truths(gallery, queries)
        scores = score_protocols(finish(queries.features), finish(gallery.features), truths, ks=KS)
        if not scores[MAIN].counted:
            raise UserError(
                f"no query of {self.path!r} has an image that is easy or hard and can be read, so there is nothing to "
                "be found"
            )
        values = scores[MAIN].average_precision.numpy()
        counted = ~np.isnan(values)
        whitened = self.whiten is not None and not bench.subject.pixels
        notices = self._notices(bench, scores) + unread_notices(len(gallery.skipped), lost, "gallery")
        if queries.skipped:
            notices.append(f"{len(queries.skipped)} unreadable query image(s) are left out")
        return EvaluationResult(
            "retrieval",
            _metrics(scores),
            details={**self._details(whitened, len(gallery), scores), "notices": notices},
            main=f"map_{MAIN}",
            items=100.0 * values[counted],
            item_ids=queries.indices.numpy()[counted],
            train_images=0 if not whitened else len(gallery if further is None else further),
            test_images=int(counted.sum()),
            skipped=[*gallery.skipped, *queries.skipped, *([] if further is None else further.skipped)],
        )

    def _finisher(self, bench: Bench, gallery: Features, further: Features | None) -> Callable[[Tensor], Tensor]:
        """From features to what is compared."""
        if self.whiten is None or bench.subject.pixels:
            return lambda features: unit_rows(features, bench, gallery)
        source = gallery if further is None else further
        whitening = PcaWhitening.learn(unit_rows(source.features, bench, gallery), self.whiten)
        return lambda features: whitening.apply(unit_rows(features, bench, gallery))

    def _readable_truths(self, gallery: Features, queries: Features) -> tuple[list[QueryTruth], int]:
        """Ground truth of the queries that were read, in rows of the gallery; and right answers that were not read."""
        table, truths, lost = row_table(gallery), [], 0
        for number in queries.indices.tolist():
            query = self.truth.queries[number]
            easy, hard, junk = (rows_at(group, table) for group in (query.easy, query.hard, query.junk))
            lost += len(query.easy) + len(query.hard) - len(easy) - len(hard)
            truths.append(QueryTruth(easy, hard, junk))
        return truths, lost

    def _details(self, whitened: bool, gallery: int, scores: dict[str, RetrievalScores]) -> dict[str, Any]:
        boxes = self.crop_queries and any(query.box is not None for query in self.truth.queries)
        return {
            "image_size": self.image_size,
            "fit": self.fit,
            "scales": self.scales,
            "queries": "cropped to their boxes" if boxes else "whole images",
            "whiten": self.whiten if whitened else None,
            "whiten_on": (self.whiten_on or "the gallery") if whitened else None,
            "gallery_images": gallery,
            "counted_queries": {name: found.counted for name, found in scores.items()},
        }

    def _notices(self, bench: Bench, scores: dict[str, RetrievalScores]) -> list[str]:
        notices = common_notices(bench)
        boxes = [query.box is not None for query in self.truth.queries]
        if not self.crop_queries and any(boxes):
            notices.append(
                "queries are shown whole; the standard protocol crops them to their boxes (EVALUATION.crop_queries)"
            )
        if self.crop_queries and not all(boxes):
            notices.append(f"{boxes.count(False)} of {len(boxes)} queries have no box and are shown whole")
        if self.whiten is not None and bench.subject.pixels:
            notices.append("pixels are not whitened")
        elif self.whiten is not None and self.whiten_on is None:
            notices.append(
                "whitening is learnt on the gallery itself; published numbers learn it on other images "
                "(EVALUATION.whiten_on)"
            )
        notices += [f"no query counts under the {name} protocol" for name in scores if not scores[name].counted]
        themselves = self._finding_themselves()
        if themselves:
            notices.append(
                f"{themselves} queries are images of the gallery that are not junk, and so find themselves first"
            )
        return notices

    def _finding_themselves(self) -> int:
        """Queries whose own file is in the gallery without being junk."""
        place = {file: position for position, file in enumerate(self.truth.database)}
        return sum(query.image in place and place[query.image] not in query.junk for query in self.truth.queries)


def _over_scales(scales: list[float], trunk: nn.Module, images: Tensor) -> Tensor:
    return multi_scale(trunk, images, scales)


def _metrics(scores: dict[str, RetrievalScores]) -> dict[str, float]:
    """Percentages; a protocol under which no query counts has none."""
    found = {f"map_{name}": 100 * part.mean_average_precision for name, part in scores.items() if part.counted}
    found |= {f"precision_at_{k}": 100 * value for k, value in scores[MAIN].precision.items()}
    return {**found, "recall_at_1": 100 * scores[MAIN].recall_at_1}
