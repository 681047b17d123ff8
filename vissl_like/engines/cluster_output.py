"""What the cluster engine leaves behind: labels, a list to train on, a summary and pictures."""

from __future__ import annotations

import csv
import io
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vissl_like.clustering.statistics import describe_sizes, mutual_information, purity
from vissl_like.data.datasets.base import ImageDataset, UnreadableImage
from vissl_like.utils.files import write_atomic, write_json
from vissl_like.visualize.clusters import ClusterRow, cluster_sheet, size_chart

NO_CLUSTER = -1
PHOTOS = 6


@dataclass
class Rows:
    """What is clustered.

    Attributes:
        features: ``[n, F]`` float32 on the CPU, perhaps mapped from a file.
        indices: ``[n]`` int64, the image of each row.
        dataset: the images, None where only their features are known.
        key: text that differs whenever the features would.
    """

    features: Tensor
    indices: Tensor
    dataset: ImageDataset | None
    key: str


def write_clusters(
    folder: Path,
    rows: Rows,
    labels: Tensor,
    centroids: Tensor | None,
    scores: Tensor | None,
    *,
    sheets: int,
    seed: int,
) -> None:
    """Writes labels, the list of images, centroids, the summary and the pictures, and says what was found.

    Args:
        folder: where to.
        rows: what was clustered.
        labels: ``[n]`` int64 cluster of each row.
        centroids: ``[K, D]``; None where clusters have none.
        scores: ``[n]``, larger for rows that are nearer to their centroid; None where there is none.
        sheets: clusters that are drawn.
        seed: of the photos that are drawn at random.
    """
    counts = labels.bincount(minlength=0 if centroids is None else len(centroids))
    dataset, indices = rows.dataset, rows.indices
    everyone = np.full(len(labels) if dataset is None else len(dataset), NO_CLUSTER, dtype=np.int64)
    everyone[indices.numpy()] = labels.numpy()
    summary: dict[str, Any] = {
        "images": len(labels),
        "features": rows.features.shape[1],
        "sizes": describe_sizes(counts),
    }
    if dataset is not None and dataset.labels is not None:
        classes = torch.from_numpy(np.asarray(dataset.labels)).long()[indices]
        summary["nmi"] = 100 * float(mutual_information(labels, classes))
        summary["purity"] = 100 * purity(labels, classes)
    written = [_save(folder / "labels.npy", everyone)]
    if centroids is not None:
        written.append(_save(folder / "centroids.npy", centroids.numpy()))
    if dataset is not None:
        paths = [os.path.abspath(dataset.path(index)) for index in indices.tolist()]
        if os.path.isfile(paths[0]):
            written.append(_list(folder / "clusters.csv", paths, labels.tolist()))
        else:
            print("no clusters.csv: these images are no files of their own; labels.npy has their order", flush=True)
        sheet = _sheet(rows, labels, counts, scores, sheets, seed)
        if sheet is not None:
            write_atomic(folder / "members.png", sheet)
            written.append(folder / "members.png")
    write_atomic(folder / "sizes.png", size_chart(counts.numpy()).png)
    write_json(folder / "summary.json", summary)
    written += [folder / "sizes.png", folder / "summary.json"]
    print(f"{describe(summary)}\nwritten: {', '.join(str(file) for file in written)}", flush=True)


def _sheet(rows: Rows, labels: Tensor, counts: Tensor, scores: Tensor | None, sheets: int, seed: int) -> bytes | None:
    """Photos of clusters evenly spread over all sizes, largest first."""
    by_size = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    chosen = by_size[torch.linspace(0, len(by_size) - 1, min(sheets, len(by_size))).round().long()]
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for cluster in chosen.tolist():
        members = (labels == cluster).nonzero().flatten()
        near = [] if scores is None else members[scores[members].argsort(descending=True)[:PHOTOS]].tolist()
        some = members[torch.randperm(len(members), generator=generator)[:PHOTOS]].tolist()
        drawn.append(ClusterRow(str(cluster), len(members), _photos(rows, near), _photos(rows, some)))
    picture = cluster_sheet(drawn)
    return None if picture is None else picture.png


def describe(summary: dict[str, Any]) -> str:
    """The summary in two lines."""
    sizes = summary["sizes"]
    text = (
        f"{summary['images']:,d} images in {sizes['clusters'] - sizes['empty']:,d} clusters of {sizes['smallest']} to "
        f"{sizes['largest']} (median {sizes['median']:g}"
        + (f", {sizes['empty']} more are empty)" if sizes["empty"] else ")")
    )
    if "nmi" in summary:
        text += f"\nwith the labels of the images: NMI {summary['nmi']:.1f} %, purity {summary['purity']:.1f} %"
    return text


def _photos(rows: Rows, chosen: list[int]) -> list[Image.Image]:
    """Those of the chosen rows that can be read."""
    assert rows.dataset is not None
    found = []
    for row in chosen:
        with suppress(UnreadableImage):
            found.append(rows.dataset.read(int(rows.indices[row])))
    return found


def _save(file: Path, array: np.ndarray) -> Path:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_atomic(file, stream.getvalue())
    return file


def _list(file: Path, paths: list[str], labels: list[int]) -> Path:
    stream = io.StringIO(newline="")
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["path", "label"])
    table.writerows(zip(paths, labels, strict=True))
    write_atomic(file, stream.getvalue())
    return file
