"""Images in a folder, flat or nested."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from vissl_like.data.datasets.base import MAX_PIXELS
from vissl_like.data.decode import EXTENSIONS
from vissl_like.data.index_cache import kept_or_built, key_of
from vissl_like.data.scan import FolderScan, scan_folder
from vissl_like.data.sources import FileImages, existing_path
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count


@DATASETS.register("folder")
class FolderImages(FileImages):
    """Images in a folder and all folders below it; class folders give labels, and none are needed.

    Options:
        path: the folder. Hidden entries are left alone, links followed once, files of zero bytes skipped and listed.
        labels: ``none``; ``folders``: the sub-folder of ``path`` that an image is under (at any depth) is its class, by
            sorted name; ``auto``: the same where every image lies directly in a sub-folder and there are at least two,
            else none.
        channels: 3 for colour, 1 for grey; every image is converted.
        mean: one value per channel in 0..1; null for ImageNet's (colour) or 0.5 (grey).
        std: one value per channel in 0..1; null for ImageNet's (colour) or 0.25 (grey).
        limit: use this many images, evenly spread over all and always the same ones; null for all.
        max_pixels: images of more pixels than this (width times height) are refused unread.
        cache: ``ram`` keeps decoded images in memory, up to 2 GiB in every process; ``none`` decodes each time.

    Raises:
        UserError: no such folder; no images in it; none that can be read; labels wanted where images lie in no
            sub-folder.
    """

    def __init__(
        self,
        *,
        path: str,
        labels: Literal["auto", "none", "folders"] = "auto",
        channels: Literal[1, 3] = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        limit: Count | None = None,
        max_pixels: Count = MAX_PIXELS,
        cache: Literal["none", "ram"] = "none",
    ):
        root = existing_path(path)
        if not os.path.isdir(root):
            raise UserError(
                f"{path!r} is a file, and the dataset 'folder' needs a folder. Use the dataset 'auto' for files."
            )
        scan = _scan(root)
        if not len(scan.paths):
            raise UserError(_nothing_in(path, scan))
        super().__init__(
            scan.paths,
            root,
            *_labels(path, scan, labels),
            channels=channels,
            mean=mean,
            std=std,
            limit=limit,
            max_pixels=max_pixels,
            cache=cache,
        )
        self.skipped = scan.skipped


def _scan(root: str) -> FolderScan:
    try:
        return kept_or_built(
            key_of("folder", os.path.realpath(root), *EXTENSIONS),
            load=FolderScan.load,
            is_current=lambda scan: scan.is_current(root),
            build=lambda: scan_folder(root),
            newest_change=lambda scan: int(scan.modified.max()),
        )
    except OSError as error:
        raise UserError(f"the folder {root!r} cannot be read: {error.strerror}") from error


def _labels(path: str, scan: FolderScan, wanted: str) -> tuple[np.ndarray | None, list[str] | None]:
    if wanted not in ("auto", "none", "folders"):
        raise UserError(f"labels is {wanted!r}; it can be 'auto', 'none' or 'folders'")
    if wanted == "none" or (wanted == "auto" and not (scan.one_level and len(scan.tops) >= 2)):
        return None, None
    if (scan.top < 0).any():
        raise UserError(
            f"labels is 'folders', but {int((scan.top < 0).sum())} of {len(scan.top)} images lie directly in {path!r}, "
            "in no class folder. Move them, or set labels to 'none'."
        )
    return scan.top, scan.tops


def _nothing_in(path: str, scan: FolderScan) -> str:
    lines = [f"there are no images in {path!r} ({len(scan.directories)} folder(s) searched)."]
    if scan.others:
        found = ", ".join(f"{count} {ending}" for ending, count in list(scan.others.items())[:8])
        lines.append(f"Other files there: {found}.")
    if scan.skipped:
        lines.append(f"Skipped: {len(scan.skipped)}, such as {scan.skipped[0].path} ({scan.skipped[0].reason}).")
    lines.append(f"Endings tried: {' '.join(EXTENSIONS)}.")
    return " ".join(lines)
