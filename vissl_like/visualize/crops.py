"""What the network sees: photos and the views made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vissl_like.visualize.picture import GREY, INK, PALETTE, Picture, image_png
from vissl_like.visualize.sheets import as_image, blank, fitted, write

PHOTO, GAP, HEAD = 176, 10, 22


@dataclass(frozen=True)
class CropRow:
    """A photo and its views.

    Attributes:
        image: the photo.
        views: uint8 ``[C, size, size]`` each.
        boxes: ``(left, top, width, height)`` of each view in the photo, in its pixels; empty if unknown.
    """

    image: Image.Image
    views: Sequence[np.ndarray]
    boxes: Sequence[tuple[int, int, int, int]] = field(default_factory=tuple)


def crop_sheet(rows: Sequence[CropRow]) -> Picture | None:
    """A row for each photo: the photo with the outlines of its views, then the views; None without a row.

    Views are drawn in proportion to their sizes.
    """
    if not rows:
        return None
    largest = max(view.shape[-1] for row in rows for view in row.views)
    sides = [round(PHOTO * (0.35 + 0.65 * view.shape[-1] / largest)) for view in rows[0].views]
    width = PHOTO + sum(sides) + GAP * (len(sides) + 3)
    paper, pen = blank(width, HEAD + len(rows) * (PHOTO + GAP) + GAP)
    write(pen, GAP + PHOTO / 2, 4, "photo")
    left = 2 * GAP + PHOTO + GAP
    for number, (side, view) in enumerate(zip(sides, rows[0].views, strict=True)):
        color = PALETTE[number % len(PALETTE)] if rows[0].boxes else INK
        write(pen, left + side / 2, 4, f"{view.shape[-1]} px", color=color)
        left += side + GAP
    for position, row in enumerate(rows):
        top = HEAD + position * (PHOTO + GAP)
        photo, factor = fitted(as_image(row.image), PHOTO)
        corner = (GAP + (PHOTO - photo.width) // 2, top + (PHOTO - photo.height) // 2)
        paper.paste(photo, corner)
        for number, (x, y, wide, high) in enumerate(row.boxes):
            outline = [
                corner[0] + x * factor,
                corner[1] + y * factor,
                corner[0] + (x + wide) * factor - 1,
                corner[1] + (y + high) * factor - 1,
            ]
            pen.rectangle(outline, outline=PALETTE[number % len(PALETTE)], width=2)
        left = 2 * GAP + PHOTO + GAP
        for number, (side, view) in enumerate(zip(sides, row.views, strict=True)):
            small, _ = fitted(as_image(view), side)
            paper.paste(small, (left, top + (PHOTO - side) // 2))
            frame = [left - 2, top + (PHOTO - side) // 2 - 2, left + side + 1, top + (PHOTO + side) // 2 + 1]
            pen.rectangle(frame, outline=PALETTE[number % len(PALETTE)] if row.boxes else GREY, width=2)
            left += side + GAP
    sizes = ", ".join(f"{view.shape[-1]}" for view in rows[0].views)
    return Picture(
        image_png(paper),
        f"{len(rows)} training photos, each with its {len(sides)} random views of {sizes} pixels.",
        "Training photos and the views that the network was given, as drawn in the first epoch; outlines show where in "
        "the photo each was cut.",
    )
