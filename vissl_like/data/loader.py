"""Batches of views, made by worker processes or by threads, and what is said when images cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.data.processes import PREFETCH, iterate_workers
from vissl_like.data.samplers.base import BatchSampler, Key
from vissl_like.data.threads import iterate_threads
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.worker import PackedBatch, ViewSource
from vissl_like.records import Batch, Skipped
from vissl_like.utils.environment import available_cores
from vissl_like.utils.errors import UserError

MOST_WORKERS = 16


class TrainLoader:
    """Micro-batches of a whole run, from its first step to its last, by workers that live as long as the iteration.

    The same batches come whatever the number of workers. An unreadable image is replaced by the next readable one of
    the dataset (index + 1, + 2, ... from the start again after the end) and named in ``Batch.skipped``; its views are
    drawn with the key of the image asked for.

    Args:
        dataset, transform, sampler: what, how and in which order; ``sampler`` knows this process's rank.
        workers: worker processes; 0 makes batches in this process, when they are asked for.
        prefetch: batches that each worker makes ahead.
        seed: view parameters are a function of (seed, epoch, index).
        plugins: modules and files that workers load first, as ``announce_plugins`` returned them.
        max_skipped: different unreadable images in the run of this process above which it stops: a number, or a share
            of the dataset such as ``1%`` (rounded up).
        start_step, total_steps: the run goes from the one, when resumed, to the other.
        pin_memory: batches come in page-locked memory (for copying to a GPU).
        start_method: ``thread``: workers are threads. ``fork``, ``spawn``, ``forkserver``: processes. None: threads
            where images and views allow it and batches stay on the CPU, else processes in the platform's own way.

    Raises:
        UserError: threads are asked for and the dataset does not allow them; while iterating: too many unreadable
            images, or a worker died.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: ViewTransform,
        sampler: BatchSampler,
        *,
        workers: int,
        total_steps: int,
        start_step: int = 0,
        prefetch: int = PREFETCH,
        seed: int = 0,
        plugins: Iterable[str] = (),
        max_skipped: str | int = "5%",
        pin_memory: bool = False,
        start_method: str | None = None,
    ):
        self.dataset, self.transform, self.sampler = dataset, transform, sampler
        self.start_step, self.total_steps = start_step, total_steps
        self.limit = skip_limit(max_skipped, len(dataset))
        self._max_skipped = max_skipped
        self._source = ViewSource(dataset, transform, seed, plugins, replace=True, limit=self.limit)
        self._loading: dict[str, Any] = {
            **{"workers": workers, "prefetch": prefetch, "pin_memory": pin_memory},
            **{"start_method": start_method, "seed": seed},
        }
        self.by_threads = serves_threads(dataset, transform, start_method, pin_memory) and workers > 0
        self._skipped: dict[str, Skipped] = {}

    def __len__(self) -> int:
        """Micro-batches from ``start_step`` on."""
        return max(0, self.total_steps - self.start_step) * self.sampler.accumulation

    def __iter__(self) -> Iterator[Batch]:
        keys = self.sampler.batches(self.start_step, self.total_steps)
        for packed in _iterate(self._source, keys, self.by_threads, **self._loading):
            self._count(packed.skipped)
            if len(packed.index) < packed.capacity:
                raise UserError(f"none of the {len(self.dataset)} images can be read:\n{_listing(self.skipped)}")
            yield packed.unpack(self.transform.sizes, self.dataset.channels, self.dataset.labels)

    @property
    def skipped(self) -> list[Skipped]:
        """The different images that could not be read so far, in the order met."""
        return list(self._skipped.values())

    def _count(self, skipped: list[Skipped]) -> None:
        for item in skipped:
            self._skipped.setdefault(item.path, item)
        if len(self._skipped) > self.limit:
            raise UserError(
                f"{len(self._skipped)} images could not be read, more than the {self.limit} allowed "
                f"(DATA.MAX_SKIPPED: {self._max_skipped} of {len(self.dataset)}):\n{_listing(self.skipped)}\n"
                "Mend or remove them, or raise DATA.MAX_SKIPPED to train without them."
            )


def iterate_images(
    dataset: ImageDataset,
    transform: ViewTransform,
    batch_size: int,
    workers: int,
    *,
    plugins: Iterable[str] = (),
    indices: Iterable[int] | None = None,
    prefetch: int = PREFETCH,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> Iterator[Batch]:
    """Every image once, in the order of the dataset (or of ``indices``), for evaluation.

    Unreadable images are left out and named in ``skipped`` of their batch: ``index`` says which remain, and a batch may
    be smaller than ``batch_size``, but never empty. Other arguments as in ``TrainLoader``.

    Raises:
        UserError: no image can be read, or a worker died.
    """
    order = range(len(dataset)) if indices is None else [int(index) for index in indices]
    source = ViewSource(dataset, transform, 0, plugins, replace=False, limit=len(dataset))
    keys: Iterator[list[Key]] = (
        [(0, index) for index in order[begin : begin + batch_size]] for begin in range(0, len(order), batch_size)
    )
    threads = serves_threads(dataset, transform, start_method, pin_memory) and workers > 0
    made = _iterate(
        source, keys, threads, workers=workers, prefetch=prefetch, pin_memory=pin_memory, start_method=start_method
    )
    ready: Batch | None = None
    unclaimed: list[Skipped] = []
    for packed in made:
        if not len(packed.index):
            # Nothing left of this batch: what it says goes with the batch before or, if there is none, the one after.
            (unclaimed if ready is None else ready.skipped).extend(packed.skipped)
            continue
        if ready is not None:
            yield ready
        ready = packed.unpack(transform.sizes, dataset.channels, dataset.labels)
        ready.skipped[:0] = unclaimed
        unclaimed = []
    if ready is not None:
        yield ready
    elif unclaimed:
        raise UserError(f"none of the {len(order)} images can be read:\n{_listing(unclaimed)}")


def serves_threads(dataset: ImageDataset, transform: ViewTransform, start_method: str | None, pin_memory: bool) -> bool:
    """Whether batches are made by threads.

    Left to us they are where nothing holds Python's lock for long. For a GPU that is not said: there the training
    itself needs the lock to keep the GPU busy.

    Raises:
        UserError: they are asked for, and the dataset or the transform does not allow them.
    """
    if start_method not in (None, "thread"):
        return False
    allowed = dataset.thread_safe and not transform.free_shape
    if start_method == "thread" and not dataset.thread_safe:
        raise UserError(
            f"DATA.START_METHOD is 'thread', but the dataset {type(dataset).__name__} does not say that it can be read "
            "by several threads (thread_safe). Use null or another method."
        )
    return allowed and (start_method == "thread" or (transform.takes_arrays and not pin_memory))


def _iterate(
    source: ViewSource,
    keys: Iterator[list[Key]],
    threads: bool,
    *,
    workers: int,
    start_method: str | None,
    **options: Any,
) -> Iterator[PackedBatch]:
    if threads:
        options.pop("seed", None)  # nothing of torch's is drawn there
        return iterate_threads(source, keys, workers, **options)
    return iterate_workers(source.__getitems__, keys, workers, start_method=start_method, **options)


def count_workers(given: int | str, processes: int) -> int:
    """DATA.WORKERS as a number, ``auto`` worked out for so many training processes on this machine."""
    return auto_workers(processes) if given == "auto" else int(given)


def auto_workers(processes: int) -> int:
    """Workers for each of the training processes on this machine: their share of the cores, less their own.

    Args:
        processes: training processes on this machine.

    Returns:
        0 (one core each: a worker would only take turns with the training) to 16.
    """
    return max(0, min(MOST_WORKERS, available_cores() // max(1, processes) - 1))


def skip_limit(max_skipped: str | int, dataset_size: int) -> int:
    """Unreadable images allowed: a number, or a share such as ``1%`` of the dataset, rounded up.

    Raises:
        UserError: it is neither.
    """
    text = str(max_skipped).strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            if 0 <= share <= 100:
                return int(-(-share * dataset_size // 100))
        elif int(text) >= 0:
            return int(text)
    except ValueError:
        pass
    raise UserError(f"DATA.MAX_SKIPPED is {max_skipped!r}; it must be a number of images, or a share such as '1%'")


def _listing(skipped: list[Skipped]) -> str:
    lines = [f"  {item.path}: {item.reason}" for item in skipped[:10]]
    return "\n".join(lines + (["  ..."] if len(skipped) > 10 else []))
