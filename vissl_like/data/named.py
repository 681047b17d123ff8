"""Images named one by one by a program, for measures that bring images of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vissl_like.data.datasets.base import MAX_PIXELS, ImageDataset
from vissl_like.data.decode import decode_file, read_header

Box = tuple[float, float, float, float]


class NamedImages(ImageDataset):
    """The images of some files, or parts of them.

    Args:
        files: their paths; one may come several times.
        boxes: for each, left, top, right and bottom in pixels of the part that is taken, or None for the whole; they
            are rounded outwards and cut off at the borders. None takes all images whole.
        channels, mean, std: see ``ImageDataset``.
        max_pixels: images of more pixels than this (width times height) are refused unread.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        boxes: Sequence[Box | None] | None = None,
        channels: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        super().__init__(channels=channels, mean=mean, std=std)
        self.files = list(files)
        self.boxes = None if boxes is None else list(boxes)
        self.max_pixels = max_pixels
        if self.boxes is not None and len(self.boxes) != len(self.files):
            raise ValueError(f"{len(self.boxes)} boxes for {len(self.files)} images")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Image.Image:
        """See ``ImageDataset``."""
        image = decode_file(self.files[index], self.channels, self.max_pixels)
        box = None if self.boxes is None else self.boxes[index]
        if box is None:
            return image
        # A box beside the image would leave nothing; one row or column of it is the least.
        left = min(max(0, int(np.floor(box[0]))), image.width - 1)
        top = min(max(0, int(np.floor(box[1]))), image.height - 1)
        right = max(min(image.width, int(np.ceil(box[2]))), left + 1)
        bottom = max(min(image.height, int(np.ceil(box[3]))), top + 1)
        return image.crop((left, top, right, bottom))

    def header(self, index: int) -> tuple[str, tuple[int, int]]:
        """See ``ImageDataset``; of the whole file."""
        return read_header(self.files[index], self.max_pixels)

    def path(self, index: int) -> str:
        """See ``ImageDataset``."""
        return self.files[index]
