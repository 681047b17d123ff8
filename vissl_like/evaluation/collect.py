"""Features of batch after batch joined, and those of all processes; never more in memory than is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vissl_like.data.datasets.base import ImageDataset, UnreadableImage
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Features
from vissl_like.evaluation.feature_file import FeatureFile
from vissl_like.records import Batch, Skipped
from vissl_like.utils.errors import UserError

GATHER_ROWS = 4096
GATHER_BYTES = 256 * 2**20
"""Rows of each process, and bytes of all, that are gathered at a time."""


def collect(
    batches: Iterable[Batch], encode: Callable[[Batch], Tensor], dataset: ImageDataset, folder: Path | None, limit: int
) -> Features:
    """Features of all batches, in their order; without rows if there is no batch.

    Args:
        batches: of images of ``dataset``.
        encode: batch of n -> ``[n, F]`` float32 on the CPU.
        dataset: for the labels.
        folder: where rows of more than ``limit`` bytes are written to; None keeps all in memory.
        limit: in bytes.

    Raises:
        UserError: features are not finite, or cannot be written.
    """
    parts: list[Tensor] = []
    indices = [torch.empty(0, dtype=torch.int64)]
    skipped: list[Skipped] = []
    size = count = broken = 0
    first = -1
    file: FeatureFile | None = None
    try:
        with torch.inference_mode():
            for batch in batches:
                rows = encode(batch)
                wrong = ~rows.isfinite().all(dim=1)
                if wrong.any():
                    first = int(batch.index[wrong][0]) if not broken else first
                    broken += int(wrong.sum())
                indices.append(batch.index)
                skipped += batch.skipped
                count, size = count + len(rows), size + rows.nbytes
                if file is None and folder is not None and size > limit:
                    file = FeatureFile(folder)
                    while parts:
                        file.append(parts.pop(0))
                parts.append(rows) if file is None else file.append(rows)
        if broken:
            raise UserError(
                f"the features of {broken} of {count} images are not finite, the first is image {first} of the "
                "dataset. The weights are broken (a diverged run?); use an earlier checkpoint."
            )
        # Outside of inference mode, so that the joined tensors are ordinary ones.
        index = torch.cat(indices)
        labels = labels_of(dataset, index)
        if file is not None:
            return file.complete(index, labels, skipped)
    except BaseException:
        if file is not None:
            file.discard()
        raise
    return Features(torch.cat(parts) if parts else torch.empty(0, 0), labels, index, skipped)


def labels_of(dataset: ImageDataset, indices: Tensor) -> Tensor | None:
    """Labels of some images, ``[n]`` int64; None where the dataset has none."""
    return None if dataset.labels is None else torch.from_numpy(np.asarray(dataset.labels)[indices.numpy()]).long()


def require_rows(rows: int, skipped: list[Skipped]) -> None:
    """Complains where there are none.

    Args:
        rows: number of images with features.
        skipped: all the others.

    Raises:
        UserError: there is no row.
    """
    if rows:
        return
    if not skipped:
        raise UserError("there is no image to take features of")
    named = [f"  {item.path}: {item.reason}" for item in skipped[:10]]
    listing = "\n".join(named + (["  ..."] if len(skipped) > 10 else []))
    raise UserError(f"none of the {len(skipped)} images can be read:\n{listing}")


def all_unreadable(dataset: ImageDataset, order: Iterable[int]) -> list[Skipped] | None:
    """Why none of some images can be read; None if one can."""
    skipped = []
    for index in order:
        try:
            dataset.read(index)
        except UnreadableImage as error:
            skipped.append(Skipped(error.path, error.reason))
        else:
            return None
    return skipped


def gather(
    local: Features | None,
    error: str | None,
    dataset: ImageDataset,
    device: torch.device,
    folder: Path | None,
    limit: int,
) -> Features:
    """All processes' rows in the dataset's order; every process calls this, whether it has rows or has failed.

    Where they are more than ``limit`` bytes, the main process has them, in a file, and the others have none.

    Args:
        local: this process's features, which may have no rows; None if it failed.
        error: why it failed.
        dataset: for the labels.
        device: that the collectives run on.
        folder: where rows of more than ``limit`` bytes are written to; None keeps all in memory.
        limit: in bytes.

    Raises:
        UserError: a process has failed, there is no row at all, or the file cannot be written; every process raises it.
    """
    rows, width = (0, 0) if local is None or not len(local) else local.features.shape
    facts = comm.all_gather_object((rows, width, error))
    _raise_first([failure for _, _, failure in facts])
    assert local is not None
    counts, width = [rows for rows, _, _ in facts], max(width for _, width, _ in facts)
    skipped = [item for part in comm.all_gather_object(local.skipped) for item in part]
    require_rows(sum(counts), skipped)
    index = torch.empty(sum(counts), dtype=torch.int64)
    for places, block in _blocks(local.indices, counts, device):
        index[places] = block
    order = index.argsort()
    positions = torch.empty_like(order)
    positions[order] = torch.arange(len(order))
    index = index[order]
    own = local.features if len(local) else torch.empty(0, width)
    blocks = ((positions[places], block) for places, block in _blocks(own, counts, device))
    if comm.broadcast_object(folder is not None and 4 * sum(counts) * width > limit):
        return _into_file(blocks, index, width, dataset, skipped, folder)
    joined = torch.empty(sum(counts), width)
    for places, block in blocks:
        joined[places] = block
    return Features(joined, labels_of(dataset, index), index, skipped)


def _into_file(
    blocks: Iterator[tuple[Tensor, Tensor]],
    index: Tensor,
    width: int,
    dataset: ImageDataset,
    skipped: list[Skipped],
    folder: Path | None,
) -> Features:
    """The main process writes what all take part in gathering; if it cannot, all learn of it when all is gathered."""
    file: FeatureFile | None = None
    failure: str | None = None
    found = Features(torch.empty(0, width), labels_of(dataset, index[:0]), index[:0], skipped)
    try:
        try:
            if comm.is_main():
                assert folder is not None
                file = FeatureFile(folder)
            for places, block in blocks:
                if file is not None:
                    file.place(places, block)
            if file is not None:
                found = file.complete(index, labels_of(dataset, index), skipped)
        except UserError as error:
            failure = str(error)
            for _ in blocks:  # the others must not wait for this process
                pass
        _raise_first([comm.broadcast_object(failure)])
    except BaseException:
        if file is not None:
            file.discard()
        raise
    return found


def _raise_first(failures: list[str | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise UserError(failure)


def _blocks(rows: Tensor, counts: list[int], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of all processes on the CPU, a bounded part at a time, which they may have different numbers of.

    Yields:
        numbers of the rows, as if those of each process came after those of the one before, and the rows.
    """
    row_bytes = max(1, rows[:0].new_empty(1, *rows.shape[1:]).nbytes)
    most = max(1, min(GATHER_ROWS, GATHER_BYTES // (row_bytes * len(counts))))
    offsets = np.cumsum([0, *counts]).tolist()
    for start in range(0, max(counts), most):
        height = min(most, max(counts) - start)
        padded = rows.new_zeros(height, *rows.shape[1:])
        own = rows[start : start + height]
        padded[: len(own)] = own
        gathered = comm.all_gather(padded.to(device)).cpu().split(height)
        places, parts = [], []
        for block, offset, count in zip(gathered, offsets, counts, strict=False):
            there = max(0, min(height, count - start))
            places.append(torch.arange(offset + start, offset + start + there))
            parts.append(block[:there])
        yield torch.cat(places), torch.cat(parts)
