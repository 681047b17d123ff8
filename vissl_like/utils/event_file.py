"""The event stream of a run: one JSON object a line, each with ``kind``, ``step``, ``epoch`` and ``time``.

Every line is valid JSON: a NaN or an infinity is written as null, and ``not_finite`` of the record then maps the place
of each (``parts.loss``) to ``nan``, ``inf`` or ``-inf``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vissl_like.utils.files import write_atomic

RESERVED_KEYS = frozenset({"kind", "step", "epoch", "time", "not_finite"})


def encode_record(record: dict[str, Any]) -> bytes:
    """One line of the stream, newline included."""
    return (json.dumps(plain_record(record), allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8")


def plain_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record in JSON's own types, numbers that JSON cannot hold listed in ``not_finite``."""
    lost: dict[str, str] = {}
    plain = {str(key): _plain(value, str(key), lost) for key, value in record.items()}
    return {**plain, "not_finite": lost} if lost else plain


def _plain(value: Any, place: str, lost: dict[str, str]) -> Any:
    """``value`` in JSON's own types; places of numbers that JSON cannot hold go into ``lost``."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(inner, f"{place}.{key}", lost) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{place}.{number}", lost) for number, inner in enumerate(value)]
    if hasattr(value, "tolist") and not isinstance(value, float):  # arrays, tensors and their scalars
        return _plain(value.tolist(), place, lost)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        lost[place] = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return None
    return str(value)


def read_events(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Records of a stream in order, all or those of one kind.

    Lines that are not whole records are left out: the last one of a run that was killed, or one cut by a full disk.

    Raises:
        OSError: the file cannot be read.
    """
    records, _ = _parse(Path(path).read_bytes())
    return [record for record in records if kind is None or record["kind"] == kind]


def _parse(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Records, and the number of lines that are none."""
    records, torn = [], 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and "kind" in record:
            records.append(record)
        else:
            torn += 1
    return records, torn


def keep_events(path: str | Path, keep: Callable[[dict[str, Any]], bool]) -> tuple[int, int]:
    """Rewrites a stream with the records that ``keep`` wants; the old file stays whole until the new one is.

    Returns:
        numbers of records dropped, and of torn lines dropped.

    Raises:
        OSError: the file cannot be read or written; it is then unchanged.
    """
    path = Path(path)
    records, torn = _parse(path.read_bytes())
    kept = [record for record in records if keep(record)]
    dropped = len(records) - len(kept)
    if dropped or torn:
        write_atomic(path, b"".join(encode_record(record) for record in kept))
    return dropped, torn


class EventWriter:
    """Appends records to a stream; each is in the file when ``append`` returns.

    Args:
        path: of the file, which is made if need be; its folder exists.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._descriptor: int | None = None
        self._whole_lines = True

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record.

        Raises:
            OSError: no space, no permission, ... The record is lost, later ones start on a line of their own.
        """
        data = encode_record(record)
        if self._descriptor is None:
            self._open()
        assert self._descriptor is not None
        rest = memoryview(data if self._whole_lines else b"\n" + data)
        self._whole_lines = False
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._whole_lines = True

    def close(self) -> None:
        """Closes the file; a later ``append`` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size:
            os.lseek(self._descriptor, size - 1, os.SEEK_SET)
            self._whole_lines = os.read(self._descriptor, 1) == b"\n"
