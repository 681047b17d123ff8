"""Images that could not be read, met by the processes of a run each on its own."""

from __future__ import annotations

from collections.abc import Iterable

from vissl_like.distributed import comm
from vissl_like.records import Skipped


def skipped_by_all(own: Iterable[Skipped]) -> list[Skipped]:
    """The different images that any process could not read, in the order of the processes; every process calls it."""
    found = {item.path: item for part in comm.all_gather_object(list(own)) for item in part}
    return list(found.values())


def readable(files: Iterable[str], skipped: Iterable[Skipped]) -> int:
    """How many of some files are left when those skipped are not counted."""
    missing = {item.path for item in skipped}
    return sum(file not in missing for file in files)
