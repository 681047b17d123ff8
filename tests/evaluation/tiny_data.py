"""Small datasets in memory for the tests of this room."""

import numpy as np
from PIL import Image

from vissl_like.data.datasets.base import ImageDataset, UnreadableImage


class ArrayDataset(ImageDataset):
    """Images from an array ``[N, H, W]`` (grey) or ``[N, H, W, 3]`` of uint8; ``broken`` ones cannot be read."""

    def __init__(self, pixels, labels=None, broken=(), classes=None, mean=None, std=None):
        super().__init__(channels=1 if pixels.ndim == 3 else 3, mean=mean, std=std)
        self.pixels, self.broken = pixels, set(broken)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.classes = classes

    def __len__(self):
        return len(self.pixels)

    def read(self, index):
        if index in self.broken:
            raise UnreadableImage(self.path(index), "made broken")
        return Image.fromarray(self.pixels[index])

    def path(self, index):
        return f"memory[{index}]"


def random_images(count, size=8, seed=0, channels=1):
    """``[count, size, size]`` or ``[count, size, size, 3]`` uint8 noise."""
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
