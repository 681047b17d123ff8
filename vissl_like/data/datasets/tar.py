"""Images in tar archives, as webdataset makes them or plain."""

from __future__ import annotations

import glob
import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from PIL import Image

from vissl_like.data.datasets.base import MAX_PIXELS, UnreadableImage
from vissl_like.data.datasets.file_list import LARGEST_NUMBER
from vissl_like.data.decode import EXTENSIONS, bytes_pixels, decode_bytes, read_header_bytes
from vissl_like.data.index_cache import kept_or_built, key_of
from vissl_like.data.sources import StoredImages, existing_path
from vissl_like.data.tar_scan import TarIndex, printable, scan_archives
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count

MAX_BYTES = 256 * 1024**2
_MOST_ARCHIVES = 10**6
_OPEN_AT_ONCE = 64
_opening = threading.Lock()
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


@DATASETS.register("tar")
class TarImages(StoredImages):
    """Images in ``.tar`` archives, in webdataset format or plain, read in place: nothing is extracted.

    The headers are read once and the place of every image is kept on disk (see ``docs/scale.md``); after that any image
    is one read at a known offset, so that sampling and resuming work as with files. A sample is what shares a name up
    to the first dot: ``0007.jpg`` and its class, a whole number in ``0007.cls`` or in ``0007.json``. Of a second image
    of the same name, an empty one, or an archive damaged from some byte on, ``skipped`` tells.

    Options:
        path: an archive, a folder of them, a ``.txt`` list (a path a line), or a pattern with ``*``, ``?`` and braces
            such as ``shards/{000..099}.tar`` or ``{train,extra}-*.tar``; archives in the order named, those of a folder
            or of a ``*`` sorted. Compressed archives cannot be read in place.
        labels: ``auto`` for those of the archives, if they have any; ``none`` to leave them out.
        json_key: entry of every sample's ``.json`` that is its class, where it has no ``.cls``; null leaves ``.json``
            unread.
        channels: 3 for colour, 1 for grey; every image is converted.
        mean: one value per channel in 0..1; null for ImageNet's (colour) or 0.5 (grey).
        std: one value per channel in 0..1; null for ImageNet's (colour) or 0.25 (grey).
        limit: use this many images, evenly spread over all and always the same ones; null for all.
        max_pixels: images of more pixels than this (width times height) are refused unread.
        max_bytes: members of more bytes than this are refused unread.
        cache: ``ram`` keeps decoded images in memory, up to 2 GiB in every process; ``none`` decodes each time.

    Raises:
        UserError: no such archives (all missing ones reported together); no images in them; none that can be read;
            labels of some images only, or that are no whole numbers from 0 to 65535.
    """

    thread_safe = True

    def __init__(
        self,
        *,
        path: str,
        labels: Literal["auto", "none"] = "auto",
        json_key: str | None = None,
        channels: Literal[1, 3] = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        limit: Count | None = None,
        max_pixels: Count = MAX_PIXELS,
        max_bytes: Count = MAX_BYTES,
        cache: Literal["none", "ram"] = "none",
    ):
        if labels not in ("auto", "none"):
            raise UserError(f"labels is {labels!r}; it can be 'auto' or 'none'")
        self.index = _indexed(archives_of(path), json_key)
        if not len(self.index):
            raise UserError(_nothing_in(path, self.index))
        super().__init__(
            len(self.index),
            _labels(path, self.index) if labels == "auto" else None,
            None,
            channels=channels,
            mean=mean,
            std=std,
            limit=limit,
            cache=cache,
        )
        self.with_labels = self.labels is not None
        self.max_pixels, self.max_bytes = max_pixels, max_bytes
        self.skipped = self.index.skipped
        self._open: OrderedDict[int, _Archive] = OrderedDict()
        self.require_an_image()

    def load(self, position: int) -> Image.Image:
        return decode_bytes(self._bytes(position), self.name_of(position), self.channels, self.max_pixels)

    def load_pixels(self, position: int) -> np.ndarray:
        """See ``StoredImages``."""
        return bytes_pixels(self._bytes(position), self.name_of(position), self.channels, self.max_pixels)

    def name_of(self, position: int) -> str:
        archive = self.index.archives[self.index.archive_of(position)]
        return f"{archive}:{printable(self.index.names[position])}"

    def source_file(self, index: int) -> str:
        """See ``ImageDataset``: the archive."""
        return str(self.index.archives[self.index.archive_of(self._position(index))])

    def header_of(self, position: int) -> tuple[str, tuple[int, int]]:
        return read_header_bytes(self._bytes(position), self.name_of(position), self.max_pixels)

    def _bytes(self, position: int) -> bytes:
        offset, size = self.index.places[position].tolist()
        if size > self.max_bytes:
            raise UnreadableImage(
                self.name_of(position), f"{size} bytes are more than the limit max_bytes = {self.max_bytes}"
            )
        try:
            archive = self._archive(self.index.archive_of(position))
            data = os.pread(archive.descriptor, size, offset)
        except OSError as error:
            raise UnreadableImage(self.name_of(position), error.strerror or str(error)) from error
        if len(data) < size:
            raise UnreadableImage(self.name_of(position), "the archive is shorter than when it was indexed")
        return data

    def _archive(self, number: int) -> _Archive:
        """The open archive; the ones not used for longest are let go. Reads at offsets share no state."""
        with _opening:
            if number in self._open:
                self._open.move_to_end(number)
            else:
                self._open[number] = _Archive(self.index.archives[number])
                if len(self._open) > _OPEN_AT_ONCE:
                    self._open.popitem(last=False)
            return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        # Labels that are those of the index are mapped again with it, not copied to every worker.
        labels = None if self.labels is self.index.labels else self.labels
        return {**self.__dict__, "_open": OrderedDict(), "labels": labels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.with_labels and self.labels is None:
            self.labels = self.index.labels


class _Archive:
    """An open file, which closes when the last thread that reads it has let go of it."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def archives_of(path: str) -> list[str]:
    """The archives that a path, a folder, a list or a pattern names, as absolute paths, each once.

    Raises:
        UserError: there are none, some do not exist, or a pattern in braces names more than a million.
    """
    if not os.path.lexists(os.path.expanduser(path)) and re.search(r"[*?{[]", path):
        found = []
        for pattern in _without_braces(path):
            matches = sorted(glob.glob(os.path.expanduser(pattern))) if glob.has_magic(pattern) else [pattern]
            if not matches:
                raise UserError(f"no file matches {pattern!r}. Relative paths count from {os.getcwd()!r}.")
            found += matches
    else:
        place = existing_path(path)
        if os.path.isdir(place):
            found = [os.path.join(place, name) for name in sorted(os.listdir(place)) if name.lower().endswith(".tar")]
        elif place.lower().endswith(".txt"):
            with open(place, encoding="utf-8", errors="surrogateescape") as lines:
                found = [os.path.join(os.path.dirname(place), line.strip()) for line in lines if line.strip()]
        else:
            found = [place]
        if not found:
            raise UserError(f"{path!r} names no archives: a folder holds .tar files, a list has a path a line")
    absolute = list(dict.fromkeys(os.path.abspath(os.path.expanduser(archive)) for archive in found))
    missing = [archive for archive in absolute if not os.path.isfile(archive)]
    if missing:
        listing = "\n".join(f"  {archive}" for archive in missing[:10]) + ("\n  ..." if len(missing) > 10 else "")
        raise UserError(f"{len(missing)} of the {len(absolute)} archives of {path!r} do not exist:\n{listing}")
    return absolute


def _without_braces(pattern: str) -> Iterator[str]:
    """``a{1,2}{00..02}`` as ``a100``, ``a101``, ...: alternatives, and numbers as wide as the first is written."""
    parts: list[list[str]] = []
    begin, total = 0, 1
    for match in _BRACES.finditer(pattern):
        numbers = _NUMBERS.fullmatch(match[1])
        low, high = (int(numbers[1]), int(numbers[2])) if numbers else (0, match[1].count(","))
        total *= max(0, high - low + 1)
        if not 1 <= total <= _MOST_ARCHIVES:
            raise UserError(f"the pattern {pattern!r} names {total} archives; it can be 1 to {_MOST_ARCHIVES}")
        width = len(numbers[1]) if numbers else 0
        choices = [f"{number:0{width}d}" for number in range(low, high + 1)] if numbers else match[1].split(",")
        parts += [[pattern[begin : match.start()]], choices]
        begin = match.end()
    return ("".join(chosen) for chosen in itertools.product(*parts, [pattern[begin:]]))


def _indexed(archives: list[str], json_key: str | None) -> TarIndex:
    """The index kept for these archives, or a new one."""
    facts = [os.stat(archive) for archive in archives]
    stamps = [(status.st_mtime_ns, status.st_size) for status in facts]
    identity = [part for archive, stamp in zip(archives, stamps, strict=True) for part in (archive, *stamp)]
    return kept_or_built(
        key_of("tar", json_key or "", *EXTENSIONS, *identity),
        load=TarIndex.load,
        is_current=lambda _: True,  # the key changes with the archives
        build=lambda: scan_archives(archives, json_key),
        newest_change=lambda _: max(modified for modified, _ in stamps),
    )


def _labels(path: str, index: TarIndex) -> np.ndarray | None:
    if index.labels is None:
        return None
    if index.num_labelled < len(index):
        raise UserError(
            f"{index.num_labelled} of the {len(index)} images of {path!r} have a class; it must be all or none. Mend "
            "the archives, or set 'labels' to 'none'."
        )
    if index.num_bad or int(index.labels.max()) > LARGEST_NUMBER:
        raise UserError(
            f"classes of {path!r} must be whole numbers from 0 to {LARGEST_NUMBER}, and {index.num_bad} of "
            f"{len(index)} are no whole numbers, the largest of the others being {int(index.labels.max())}. Mend them, "
            "or set 'labels' to 'none'."
        )
    return index.labels


def _nothing_in(path: str, index: TarIndex) -> str:
    lines = [f"there are no images in {path!r} ({len(index.archives)} archive(s) read)."]
    if index.others:
        found = ", ".join(f"{count} {ending}" for ending, count in list(index.others.items())[:8])
        lines.append(f"Other members there: {found}.")
    if index.skipped:
        lines.append(f"Skipped: {len(index.skipped)}, such as {index.skipped[0].path} ({index.skipped[0].reason}).")
    lines.append(f"Endings tried: {' '.join(EXTENSIONS)}.")
    return " ".join(lines)
