"""Batches of views, made by worker processes, and what is said when images cannot be read or a worker dies."""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.data.samplers.base import BatchSampler, Key
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.worker import ViewSource, start_worker
from vissl_like.plugins import PluginPickle
from vissl_like.records import Batch, Skipped
from vissl_like.utils.environment import available_cores
from vissl_like.utils.errors import UserError

MOST_WORKERS = 16
PREFETCH = 2
K = TypeVar("K")
V = TypeVar("V")


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
        start_method: ``fork``, ``spawn``, ``forkserver``, or None for the platform's own.

    Raises:
        UserError: while iterating: too many unreadable images, or a worker died.
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
        self._skipped: dict[str, Skipped] = {}

    def __len__(self) -> int:
        """Micro-batches from ``start_step`` on."""
        return max(0, self.total_steps - self.start_step) * self.sampler.accumulation

    def __iter__(self) -> Iterator[Batch]:
        keys = self.sampler.batches(self.start_step, self.total_steps)
        for packed in iterate_workers(self._source.__getitems__, keys, **self._loading):
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
    made = iterate_workers(
        source.__getitems__, keys, workers, prefetch=prefetch, pin_memory=pin_memory, start_method=start_method
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


def auto_workers(processes: int) -> int:
    """Worker processes for each of the training processes on this machine: their share of the cores, less their own.

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


def explain_worker_death(error: Exception, workers: Iterable[Any] = ()) -> UserError | None:
    """What to tell the user if an error comes of a worker's death, else None.

    torch raises an error that says so in the main process at whatever point the death is noticed, also amid a training
    step. A worker that dies while it hands over a batch leaves a broken connection instead.

    Args:
        error: what was raised.
        workers: processes that may have died, where they are known.
    """
    broken = isinstance(error, (OSError, EOFError)) and _any_died(workers)
    # "Caught ... in DataLoader worker process 0" is what the dataset raised, in a worker that lives on.
    if not broken and "DataLoader worker (pid" not in str(error):
        return None
    return UserError(
        f"a data-loading worker died: {error}\n"
        "Usual causes: memory ran out (lower DATA.WORKERS, DATA.PREFETCH or the batch, or set the dataset's 'cache' to "
        "none); /dev/shm is too small, as in a container (raise its size, or set DATA.WORKERS to 0); a crash inside a "
        "plugin (DATA.WORKERS=0 shows where)."
    )


def iterate_workers(
    make: Callable[[K], V],
    keys: Iterable[K],
    workers: int,
    *,
    plugins: Iterable[str] = (),
    prefetch: int = PREFETCH,
    pin_memory: bool = False,
    start_method: str | None = None,
    seed: int = 0,
) -> Iterator[V]:
    """What a function makes of some keys, in their order, by worker processes that end with the iteration.

    Args:
        make: pure function of a key; it is copied to the workers, and so must be picklable.
        keys: read ahead of what is asked for.
        plugins: modules and files that ``make`` may come from; workers load them before it.
        seed: of torch's generator in the workers.
        workers, prefetch, pin_memory, start_method: as in ``TrainLoader``.

    Raises:
        UserError: a worker died. What ``make`` raises comes through.
    """
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory}
    if workers:
        options |= {"prefetch_factor": prefetch, "multiprocessing_context": start_method}
    loader: DataLoader[Any] = DataLoader(
        _Made(make, plugins),  # type: ignore[arg-type]  # torch asks for no more than items by key
        batch_size=None,
        sampler=keys,
        collate_fn=_as_it_is,
        # A generator of its own: torch would draw the workers' seed from the global one, and shift what models draw.
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=start_worker if workers else None,
        **options,
    )
    made = iter(loader)
    end_with_program(getattr(made, "_workers", ()))
    while True:
        try:
            found = next(made)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            explained = explain_worker_death(error, getattr(made, "_workers", ()))
            if explained is None:
                raise
            raise explained from error
        yield found


class _Made:
    """A function under square brackets, which takes its plugins along to another process."""

    def __init__(self, make: Callable[[Any], Any], plugins: Iterable[str]):
        self._carried = PluginPickle(make, plugins) if (plugins := list(plugins)) else make

    def __getitem__(self, key: Any) -> Any:
        make = self._carried.value if isinstance(self._carried, PluginPickle) else self._carried
        return make(key)


def _as_it_is(found: Any) -> Any:
    """The collate function: nothing is left to be put together."""
    return found


def _any_died(workers: Iterable[Any]) -> bool:
    """Whether a process has ended otherwise than in order; those that are just ending are given a second in all."""
    deadline = time.monotonic() + 1
    for worker in workers:
        worker.join(timeout=max(0.0, deadline - time.monotonic()))
        if worker.exitcode not in (None, 0):
            return True
    return False


_workers: weakref.WeakSet[Any] = weakref.WeakSet()


def end_with_program(workers: Iterable[Any]) -> None:
    """Loading processes that the program must not wait for when it ends amid an iteration; see ``start_worker``."""
    _workers.update(workers)


@atexit.register
def _end_workers() -> None:
    """Workers ignore SIGTERM (see ``start_worker``), which is how Python would end those left at exit, and wait."""
    for worker in list(_workers):
        if worker.is_alive():
            worker.kill()


def _listing(skipped: list[Skipped]) -> str:
    lines = [f"  {item.path}: {item.reason}" for item in skipped[:10]]
    return "\n".join(lines + (["  ..."] if len(skipped) > 10 else []))
