"""Where the images of many tar archives lie: found once, kept on disk, then mapped. Nothing is ever extracted.

A sample is what shares a name up to the first dot, as webdataset has it: ``0007.jpg``, ``0007.cls``, ``0007.json``. An
archive of images alone is read as well.
"""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.data.decode import EXTENSIONS
from vissl_like.data.index import PathIndex, PathIndexBuilder, load_mapped
from vissl_like.data.tar_members import DamagedTar, Member, TarReader
from vissl_like.records import Skipped

logger = logging.getLogger(__name__)

NO_LABEL, BAD_LABEL = -1, -2
_ENDINGS = frozenset(os.fsencode(extension) for extension in EXTENSIONS)
_LARGEST_LABEL = 2**31 - 1
_LONGEST_CLASS, _LONGEST_JSON, _MOST_ENDINGS = 64, 2**20, 100


@dataclass
class TarIndex:
    """The images of some archives.

    Attributes:
        archives: S archives.
        first: ``[S + 1]`` int64; archive s holds the images first[s] ... first[s + 1] - 1.
        places: ``[N, 2]`` int64, offset and size in bytes of every image in its archive.
        names: N names of members, as stored in the archives.
        labels: ``[N]`` int64 class numbers, ``NO_LABEL`` or ``BAD_LABEL``; None where no image has one.
        num_labelled, num_bad: images with a label, and with one that is no whole number.
        skipped: members left out, and archives that could not be read to their end.
        others: number of members that are no images by their name, by ending.
        folder: where the arrays are mapped from; None where they are in memory.
    """

    archives: PathIndex
    first: np.ndarray
    places: np.ndarray
    names: PathIndex
    labels: np.ndarray | None
    num_labelled: int
    num_bad: int
    skipped: list[Skipped]
    others: dict[str, int]
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.places)

    def archive_of(self, position: int) -> int:
        """Number of the archive that holds an image."""
        return int(np.searchsorted(self.first, position, side="right")) - 1

    def save(self, folder: Path) -> None:
        """Writes the index into an existing, empty folder."""
        self.names.save(folder)
        np.save(folder / "first.npy", self.first, allow_pickle=False)
        np.save(folder / "places.npy", self.places, allow_pickle=False)
        if self.labels is not None:
            np.save(folder / "labels.npy", self.labels, allow_pickle=False)
        (folder / "archives").mkdir()
        self.archives.save(folder / "archives")
        facts = {
            "images": len(self),
            "archives": len(self.archives),
            "labels": [self.num_labelled, self.num_bad],
            "skipped": [[item.path, item.reason] for item in self.skipped],
            "others": self.others,
        }
        (folder / "tar.json").write_text(json.dumps(facts), encoding="ascii")

    @classmethod
    def load(cls, folder: Path) -> TarIndex:
        """Maps a saved index from disk.

        Raises:
            OSError, ValueError, KeyError, TypeError: it is damaged.
        """
        facts = json.loads((folder / "tar.json").read_text(encoding="ascii"))
        num_labelled, num_bad = (int(count) for count in facts["labels"])
        index = cls(
            archives=PathIndex.load(folder / "archives"),
            first=load_mapped(folder / "first.npy"),
            places=load_mapped(folder / "places.npy"),
            names=PathIndex.load(folder),
            labels=load_mapped(folder / "labels.npy") if num_labelled else None,
            num_labelled=num_labelled,
            num_bad=num_bad,
            skipped=[Skipped(str(path), str(reason)) for path, reason in facts["skipped"]],
            others={str(ending): int(count) for ending, count in dict(facts["others"]).items()},
            folder=folder,
        )
        images, archives = int(facts["images"]), int(facts["archives"])
        shapes: list[Any] = [index.places.shape, index.first.shape, len(index.names), len(index.archives)]
        if shapes != [(images, 2), (archives + 1,), images, archives]:
            raise ValueError(f"the arrays have the shapes {shapes}, not what tar.json says")
        if index.labels is not None and index.labels.shape != (images,):
            raise ValueError(f"{images} images, but labels of shape {index.labels.shape}")
        if {index.places.dtype, index.first.dtype} != {np.dtype(np.int64)} or index.first[-1] != images:
            raise ValueError("places and first must be int64, and first must end at the number of images")
        return index

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # A spawned worker maps the same files instead of receiving a copy.
        if self.folder is not None:
            return TarIndex.load, (self.folder,)
        return TarIndex, tuple(getattr(self, name.name) for name in fields(self))


def scan_archives(archives: list[str], json_key: str | None) -> TarIndex:
    """Goes through the headers of every archive, one after another.

    An archive that cannot be read to its end is named in ``skipped``; what came before the damage is used.

    Args:
        archives: files.
        json_key: entry of a sample's ``.json`` that is its class; None reads ``.cls`` alone.
    """
    scan = _Scan(json_key)
    for number, archive in enumerate(archives):
        scan.add(archive)
        if number % 1000 == 999:
            logger.info("%d of %d archives indexed, %d images", number + 1, len(archives), len(scan.names))
    return scan.finished(archives)


def printable(name: bytes | str) -> str:
    """A name from an archive for messages: control characters and what is no text are escaped."""
    text = os.fsdecode(name)
    return text if text.isprintable() else ascii(text)[1:-1]


@dataclass
class _Scan:
    json_key: str | None
    places: array[int] = field(default_factory=lambda: array("q"))
    names: PathIndexBuilder = field(default_factory=PathIndexBuilder)
    labels: array[int] = field(default_factory=lambda: array("q"))
    first: list[int] = field(default_factory=lambda: [0])
    skipped: list[Skipped] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    outside: int = 0

    def add(self, archive: str) -> None:
        shard, problem = _Shard(), None
        try:
            descriptor = os.open(archive, os.O_RDONLY)
            try:
                reader = TarReader(descriptor)
                for member in reader.members():
                    self._member(archive, reader, shard, member)
            finally:
                os.close(descriptor)
        except OSError as error:
            problem = error.strerror or str(error)
        except DamagedTar as error:
            problem = str(error)
        samples = shard.samples()
        if problem is not None:
            problem += f"; the {len(samples)} images before it are used" if samples else ""
            self._skip(archive, b"", problem)
            logger.warning("%s: %s", archive, problem)
        for member, label in samples:
            self.places.extend((member.offset, member.size))
            self.names.add(member.name)
            self.labels.append(label)
        self.first.append(len(self.names))

    def finished(self, archives: list[str]) -> TarIndex:
        # The arrays themselves, not copies: they may be large. An empty one cannot be viewed.
        places, labels = (
            np.frombuffer(kept, np.int64) if kept else np.empty(0, np.int64) for kept in (self.places, self.labels)
        )
        num_labelled = int((labels != NO_LABEL).sum())
        if self.outside:
            logger.warning(
                "%d members have names that lead outside of their archive ('/...' or '../...'); nothing is extracted, "
                "so they are read like all others",
                self.outside,
            )
        return TarIndex(
            archives=PathIndex.from_paths(archives),
            first=np.array(self.first, np.int64),
            places=places.reshape(-1, 2),
            names=self.names.build(),
            labels=labels if num_labelled else None,
            num_labelled=num_labelled,
            num_bad=int((labels == BAD_LABEL).sum()),
            skipped=self.skipped,
            others=dict(self.others.most_common()),
        )

    def _member(self, archive: str, reader: TarReader, shard: _Shard, member: Member) -> None:
        folder, _, base = member.name.rpartition(b"/")
        stem, dot, ending = base.partition(b".")
        ending = (dot + ending).lower()
        key = folder + b"/" + stem
        last = b"." + ending.rpartition(b".")[2]
        if stem and last in _ENDINGS:
            self.outside += member.name.startswith(b"/") or b".." in member.name.split(b"/")
            if not member.size:
                self._skip(archive, member.name, "empty file")
            elif not shard.take(key, member, plain=ending == last):
                self._skip(archive, member.name, "a second image of this name in the archive; the first is used")
        elif stem and ending == b".cls":
            shard.labels[key] = _class_number(reader.read(member.offset, min(member.size, _LONGEST_CLASS)))
        elif stem and ending == b".json" and self.json_key is not None:
            if member.size <= _LONGEST_JSON:
                shard.labels.setdefault(key, _class_in(reader.read(member.offset, member.size), self.json_key))
        else:
            kind = printable(last) if stem and dot else "(hidden or no ending)"
            self.others[kind if kind in self.others or len(self.others) < _MOST_ENDINGS else "(others)"] += 1

    def _skip(self, archive: str, name: bytes, reason: str) -> None:
        self.skipped.append(Skipped(f"{archive}:{printable(name)}" if name else archive, reason))


@dataclass
class _Shard:
    """The samples of one archive: by key, since the members of a sample need not be neighbours.

    Attributes:
        images: ``0007.jpg`` by its key ``0007``.
        dotted: names with more dots, as ``0007.mask.png``: part of the sample ``0007`` if that has an image of its own,
            else an image.
        labels: class numbers by key.
    """

    images: dict[bytes, Member] = field(default_factory=dict)
    dotted: dict[bytes, tuple[bytes, Member]] = field(default_factory=dict)
    labels: dict[bytes, int] = field(default_factory=dict)

    def take(self, key: bytes, member: Member, plain: bool) -> bool:
        """Whether an image is the first of its name."""
        if plain:
            return self.images.setdefault(key, member) is member
        return self.dotted.setdefault(member.name, (key, member))[1] is member

    def samples(self) -> list[tuple[Member, int]]:
        """Images with their labels, in the order of the archive."""
        found = [(member, self.labels.get(key, NO_LABEL)) for key, member in self.images.items()]
        found += [
            (member, self.labels.get(key, NO_LABEL)) for key, member in self.dotted.values() if key not in self.images
        ]
        return sorted(found, key=lambda sample: sample[0].offset)


def _class_number(text: bytes) -> int:
    digits = text.strip()
    return int(digits) if digits.isdigit() and int(digits) <= _LARGEST_LABEL else BAD_LABEL


def _class_in(text: bytes, key: str) -> int:
    """The class that a ``.json`` member gives under ``key``: a whole number, or nothing."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return BAD_LABEL
    value = record.get(key) if isinstance(record, dict) else None
    if value is None:
        return NO_LABEL
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_LABEL
    return value if whole else BAD_LABEL
