"""Work done by processes that end with it, and what is said when one of them dies."""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from vissl_like.data.worker import start_worker
from vissl_like.plugins import PluginPickle
from vissl_like.utils.errors import UserError

PREFETCH = 2
K = TypeVar("K")
V = TypeVar("V")


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
        workers, prefetch, pin_memory: as in ``TrainLoader``.
        start_method: likewise, but these are always processes: ``thread`` is the platform's own way.

    Raises:
        UserError: a worker died. What ``make`` raises comes through.
    """
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory}
    if workers:
        context = None if start_method == "thread" else start_method
        options |= {"prefetch_factor": prefetch, "multiprocessing_context": context}
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
