"""What a transform offers: how many views of which sizes, their parameters, and the views themselves."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vissl_like.data.transforms.parameters import ViewParameters
from vissl_like.data.transforms.pixels import render


class ViewTransform(ABC):
    """Makes V square views of an image. Drawing parameters and working on pixels are apart, so views can be reproduced.

    It is copied to worker processes, so everything it holds must be picklable. A subclass gives ``draw``, sets
    ``sizes``, and overrides ``render`` where its views are not made by ``pixels.render``.

    Attributes:
        channels: 1 or 3, of the images it will be given.
        sizes: side of every view, in pixels.
        free_shape: the one view has the shape that its image gives it, ``sizes`` being its longest side at most; such
            views come one image at a time.
    """

    sizes: tuple[int, ...]
    free_shape = False

    def __init__(self, channels: int):
        self.channels = channels

    @property
    def num_views(self) -> int:
        """V."""
        return len(self.sizes)

    @property
    def takes_arrays(self) -> bool:
        """Whether ``render_into`` works on arrays without the GIL, so that threads make views at the same time."""
        return False

    @abstractmethod
    def draw(self, width: int, height: int, generator: random.Random) -> list[ViewParameters]:
        """Parameters of the V views of an image of ``width`` x ``height`` pixels."""

    def render(self, image: Image.Image, views: list[ViewParameters]) -> list[np.ndarray]:
        """Views by their parameters: contiguous uint8 ``[channels, size, size]`` each. The image is left unchanged."""
        return [render(image, view) for view in views]

    def render_into(self, pixels: np.ndarray, views: list[ViewParameters], rows: Sequence[np.ndarray]) -> None:
        """What ``render`` makes of the same image, straight into the memory it is wanted in.

        Args:
            pixels: uint8 ``[H, W]`` (1 channel) or ``[H, W, 3]``, C-contiguous; left unchanged.
            views: parameters of the V views.
            rows: V C-contiguous uint8 arrays ``[channels, size, size]``, filled here.
        """
        for made, row in zip(self.render(Image.fromarray(pixels), views), rows, strict=True):
            row[...] = made

    def __call__(self, image: Image.Image, generator: random.Random) -> list[np.ndarray]:
        """Draws and makes the views of an image of mode L (1 channel) or RGB (3 channels)."""
        return self.render(image, self.draw(*image.size, generator))
