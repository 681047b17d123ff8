"""Test images with what was found in them, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vissl_like.data.decode import decode_file
from vissl_like.data.readers.masks import palette
from vissl_like.evaluation.functional.detection import Detections, TrueObjects
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import write_atomic

SIDE = 480
"""Shorter side of a picture in pixels; smaller images are enlarged by a whole factor."""
WHITE = (255, 255, 255)


def draw_pictures(
    folder: Path, images: Sequence[tuple[str, TrueObjects, Detections]], classes: Sequence[str]
) -> list[Path]:
    """Draws true boxes thin and white and, in the colour of its class, as many of the surest detections.

    Args:
        folder: for files of the images' names; made here.
        images: file, truth and detections of each.
        classes: C names.

    Returns:
        the files.

    Raises:
        UserError: they cannot be written.
    """
    written = []
    for file, truth, found in images:
        picture = drawn(decode_file(file, 3), truth, found, classes)
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        place = folder / f"{Path(file).stem}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(place, stream.getvalue())
        except OSError as error:
            raise UserError(f"the picture {str(place)!r} cannot be written: {error.strerror or error}") from error
        written.append(place)
    return written


def drawn(image: Image.Image, truth: TrueObjects, found: Detections, classes: Sequence[str]) -> Image.Image:
    """One picture; see ``draw_pictures``."""
    scale = max(1, SIDE // min(image.size))
    picture = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for box in truth.boxes:
        pen.rectangle(_corners(box, scale), outline=WHITE, width=1)
    colours = np.array(palette()).reshape(-1, 3)
    surest = np.argsort(-found.scores, kind="stable")[: max(1, len(truth.labels))]
    for row in surest[::-1]:  # the surest on top
        label = int(found.labels[row])
        colour = tuple(int(value) for value in colours[1 + label % (len(colours) - 1)])
        left, top, right, bottom = _corners(found.boxes[row], scale)
        pen.rectangle((left, top, right, bottom), outline=colour, width=3)
        text = f"{classes[label]} {100 * float(found.scores[row]):.0f}"
        place = (left + 3, max(0.0, top + 2))
        pen.rectangle(pen.textbbox(place, text), fill=colour)
        pen.text(place, text, fill=WHITE)
    return picture


def _corners(box: np.ndarray, scale: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) * scale for value in box)
    return left, top, max(left, right - 1), max(top, bottom - 1)
