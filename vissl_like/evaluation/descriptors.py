"""What retrieval and copy detection share: descriptors of listed images, and ground truth without unreadable ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn import functional

from vissl_like.evaluation.base import Features
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.subjects import Source
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError


def further_images(bench: Bench, path: str) -> Source:
    """Images that a whitening is learnt on: a folder or a list, as the network wants them.

    Raises:
        UserError: nothing is there, or nothing that can be told to be images.
    """
    look = bench.look
    dataset = DATASETS.get("auto")(path=path, channels=look.channels, mean=list(look.mean), std=list(look.std))
    return Source(dataset)


def unit_rows(features: Tensor, bench: Bench, database: Features) -> Tensor:
    """Rows of length 1, so that inner products are cosines.

    Pixels come without the mean image of the database, which makes them the stronger floor.

    Args:
        features: ``[n, F]``.
        bench: says whether they are pixels.
        database: all features that are searched.
    """
    if bench.subject.pixels:
        features = features - database.features.mean(dim=0)
    return functional.normalize(features.float(), dim=1)


def row_table(features: Features) -> dict[int, int]:
    """Row of each image that was read, by its position in the list."""
    return {image: row for row, image in enumerate(features.indices.tolist())}


def rows_at(positions: Iterable[int], table: dict[int, int]) -> list[int]:
    """Rows of the images at some positions; those that could not be read have none."""
    return [table[int(position)] for position in positions if int(position) in table]


def whole_set(image_size: int, fit: str) -> dict[str, Any]:
    """Changes of the protocol that bring all images of a list in one size, whatever EVALUATE says of others."""
    return {"image_size": image_size, "resize": None, "fit": fit, "max_images": None}


def unread_notices(skipped: int, lost: int, what: str) -> list[str]:
    """What to say of images that could not be read.

    Args:
        skipped: how many of the database.
        lost: how often they would have been right answers.
        what: what the database is called.
    """
    if not skipped:
        return []
    return [
        f"{skipped} unreadable image(s) of the {what} are left out; {lost} right answer(s) of the ground truth are "
        "among them and not counted as missed"
    ]


def common_notices(bench: Bench) -> list[str]:
    """What to say of settings that do not act here."""
    if bench.protocol.max_images is None:
        return []
    return ["EVALUATE.max_images is not applied to images that the ground truth counts on, only to those of whiten_on"]


def refuse_pixels(bench: Bench) -> None:
    """Pixels can be compared only if all images have the same size.

    Raises:
        UserError: the subject is pixels.
    """
    if bench.subject.pixels:
        raise UserError(
            "raw pixels can be compared only if all images have one shape: set config.EVALUATION.fit=squash, or leave "
            "them out (config.EVALUATE.floors=false)"
        )
