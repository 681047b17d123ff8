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


class ViewSource:
    """Makes packed batches of views out of lists of (epoch, index); runs in a worker.

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
        """The batch of some (epoch, index); without rows if too many images have turned out unreadable."""
        dataset, transform = self._carried.value
        if transform.free_shape:
            return self._free(keys)
        count, channels = len(keys), dataset.channels
        lengths = [count * channels * size * size for size in transform.sizes]
        flat = np.empty(sum(lengths), dtype=np.uint8)
        views = [
            part.reshape(count, channels, size, size)
            for part, size in zip(np.split(flat, np.cumsum(lengths)[:-1]), transform.sizes, strict=True)
        ]
        used: list[int] = []
        skipped: list[Skipped] = []
        for epoch, index in keys:
            for candidate in self._candidates(index):
                try:
                    image = dataset.read(candidate)
                except UnreadableImage as error:
                    skipped.append(Skipped(error.path, error.reason))
                    self._unreadable.add(error.path)
                    continue
                row = len(used)
                for view, pixels in zip(
                    views, transform(image, sample_generator(self.seed, epoch, index)), strict=True
                ):
                    view[row] = pixels
                used.append(candidate)
                break
        return PackedBatch(torch.from_numpy(flat), torch.tensor(used, dtype=torch.int64), count, skipped)

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
