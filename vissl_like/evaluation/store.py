"""Features on disk, so that several evaluations of the same network and images extract them once."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.evaluation.base import Features
from vissl_like.evaluation.feature_file import TEMPORARY, flush_file, read_features
from vissl_like.utils.files import flush_folder

ABANDONED_SECONDS = 24 * 3600


def dataset_identity(dataset: ImageDataset) -> str:
    """Digest of which images a dataset holds: their paths and, for files, sizes and times of change."""
    digest = hashlib.sha256(f"{type(dataset).__name__} {len(dataset)} {dataset.channels}".encode())
    newest, state = "", b""
    for index in range(len(dataset)):
        path, file = dataset.path(index), dataset.source_file(index)
        # Images inside of one array are named file[3]; the file is what can change.
        file = file.rpartition("[")[0] if file.endswith("]") else file
        if file != newest:
            newest, state = file, _state(file)
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0" + state)
    return digest.hexdigest()


def _state(file: str) -> bytes:
    try:
        facts = os.stat(file)
    except (OSError, ValueError):  # not a file: made on the fly, or inside of something
        return b"?"
    return f"{facts.st_size} {facts.st_mtime_ns}".encode()


def cache_key(facts: dict[str, Any]) -> str:
    """Short digest of everything that features depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


class FeatureStore:
    """A folder of ``<key>.safetensors``, each holding ``features``, ``indices`` and the list of skipped images.

    Features come out mapped from their file: they take memory as they are read, which the system can take back.
    Labels are not kept: they belong to the dataset and may be mended without new features.

    Args:
        folder: made when the first features are put in.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.used: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether features of that key are there."""
        return self._file(key).is_file()

    def get(self, key: str, labels: torch.Tensor | None) -> Features | None:
        """The features of a key, None if they are absent or damaged.

        Args:
            key: see ``cache_key``.
            labels: of the whole dataset, in its order.
        """
        from safetensors import SafetensorError

        self.used.add(key)
        try:
            features, indices, skipped = read_features(self._file(key))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None
        if features.dtype == torch.uint8:
            features = features.float() / 255
        return Features(features, None if labels is None else labels[indices], indices, skipped)

    def put(self, key: str, features: Features, as_bytes: bool = False) -> None:
        """Keeps features; a file under that key is replaced only by a complete one.

        Args:
            key: see ``cache_key``.
            features: to keep; if they lie in a temporary file of this folder, that file becomes the store's.
            as_bytes: store values k / 255 (pixels) as k, in a quarter of the space.

        Raises:
            OSError: the folder cannot be written.
        """
        from safetensors.torch import save_file

        self.used.add(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        if features.file is not None and features.file.parent.resolve() == self.folder.resolve() and not as_bytes:
            flush_file(features.file)
            os.replace(features.file, self._file(key))
            flush_folder(self.folder)
            features.file = None
            return
        values = (features.features * 255).round().to(torch.uint8) if as_bytes else features.features
        tensors = {"features": values.contiguous(), "indices": features.indices.contiguous()}
        skipped = json.dumps([[item.path, item.reason] for item in features.skipped])
        temporary = self.folder / f".{key}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
        try:
            save_file(tensors, temporary, metadata={"skipped": skipped})
            os.replace(temporary, self._file(key))
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def drop_unused(self) -> int:
        """Removes what this store was not asked for, such as features of earlier checkpoints; how many files went.

        What a run that was killed has left unfinished goes too, a day later.
        """
        doomed = [file for file in self.folder.glob("*.safetensors") if file.stem not in self.used]
        for file in doomed:
            with suppress(OSError):
                file.unlink()
        for file in self.folder.glob(f".*{TEMPORARY}"):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                    file.unlink()
        return len(doomed)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
