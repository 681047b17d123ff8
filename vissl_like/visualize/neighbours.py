"""Which photos the network finds alike: queries and their nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from vissl_like.visualize.picture import GREEN, GREY, ORANGE, Picture, image_png
from vissl_like.visualize.sheets import as_image, blank, fitted, shortened, write

BOX, GAP, HEAD, FOOT = 128, 10, 22, 20


@dataclass(frozen=True)
class NeighbourRow:
    """A query and its neighbours, nearest first.

    Attributes:
        query: the photo asked about.
        neighbours: photos found.
        similarities: cosine of each, in [-1, 1].
        label: class of the query, empty where unknown.
        labels: class of each neighbour; empty where unknown.
    """

    query: Image.Image
    neighbours: Sequence[Image.Image]
    similarities: Sequence[float]
    label: str = ""
    labels: Sequence[str] = field(default_factory=tuple)


def neighbour_sheet(rows: Sequence[NeighbourRow]) -> Picture | None:
    """A row for each query; frames tell whether a neighbour is of the query's class. None without a row."""
    if not rows:
        return None
    columns = max(len(row.neighbours) for row in rows)
    width = (columns + 1) * (BOX + GAP) + 3 * GAP
    paper, pen = blank(width, HEAD + len(rows) * (BOX + FOOT + GAP))
    write(pen, GAP + BOX / 2, 4, "query")
    write(pen, 3 * GAP + BOX + columns * (BOX + GAP) / 2, 4, "nearest photos, with their cosine similarity")
    right = total = 0
    for position, row in enumerate(rows):
        top = HEAD + position * (BOX + FOOT + GAP)
        _place(paper, pen, row.query, GAP, top, GREY, shortened(row.label, 18))
        for number, (photo, similarity) in enumerate(zip(row.neighbours, row.similarities, strict=True)):
            color, note = GREY, f"{similarity:.3f}"
            if row.labels:
                same = row.labels[number] == row.label
                right, total = right + same, total + 1
                color = GREEN if same else ORANGE
                note = f"{similarity:.2f} {shortened(row.labels[number], 13)}"
            _place(paper, pen, photo, 3 * GAP + (number + 1) * (BOX + GAP), top, color, note)
    alt = f"{len(rows)} photos, each with its {columns} nearest neighbours by the trained features."
    caption = "Nearest neighbours by the cosine of the trained features."
    if total:
        alt += f" {right} of {total} neighbours have the class of their query."
        caption += f" Green frames: the query's class ({right} of {total}); orange: another."
    return Picture(image_png(paper), alt, caption)


def _place(
    paper: Image.Image, pen: ImageDraw.ImageDraw, photo: Image.Image, left: int, top: int, color: str, note: str
) -> None:
    small, _ = fitted(as_image(photo), BOX)
    paper.paste(small, (left + (BOX - small.width) // 2, top + (BOX - small.height) // 2))
    pen.rectangle([left - 2, top - 2, left + BOX + 1, top + BOX + 1], outline=color, width=3)
    write(pen, left + BOX / 2, top + BOX + 3, note, size=12)
