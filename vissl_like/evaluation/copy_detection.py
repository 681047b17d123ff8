"""Copy detection on Copydays (Douze et al. 2009; protocol of DINO's script)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vissl_like.data.readers.copydays import CopySet, read_copydays
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Evaluation, EvaluationResult, Features
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.descriptors import (
    common_notices,
    further_images,
    row_table,
    rows_at,
    unit_rows,
    unread_notices,
    whole_set,
)
from vissl_like.evaluation.functional.pooling import CopyDetectionWhitening, gem
from vissl_like.evaluation.functional.retrieval import RetrievalScores, score_copies
from vissl_like.evaluation.store import cache_key
from vissl_like.evaluation.subjects import OUTPUT, Encoding, Source
from vissl_like.records import Skipped
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count

EXPONENT = 4
"""Of GeM over the patch tokens or the feature map."""
LIMIT = 20
"""Images of a ranking that are looked at."""
STRONG = "strong"


def describe(trunk: nn.Module, images: Tensor) -> Tensor:
    """Class token and GeM of the patch tokens (after the last norm) of a transformer, or GeM of a convolutional map.

    Networks that offer neither tokens nor a map give their output.

    Args:
        trunk: in eval mode.
        images: ``[n, C, H, W]``, normalised.

    Returns:
        ``[n, 2 d]``, ``[n, F]`` or ``[n, feature_dim]``, of any length.
    """
    if hasattr(trunk, "intermediate_layers"):
        tokens = trunk.intermediate_layers(images, 1)[0]  # type: ignore[operator]  # [n, 1 + patches, d]
        return torch.cat([tokens[:, 0].float(), gem(tokens[:, 1:], EXPONENT)], dim=1)
    if hasattr(trunk, "forward_map"):
        return gem(trunk.forward_map(images), EXPONENT)  # type: ignore[operator]
    return trunk(images)


CLS_GEM = Encoding(f"class token and GeM {EXPONENT}", describe)


@dataclass
class Blocks:
    """What was scored: scores and rows of each block.

    Attributes:
        scores: by name of the block.
        indices: positions of the queries that were read, by name of the block.
        skipped: queries that could not be read.
        lost: right answers that could not be read.
    """

    scores: dict[str, RetrievalScores] = field(default_factory=dict)
    indices: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    lost: int = 0


@EVALUATIONS.register("copy_detection")
class CopyDetectionEvaluation(Evaluation):
    """Finds the originals of changed copies: mean average precision of each block, strong being the one that counts.

    Images are squares, whatever their shape was. Only the first 20 images of a ranking are looked at. Without a strong
    block the last block counts.

    Options:
        path: folder that holds original/ and at least one of strong/, jpegqual/<quality>/, crops/<percent>/
        image_size: side of the square that every image becomes, in pixels
        blocks: names such as strong or crops/80; null for all that are there
        pooling: cls_gem is DINO's descriptor, the class token beside GeM (p = 4) of the patch tokens, or GeM of a
            convolutional map; output takes the features as for every other evaluation
        whiten_on: folder or list of further images that a whitening is learnt on (20,000 in DINO's script); null for
            none; raw pixels are never whitened
        distractors: search distractors/ too, where it is there; false searches the originals alone
    """

    pixels = True

    def __init__(
        self,
        *,
        path: str,
        image_size: Count = 320,
        blocks: list[str] | None = None,
        pooling: Literal["cls_gem", "output"] = "cls_gem",
        whiten_on: str | None = None,
        distractors: bool = True,
    ):
        if blocks is not None and not blocks:
            raise UserError("EVALUATION.blocks is empty; name at least one, such as strong, or give null for all")
        self.path, self.image_size, self.blocks, self.pooling = path, image_size, blocks, pooling
        self.whiten_on, self.distractors = whiten_on, distractors

    @cached_property
    def copies(self) -> CopySet:
        """The files, listed when first asked for."""
        return read_copydays(self.path, blocks=self.blocks)

    @property
    def main_block(self) -> str:
        """The block that counts."""
        return STRONG if STRONG in self.copies.blocks else list(self.copies.blocks)[-1]

    def run(self, bench: Bench) -> EvaluationResult | None:
        """See ``Evaluation``.

        Raises:
            UserError: files are missing or wrong, or no original of the block that counts can be read.
        """
        database_source = self._database(bench)
        sources = {name: self._block(bench, name) for name in self.copies.blocks}
        bench.require_room(database_source, *sources.values(), image_size=self.image_size)
        changes = {**whole_set(self.image_size, "squash"), "interpolation": "bicubic"}
        encoding = CLS_GEM if self.pooling == "cls_gem" and not bench.subject.pixels else OUTPUT
        database = bench.features(database_source, encoding, **changes)
        blocks = {name: bench.features(source, encoding, **changes) for name, source in sources.items()}
        further = None
        if self.whiten_on is not None and not bench.subject.pixels:
            changes["max_images"] = bench.protocol.max_images
            further = bench.features(further_images(bench, self.whiten_on), encoding, **changes)
        if not comm.is_main():
            return None
        found = self._score(bench, database, blocks, further)
        return self._result(bench, database, found, further)

    def identity(self, bench: Bench) -> str:
        """The images, whose copies they are, and what the whitening is learnt on."""
        facts = {
            "database": self._database(bench).identity,
            "blocks": {name: self._block(bench, name).identity for name in self.copies.blocks},
            "truth": {name: [row.tolist() for row in block.positives] for name, block in self.copies.blocks.items()},
            "whitening": None if self.whiten_on is None else further_images(bench, self.whiten_on).identity,
        }
        return cache_key(facts)

    def typical_images(self) -> list[str]:
        """See ``Evaluation``: the database."""
        return self.copies.database

    def _database(self, bench: Bench) -> Source:
        return bench.images(self.copies.database if self.distractors else self.copies.originals)

    def _block(self, bench: Bench, name: str) -> Source:
        return bench.images(self.copies.blocks[name].queries)

    def _score(self, bench: Bench, database: Features, blocks: dict[str, Features], further: Features | None) -> Blocks:
        """Whitened if that is wanted, then compared by cosine."""
        whitening = None if further is None else CopyDetectionWhitening.learn(further.features)

        def finish(features: Tensor) -> Tensor:
            return unit_rows(features, bench, database) if whitening is None else whitening.apply(features)

        searched, table, found = finish(database.features), row_table(database), Blocks()
        for name, queries in blocks.items():
            numbers = queries.indices.tolist()
            right = [self.copies.blocks[name].positives[number] for number in numbers]
            readable = [rows_at(positions, table) for positions in right]
            found.lost += sum(map(len, right)) - sum(map(len, readable))
            found.scores[name] = score_copies(finish(queries.features), searched, readable, limit=LIMIT)
            found.indices[name] = queries.indices.numpy()
            found.skipped += queries.skipped
        return found

    def _result(self, bench: Bench, database: Features, found: Blocks, further: Features | None) -> EvaluationResult:
        main = self.main_block
        if not found.scores[main].counted:
            raise UserError(
                f"no original of the queries of {main!r} in {self.path!r} can be read, so there is nothing to be found"
            )
        values = found.scores[main].average_precision.numpy()
        counted = ~np.isnan(values)
        return EvaluationResult(
            "copy_detection",
            {
                metric_of(name): 100 * scores.mean_average_precision
                for name, scores in found.scores.items()
                if scores.counted
            },
            details={**self._details(bench, database, found), "notices": self._notices(bench, database, found)},
            main=metric_of(main),
            items=100.0 * values[counted],
            item_ids=found.indices[main][counted],
            train_images=0 if further is None else len(further),
            test_images=int(counted.sum()),
            skipped=[*database.skipped, *found.skipped, *([] if further is None else further.skipped)],
        )

    def _details(self, bench: Bench, database: Features, found: Blocks) -> dict[str, Any]:
        originals = int((database.indices < len(self.copies.originals)).sum())
        return {
            "image_size": self.image_size,
            "fit": "squash",
            "pooling": self._pooling(bench),
            "whiten_on": None if bench.subject.pixels else self.whiten_on,
            "originals": originals,
            "distractors": len(database) - originals,
            "ranks_looked_at": LIMIT,
            "counted_queries": {name: scores.counted for name, scores in found.scores.items()},
        }

    def _notices(self, bench: Bench, database: Features, found: Blocks) -> list[str]:
        notices = common_notices(bench)
        if self.pooling == "cls_gem" and self._pooling(bench) == "output":
            notices.append("this network offers neither tokens nor a feature map: its output is taken, without GeM")
        if self.whiten_on is not None and bench.subject.pixels:
            notices.append("pixels are not whitened")
        if self.distractors and not self.copies.distractors:
            notices.append("there are no distractors; published numbers search 10,000 besides the originals")
        if self.main_block != STRONG:
            notices.append(f"{self.path} has no strong block among those measured: {self.main_block} counts")
        notices += [f"no query of {name} has an original that can be read" for name in _uncounted(found.scores)]
        if found.skipped:
            notices.append(f"{len(found.skipped)} unreadable query image(s) are left out")
        return notices + unread_notices(len(database.skipped), found.lost, "database")

    def _pooling(self, bench: Bench) -> str:
        """What the descriptor is."""
        if bench.subject.network is None:
            return "pixels"
        network = bench.subject.network() if self.pooling == "cls_gem" else None
        if hasattr(network, "intermediate_layers"):
            return f"class token and GeM {EXPONENT}"
        return f"GeM {EXPONENT}" if hasattr(network, "forward_map") else "output"


def metric_of(block: str) -> str:
    """Name of a block's metric, such as ``map_crops_80``."""
    return "map_" + block.replace("/", "_")


def _uncounted(scores: dict[str, RetrievalScores]) -> list[str]:
    return [name for name, found in scores.items() if not found.counted]
