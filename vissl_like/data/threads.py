"""Batches made by threads of this process: nothing is copied between processes, and nothing kept once for each.

For images whose decoding and views leave Python's lock (the GIL) alone; see ``DATA.START_METHOD``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from vissl_like.data.samplers.base import Key
from vissl_like.data.worker import PackedBatch, Unfinished, ViewSource


def iterate_threads(
    source: ViewSource, keys: Iterable[list[Key]], threads: int, *, prefetch: int, pin_memory: bool
) -> Iterator[PackedBatch]:
    """Batches of views in the order of their keys; the images of a batch are shared out among the threads.

    Args:
        source: makes them; its dataset must say ``thread_safe``.
        keys: of each batch; read ahead of what is asked for.
        threads: how many, at least 1.
        prefetch: batches begun ahead.
        pin_memory: batches are made in page-locked memory.

    Raises:
        whatever reading an image raises, other than ``UnreadableImage``.
    """
    begun: deque[tuple[Unfinished, list[Future[None]]]] = deque()
    waiting = iter(keys)
    with ThreadPoolExecutor(threads, thread_name_prefix="views") as pool:
        try:
            while True:
                while len(begun) <= prefetch and (wanted := next(waiting, None)) is not None:
                    batch = source.begin(wanted, pin_memory)
                    begun.append((batch, [pool.submit(source.fill, batch, row) for row in range(len(wanted))]))
                if not begun:
                    return
                batch, rows = begun.popleft()
                for row in rows:
                    row.result()
                yield source.finish(batch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
