"""Finished measures on disk, so that a suite that is started again repeats none of them."""

from __future__ import annotations

import dataclasses
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vissl_like.evaluation.base import EvaluationResult
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.scoring import Scored
from vissl_like.evaluation.store import cache_key
from vissl_like.records import Skipped
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.files import write_atomic, write_json

FORMAT = 1
_TENSORS, _ARRAYS = ("predictions", "labels"), ("items", "item_ids")


def result_key(settings: dict[str, Any], identity: str, bench: Bench) -> str:
    """Digest of everything that a result depends on, the version of the program aside.

    Args:
        settings: name and options of the evaluation.
        identity: which images, labels and lists (``Evaluation.identity``).
        bench: the subject and how images are brought to it.
    """
    protocol = bench.protocol
    facts = {
        "format": FORMAT,
        "evaluation": settings,
        "code": bench.code,
        "identity": identity,
        "subject": bench.subject.identity,
        "look": dataclasses.astuple(bench.look),
        "size": protocol.image_size,
        "resize": protocol.resize,
        "fit": protocol.fit,
        "interpolation": protocol.interpolation,
        "max_images": protocol.max_images,
        "seed": protocol.seed,
    }
    return cache_key(facts)


class ResultStore:
    """A folder with ``<key>.json`` (metrics and facts) and ``<key>.npz`` (one value for each test item).

    Args:
        folder: made when the first result is put in.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, key: str) -> Scored | None:
        """The result of a key, None if it is absent or damaged."""
        try:
            facts = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            with np.load(self.folder / f"{key}.npz", allow_pickle=False) as found:
                arrays = dict(found)
            chance = None if facts["chance"] is None else _result(facts["chance"], arrays, "chance_")
            result = _result(facts["result"], arrays, "", chance)
            return Scored(facts["subject"], result, facts["seconds"], facts["written"], facts["versions"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, key: str, scored: Scored) -> None:
        """Keeps a result; it counts only once all of it is written. Date and versions are noted in both.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        scored.written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        scored.versions = describe_environment()
        result = scored.result
        arrays = _arrays(result, "")
        if result.chance is not None:
            arrays |= _arrays(result.chance, "chance_")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomic(self.folder / f"{key}.npz", buffer.getvalue())
        facts = {
            "subject": scored.name,
            "seconds": scored.seconds,
            "written": scored.written,
            "versions": scored.versions,
            "result": _facts(result),
            "chance": None if result.chance is None else _facts(result.chance),
        }
        write_json(self.folder / f"{key}.json", facts)


def _facts(result: EvaluationResult) -> dict[str, Any]:
    without = (*_TENSORS, *_ARRAYS, "chance", "skipped")
    facts = {
        entry.name: getattr(result, entry.name) for entry in dataclasses.fields(result) if entry.name not in without
    }
    return {**facts, "skipped": [[item.path, item.reason] for item in result.skipped]}


def _arrays(result: EvaluationResult, prefix: str) -> dict[str, np.ndarray]:
    found = {name: getattr(result, name) for name in (*_TENSORS, *_ARRAYS)}
    return {prefix + name: np.asarray(value) for name, value in found.items() if value is not None}


def _result(
    facts: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str, chance: EvaluationResult | None = None
) -> EvaluationResult:
    values: dict[str, Any] = {**facts, "skipped": [Skipped(*item) for item in facts["skipped"]], "chance": chance}
    values |= {name: torch.from_numpy(arrays[prefix + name]) for name in _TENSORS if prefix + name in arrays}
    values |= {name: arrays[prefix + name] for name in _ARRAYS if prefix + name in arrays}
    return EvaluationResult(**values)
