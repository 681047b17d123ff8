"""Walks a folder for images: with ``os.scandir``, links followed once, hidden entries left alone."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vissl_like.data.decode import EXTENSIONS
from vissl_like.data.index import PathIndex, PathIndexBuilder, load_mapped
from vissl_like.records import Skipped

_ENDINGS = frozenset(os.fsencode(extension) for extension in EXTENSIONS)
EMPTY_FILE = "empty file"


@dataclass
class FolderScan:
    """What a folder holds.

    Attributes:
        paths: N image files, relative to the root; by folder, folders and files sorted by name, linked folders last.
        top: ``[N]`` int32, number of the immediate sub-folder of the root an image is under, -1 for the root itself.
        tops: names of these sub-folders, sorted; only those that hold images.
        one_level: whether every image lies directly in an immediate sub-folder.
        skipped: images of zero bytes, folders that may not be read, links that lead nowhere.
        others: number of files that are no images by their name, by ending.
        directories, modified: ``[D]`` folders visited, relative to the root, and their modification times in ns, read
            before their contents.
    """

    paths: PathIndex
    top: np.ndarray
    tops: list[str]
    one_level: bool
    skipped: list[Skipped]
    others: dict[str, int]
    directories: PathIndex
    modified: np.ndarray

    def save(self, folder: Path) -> None:
        """Writes the scan into an existing, empty folder."""
        self.paths.save(folder)
        np.save(folder / "top.npy", self.top, allow_pickle=False)
        (folder / "directories").mkdir()
        self.directories.save(folder / "directories")
        np.save(folder / "directories" / "modified.npy", self.modified, allow_pickle=False)
        facts = {
            "tops": self.tops,
            "one_level": self.one_level,
            "skipped": [[item.path, item.reason] for item in self.skipped],
            "others": self.others,
            "images": len(self.paths),
            "folders": len(self.directories),
        }
        (folder / "scan.json").write_text(json.dumps(facts), encoding="ascii")

    @classmethod
    def load(cls, folder: Path) -> FolderScan:
        """Maps a saved scan from disk.

        Raises:
            OSError, ValueError, KeyError, TypeError: it is damaged.
        """
        facts = json.loads((folder / "scan.json").read_text(encoding="ascii"))
        scan = cls(
            paths=PathIndex.load(folder),
            top=load_mapped(folder / "top.npy"),
            tops=[str(name) for name in facts["tops"]],
            one_level=bool(facts["one_level"]),
            skipped=[Skipped(path, reason) for path, reason in facts["skipped"]],
            others=dict(facts["others"]),
            directories=PathIndex.load(folder / "directories"),
            modified=load_mapped(folder / "directories" / "modified.npy"),
        )
        sizes = (len(scan.paths), len(scan.top), len(scan.directories), len(scan.modified))
        if sizes != (facts["images"], facts["images"], facts["folders"], facts["folders"]):
            raise ValueError(f"the arrays hold {sizes} entries, not what scan.json says")
        return scan

    def is_current(self, root: str) -> bool:
        """Whether no folder has changed since, and no file that was empty has been filled."""
        try:
            for relative, modified in zip(self.directories, self.modified.tolist(), strict=True):
                if os.stat(os.path.join(root, relative)).st_mtime_ns != modified:
                    return False
            return not any(
                item.reason == EMPTY_FILE and os.stat(os.path.join(root, item.path)).st_size for item in self.skipped
            )
        except OSError:
            return False


def scan_folder(root: str) -> FolderScan:
    """Finds the images under a folder.

    Raises:
        OSError: the root itself cannot be read.
    """
    return _Walk(os.fsencode(root)).run()


@dataclass
class _Walk:
    root: bytes
    paths: PathIndexBuilder = field(default_factory=PathIndexBuilder)
    top: array[int] = field(default_factory=lambda: array("i"))
    tops: dict[bytes, int] = field(default_factory=dict)
    one_level: bool = True
    skipped: list[Skipped] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    directories: PathIndexBuilder = field(default_factory=PathIndexBuilder)
    modified: list[int] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)
    links: deque[bytes] = field(default_factory=deque)

    def run(self) -> FolderScan:
        # Linked folders wait until all real ones are done: each folder is read once, under its real place if it has one
        # below the root, so a link back up cannot go round in circles.
        self._tree(b"")
        while self.links:
            self._tree(self.links.popleft())
        names = sorted(self.tops)
        rank = np.full(len(names) + 1, -1, dtype=np.int32)  # the last entry is what the root's -1 picks
        rank[[self.tops[name] for name in names]] = np.arange(len(names))
        return FolderScan(
            paths=self.paths.build(),
            top=rank[np.array(self.top, dtype=np.int32)],
            tops=[os.fsdecode(name) for name in names],
            one_level=self.one_level and len(self.paths) > 0,
            skipped=self.skipped,
            others=dict(self.others.most_common()),
            directories=self.directories.build(),
            modified=np.array(self.modified, dtype=np.int64),
        )

    def _tree(self, start: bytes) -> None:
        stack = [start]
        while stack:
            relative = stack.pop()
            try:
                below = self._directory(relative)
            except OSError as error:
                if not relative:
                    raise
                self._skip(relative, f"folder cannot be read: {error.strerror}")
                continue
            stack.extend(reversed(below))

    def _directory(self, relative: bytes) -> list[bytes]:
        """Takes the images of one folder in; returns its real sub-folders, and queues the linked ones."""
        place = os.path.join(self.root, relative)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in self.seen:
            return []
        with os.scandir(place) as entries:
            found = sorted(
                (entry for entry in entries if not entry.name.startswith(b".")), key=lambda entry: entry.name
            )
        self.seen.add((status.st_dev, status.st_ino))
        self.directories.add(relative)
        self.modified.append(status.st_mtime_ns)
        below = []
        for entry in found:
            path = os.path.join(relative, entry.name)
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif entry.is_symlink() and entry.is_dir():
                self.links.append(path)
            else:
                self._file(entry, path)
        return below

    def _file(self, entry: os.DirEntry[bytes], path: bytes) -> None:
        ending = os.path.splitext(entry.name)[1].lower()
        if ending not in _ENDINGS:
            self.others[os.fsdecode(ending) or "(no ending)"] += 1
            return
        try:
            size = entry.stat().st_size
        except OSError as error:
            self._skip(path, "link to nothing" if entry.is_symlink() else str(error.strerror))
            return
        if size == 0:
            self._skip(path, EMPTY_FILE)
            return
        first, separator, rest = path.partition(os.sep.encode())
        self.paths.add(path)
        self.top.append(self.tops.setdefault(first, len(self.tops)) if separator else -1)
        self.one_level = self.one_level and bool(separator) and os.sep.encode() not in rest

    def _skip(self, path: bytes, reason: str) -> None:
        self.skipped.append(Skipped(os.fsdecode(path), reason))
