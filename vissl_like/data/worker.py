"""What a data-loading worker does: reads images, makes their views, and packs a batch into one buffer."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vissl_like.data.datasets.base import ImageDataset, UnreadableImage
from vissl_like.data.samplers.base import Key
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.transforms.parameters import sample_generator
from vissl_like.plugins import PluginPickle
from vissl_like.records import Batch, Skipped


@dataclass
class PackedBatch:
    """A batch on its way between processes: one buffer, since every tensor sent costs a file descriptor.

    Attributes:
        pixels: all views one after another, view v being ``[capacity, C, size_v, size_v]`` uint8.
        index: ``[b]`` int64 positions in the dataset, b <= capacity.
        capacity: images that the buffer has room for.
        skipped: images that could not be read.
        shape: height and width of the view of the one image, where its transform leaves the shape; None for squares.
    """

    pixels: Tensor
    index: Tensor
    capacity: int
    skipped: list[Skipped] = field(default_factory=list)
    shape: tuple[int, int] | None = None

    def pin_memory(self) -> PackedBatch:
        """The same in page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory())

    def unpack(self, sizes: Iterable[int], channels: int, labels: np.ndarray | None) -> Batch:
        """Views into the buffer, nothing copied; labels looked up by index."""
        views, begin, rows = [], 0, len(self.index)
        for size in sizes:
            height, width = self.shape or (size, size)
            shape = (self.capacity, channels, height, width)
            end = begin + self.capacity * channels * height * width
            views.append(self.pixels[begin:end].view(shape)[:rows])
            begin = end
        label = None if labels is None else torch.from_numpy(labels[self.index.numpy()])
        return Batch(views, self.index, label, self.skipped)


@dataclass
class Unfinished:
    """A batch whose rows are being filled.

    Attributes:
        keys: (epoch, index) of each row.
        pixels: the buffer, as in ``PackedBatch``.
        views: parts of it, ``[rows, C, size, size]``.
        used: image that each row shows; None as long as it has none.
        skipped: of each row, images that could not be read for it.
    """

    keys: list[Key]
    pixels: Tensor
    views: list[np.ndarray]
    used: list[int | None]
    skipped: list[list[Skipped]]


class ViewSource:
    """Makes packed batches of views out of lists of (epoch, index); runs in a worker, or in threads.

    Args:
        dataset: the images.
        transform: makes their views.
        seed: view parameters are a function of (seed, epoch, index).
        plugins: loaded in a worker before the dataset and the transform are.
        replace: whether an unreadable image is replaced by the next readable one; else it is left out.
        limit: unreadable images after which there is no point in going on.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: ViewTransform,
        seed: int,
        plugins: Iterable[str],
        replace: bool,
        limit: int,
    ):
        self._carried = PluginPickle((dataset, transform), plugins)
        self.seed, self.replace, self.limit = seed, replace, limit
        self._unreadable: set[str] = set()

    def __len__(self) -> int:
        return len(self._carried.value[0])

    def __getitems__(self, keys: list[Key]) -> PackedBatch:
        """The batch of some (epoch, index); with fewer rows where too many images have turned out unreadable."""
        if self._carried.value[1].free_shape:
            return self._free(keys)
        batch = self.begin(keys)
        for row in range(len(keys)):
            self.fill(batch, row)
        return self.finish(batch)

    def begin(self, keys: list[Key], pin_memory: bool = False) -> Unfinished:
        """Room for the views of some (epoch, index)."""
        dataset, transform = self._carried.value
        count, channels = len(keys), dataset.channels
        lengths = [count * channels * size * size for size in transform.sizes]
        pixels = torch.empty(sum(lengths), dtype=torch.uint8, pin_memory=pin_memory)
        views = [
            part.reshape(count, channels, size, size)
            for part, size in zip(np.split(pixels.numpy(), np.cumsum(lengths)[:-1]), transform.sizes, strict=True)
        ]
        return Unfinished(keys, pixels, views, [None] * count, [[] for _ in keys])

    def fill(self, batch: Unfinished, row: int) -> None:
        """Reads one image and makes its views; rows may be filled by several threads at a time."""
        dataset, transform = self._carried.value
        epoch, index = batch.keys[row]
        places = [view[row] for view in batch.views]
        for candidate in self._candidates(index):
            generator = sample_generator(self.seed, epoch, index)
            try:
                if transform.takes_arrays:
                    pixels = dataset.read_pixels(candidate)
                    height, width = pixels.shape[:2]
                    transform.render_into(pixels, transform.draw(width, height, generator), places)
                else:
                    for place, made in zip(places, transform(dataset.read(candidate), generator), strict=True):
                        place[...] = made
            except UnreadableImage as error:
                batch.skipped[row].append(Skipped(error.path, error.reason))
                self._unreadable.add(error.path)
                continue
            batch.used[row] = candidate
            return

    def finish(self, batch: Unfinished) -> PackedBatch:
        """The batch without the rows that no image could be read for."""
        present = [row for row, candidate in enumerate(batch.used) if candidate is not None]
        if len(present) < len(batch.used):
            for view in batch.views:
                view[: len(present)] = view[present]
        used = [candidate for candidate in batch.used if candidate is not None]
        skipped = [item for row in batch.skipped for item in row]
        return PackedBatch(batch.pixels, torch.tensor(used, dtype=torch.int64), len(batch.keys), skipped)

    def _free(self, keys: list[Key]) -> PackedBatch:
        """The batch of one image whose view has a shape of its own; without rows if it cannot be read."""
        (dataset, transform), ((epoch, index),) = self._carried.value, keys
        try:
            (view,) = transform(dataset.read(index), sample_generator(self.seed, epoch, index))
        except UnreadableImage as error:
            self._unreadable.add(error.path)
            nothing = torch.empty(0, dtype=torch.uint8)
            return PackedBatch(nothing, torch.empty(0, dtype=torch.int64), 1, [Skipped(error.path, error.reason)])
        pixels = torch.from_numpy(view.reshape(-1))
        return PackedBatch(pixels, torch.tensor([index]), 1, shape=(view.shape[1], view.shape[2]))

    def _candidates(self, index: int) -> Iterable[int]:
        """The image asked for and, where it is to be replaced, those after it in turn."""
        total = len(self)
        for offset in range(total if self.replace else 1):
            if len(self._unreadable) > self.limit:
                return
            yield (index + offset) % total


def start_worker(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach every process; the main one stops the workers itself, in order."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
