"""What clusters look like: photos of some of them, and how large they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vissl_like.visualize.picture import BLUE, GREY, Picture, chart_png, image_png, new_chart
from vissl_like.visualize.sheets import as_image, blank, fitted, shortened, write

BOX, GAP, HEAD, FOOT = 72, 4, 20, 18


@dataclass(frozen=True)
class ClusterRow:
    """A cluster and some of its photos.

    Attributes:
        name: number or name of the cluster.
        size: photos in it.
        nearest: photos nearest to its centroid, the nearest first; empty where it has no centroid.
        drawn: photos drawn at random.
        note: whatever else is known, such as the most frequent class.
    """

    name: str
    size: int
    nearest: Sequence[Image.Image]
    drawn: Sequence[Image.Image]
    note: str = ""


def cluster_sheet(rows: Sequence[ClusterRow]) -> Picture | None:
    """A line of photos for each cluster: nearest to the centroid on the left, random ones on the right."""
    if not rows:
        return None
    left = max(len(row.nearest) for row in rows)
    right = max(len(row.drawn) for row in rows)
    middle = GAP + left * (BOX + GAP) + (4 * GAP if left else 0)
    width = max(260, middle + right * (BOX + GAP))
    paper, pen = blank(width, HEAD + len(rows) * (FOOT + BOX + GAP))
    if left:
        write(pen, GAP + left * (BOX + GAP) / 2, 3, "nearest to the centroid")
    write(pen, middle + right * (BOX + GAP) / 2, 3, "random")
    for position, row in enumerate(rows):
        top = HEAD + position * (FOOT + BOX + GAP)
        title = f"cluster {row.name}: {row.size:,d} photo{'s' * (row.size != 1)}, {row.note}".rstrip(", ")
        pen.text((GAP, top), shortened(title, width // 7), fill=GREY)
        for begin, photos in ((GAP, row.nearest), (middle, row.drawn)):
            for number, photo in enumerate(photos):
                small, _ = fitted(as_image(photo), BOX)
                x = begin + number * (BOX + GAP) + (BOX - small.width) // 2
                paper.paste(small, (x, top + FOOT + (BOX - small.height) // 2))
    said = "; ".join(f"cluster {row.name} with {row.size} photos" for row in rows)
    return Picture(image_png(paper), f"Photos of {len(rows)} clusters: {said}.", "Photos of clusters of all sizes.")


def size_chart(counts: np.ndarray) -> Picture:
    """Sizes of K clusters, largest first.

    Args:
        counts: ``[K]`` photos of each.
    """
    ordered = np.sort(np.asarray(counts))[::-1]
    figure, axes = new_chart()
    axes.fill_between(np.arange(1, len(ordered) + 1), ordered, step="mid", color=BLUE, alpha=0.25)
    axes.step(np.arange(1, len(ordered) + 1), ordered, where="mid", color=BLUE)
    axes.axhline(ordered.mean(), color=GREY, linewidth=1, linestyle="--")
    axes.set_xlabel("cluster, largest first")
    axes.set_ylabel("photos")
    axes.set_ylim(bottom=0)
    empty = int((ordered == 0).sum())
    alt = (
        f"Sizes of {len(ordered)} clusters: largest {ordered[0]}, median {np.median(ordered):g}, "
        f"smallest {ordered[-1]}, {empty} empty."
    )
    return Picture(chart_png(figure), alt, "Cluster sizes; the dashed line is their mean.")
