"""A map of the features: every photo a point, photos that the network finds alike close together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from vissl_like.visualize.picture import MARKERS, PALETTE, Picture, chart_png, new_chart
from vissl_like.visualize.sheets import as_image, fitted

FEWEST = 3
THUMBNAIL = 40
MOST_LEGEND = 20


def project(features: np.ndarray, method: Literal["pca", "tsne"], seed: int = 0) -> tuple[np.ndarray, str]:
    """Coordinates in the plane.

    Args:
        features: ``[N, F]``, l2-normalised first so that distances follow cosines.
        method: ``pca``: the two directions of largest variance. ``tsne``: t-SNE of 30 principal components, perplexity
            30 (less for fewer than 91 images): neighbourhoods are kept, distances between groups mean little.
        seed: of t-SNE's start.

    Returns:
        ``[N, 2]``, and what the axes are.

    Raises:
        ValueError: fewer than three images.
    """
    from sklearn.decomposition import PCA

    if len(features) < FEWEST:
        raise ValueError(f"a map needs at least {FEWEST} images, got {len(features)}")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    if method == "pca":
        model = PCA(n_components=min(2, *unit.shape), random_state=seed)
        with np.errstate(invalid="ignore"):  # features that are all alike have no variance to share out
            points = model.fit_transform(unit)
        if points.shape[1] < 2:
            points = np.column_stack([points, np.zeros(len(points))])
        share = 100 * float(np.nan_to_num(model.explained_variance_ratio_).sum())
        return points, f"PCA: two directions with {share:.0f} % of the variance"
    from sklearn.manifold import TSNE

    with np.errstate(invalid="ignore"):
        reduced = PCA(n_components=min(30, *unit.shape), random_state=seed).fit_transform(unit)
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return points, f"t-SNE of 30 principal components, perplexity {perplexity:.0f}"


def embedding_map(
    points: np.ndarray,
    axes_note: str,
    labels: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    thumbnails: Sequence[Image.Image] = (),
) -> Picture:
    """The map: points coloured by class where labels are known, else with some photos drawn at their places.

    Args:
        points: ``[N, 2]``.
        axes_note: what the axes are.
        labels: ``[N]`` class numbers.
        classes: their names.
        thumbnails: photos of the first points, drawn if there are no labels.
    """
    figure, axes = new_chart(8.4, 4.8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.set_aspect("equal", adjustable="datalim")
    alt = f"Map of {len(points)} photos in the plane ({axes_note})."
    if labels is not None:
        numbers = np.asarray(labels)
        present = np.unique(numbers)
        for position, number in enumerate(present):
            own = points[numbers == number]
            name = classes[number] if classes is not None and number < len(classes) else f"class {number}"
            axes.scatter(
                own[:, 0],
                own[:, 1],
                s=14,
                alpha=0.75,
                linewidths=0,
                color=PALETTE[position % len(PALETTE)],
                # With more classes than colours, shapes tell them apart.
                marker=MARKERS[position // len(PALETTE) % len(MARKERS)],
                label=f"{name} ({len(own)})",
            )
        if len(present) <= MOST_LEGEND:
            figure.legend(loc="outside right upper", markerscale=1.6, frameon=False)
        alt += f" Coloured by {len(present)} classes."
    else:
        axes.scatter(points[:, 0], points[:, 1], s=10, alpha=0.6, linewidths=0, color=PALETTE[0])
        _draw_thumbnails(axes, points, thumbnails)
    caption = (
        f"Map of the trained features: {axes_note}. Each point is a photo; nearby photos are alike to the network."
    )
    return Picture(chart_png(figure), alt, caption)


def _draw_thumbnails(axes: object, points: np.ndarray, thumbnails: Sequence[Image.Image]) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    for point, photo in zip(points, thumbnails, strict=False):
        small, _ = fitted(as_image(photo), THUMBNAIL)
        box = AnnotationBbox(OffsetImage(np.asarray(small), zoom=0.6), tuple(point), pad=0.1)
        box.patch.set_edgecolor("#9ca3af")
        axes.add_artist(box)  # type: ignore[attr-defined]
