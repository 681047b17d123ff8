"""The right dataset for a path."""

from __future__ import annotations

import os
from typing import Any, Literal

from vissl_like.data.datasets.base import MAX_PIXELS, ImageDataset
from vissl_like.data.datasets.idx import holds_idx
from vissl_like.data.decode import EXTENSIONS
from vissl_like.data.numpy_file import read_array
from vissl_like.data.sources import ACCEPTED, ARCHIVE_ENDINGS, existing_path
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count


@DATASETS.register("auto")
def auto(
    *,
    path: str,
    channels: Literal[1, 3] = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    limit: Count | None = None,
    max_pixels: Count = MAX_PIXELS,
    cache: Literal["none", "ram"] = "none",
) -> ImageDataset:
    """Whatever is at a path: a folder of images, a list, an array, IDX files or tar archives.

    Options:
        path: a folder of images (labels from class folders, if it has them), a ``.txt``, ``.csv`` or ``.npy`` list of
            paths, a ``.npy`` or ``.npz`` array of images, an IDX file or a folder of them (its training split), a
            ``.tar`` archive, a pattern that names several (``shard-{000..099}.tar``) or a folder of nothing else.
        channels: 3 for colour, 1 for grey; every image is converted.
        mean: one value per channel in 0..1; null for ImageNet's (colour) or 0.5 (grey).
        std: one value per channel in 0..1; null for ImageNet's (colour) or 0.25 (grey).
        limit: use this many images, evenly spread over all and always the same ones; null for all.
        max_pixels: image files of more pixels than this (width times height) are refused unread.
        cache: ``ram`` keeps decoded images in memory, up to 2 GiB in every process; ``none`` decodes each time.

    Raises:
        UserError: nothing is there, or nothing that can be told to be images; and what the chosen dataset raises.
    """
    name = kind_of(path)
    options: dict[str, Any] = {"channels": channels, "mean": mean, "std": std, "limit": limit, "cache": cache}
    if name in ("folder", "file_list", "tar"):
        options["max_pixels"] = max_pixels
    elif max_pixels != MAX_PIXELS:
        raise UserError(f"max_pixels is for image files, and {path!r} holds an array (dataset {name!r}); leave it out")
    return DATASETS.get(name)(path=path, **options)


def kind_of(path: str) -> str:
    """Name of the dataset that reads what is at a path.

    Raises:
        UserError: nothing is there, or no dataset reads it.
    """
    if path.lower().endswith(ARCHIVE_ENDINGS):
        return "tar"
    place = existing_path(path)
    if os.path.isdir(place):
        return "idx" if holds_idx(place) else "tar" if _holds_archives(place) else "folder"
    name = os.path.basename(place).lower()
    ending = os.path.splitext(name)[1]
    if ending in (".txt", ".csv"):
        return "file_list"
    if ending == ".npy":
        return "file_list" if _is_text(place) else "array"
    if ending == ".npz":
        return "array"
    if "idx3-ubyte" in name:
        return "idx"
    if ending in EXTENSIONS:
        raise UserError(
            f"{path!r} is a single image; give the folder it is in, {os.path.dirname(place)!r}, or a list of paths"
        )
    raise UserError(f"{path!r} is not a source of images that is known here. Accepted: {ACCEPTED}.")


def _holds_archives(folder: str) -> bool:
    """Whether there are tar archives directly in a folder, and neither images nor folders beside them."""
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.lower()
            if not name.startswith(".") and (name.endswith(EXTENSIONS) or entry.is_dir()):
                return False
            found |= name.endswith(".tar")
    return found


def _is_text(file: str) -> bool:
    try:
        return read_array(file).dtype.kind in "US"
    except (ValueError, OSError) as error:
        raise UserError(f"{file!r} cannot be read as a numpy array: {error}") from error
