"""The cluster engine: groups of a folder's images by the features of a trained network, and a list that names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vissl_like.clustering.kmeans import kmeans, random_priorities
from vissl_like.clustering.pca import Pca
from vissl_like.clustering.power_iteration import power_iteration_clusters
from vissl_like.data.datasets.base import ImageDataset
from vissl_like.data.numpy_file import read_array
from vissl_like.distributed import comm
from vissl_like.engines.cluster_output import Rows, write_clusters
from vissl_like.engines.interrupts import interrupts
from vissl_like.engines.train import prepare_folder
from vissl_like.engines.trained import (
    build_trained,
    find_weights,
    look_of,
    open_source,
    protocol_of,
    trained_identity,
)
from vissl_like.evaluation.names import TRAINED
from vissl_like.evaluation.store import FeatureStore, cache_key
from vissl_like.evaluation.subjects import feature_key, network_subject, subject_features
from vissl_like.registry import ENGINES
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import write_atomic
from vissl_like.utils.kinds import Count, Index

FOLDER = "clusters"
STATE = "centroids_so_far.safetensors"


@ENGINES.register("cluster")
class ClusterEngine:
    """Groups images by the features of a trained network, without labels.

    Takes the images of DATA.TRAIN, and the newest checkpoint of OUTPUT_DIR or EVALUATE.weights, whose features are
    extracted as for an evaluation (EVALUATE) and kept; or rows of a file (``features``). Writes into
    OUTPUT_DIR/clusters: labels.npy ([N] int64, -1 for images that could not be read), clusters.csv (path and label of
    every image: a dataset to train on, DATA.TRAIN=.../clusters.csv), centroids.npy, summary.json, and pictures: members
    of clusters of all sizes, and the sizes. If the images have labels, the summary says how well both agree. k-means
    that is stopped goes on with the same command. One process; more torch threads (TRAIN.threads) help.

    Options:
        clusters: number of clusters of k-means; power iteration finds its own
        algorithm: k-means, or power iteration on the graph of five nearest neighbours
        features: .npy file of one row per image, [N, F]; null extracts them
        pca: reduce to this many whitened principal components first (256 in DeepCluster); null takes features whole
        spherical: scale rows to length 1, and go by angles; false goes by distances
        iterations: of k-means (20 in DeepCluster), or of power iteration (200)
        rows_per_cluster: k-means finds centroids from so many images for each; null takes all
        sheets: clusters that are drawn
    """

    required_settings = ()
    used_sections = ("DATA", "MODEL", "DISTRIBUTED", "EVALUATE", "TRAIN")

    def __init__(
        self,
        loaded: Any,
        *,
        clusters: Count = 100,
        algorithm: Literal["kmeans", "power_iteration"] = "kmeans",
        features: str | None = None,
        pca: Count | None = None,
        spherical: bool = True,
        iterations: Count | None = None,
        rows_per_cluster: Count | None = None,
        sheets: Index = 12,
    ):
        self.loaded = loaded
        self.clusters, self.algorithm, self.features, self.pca = clusters, algorithm, features, pca
        self.spherical, self.rows_per_cluster, self.sheets = spherical, rows_per_cluster, sheets
        self._seed = int(loaded.resolved.SEED)
        self.iterations = iterations or (20 if algorithm == "kmeans" else 200)

    def run(self) -> int:
        """Clusters.

        Returns:
            0, or 130 or 143 if Ctrl-C or SIGTERM stopped it.

        Raises:
            UserError: several processes, nothing to cluster, no weights, more clusters than images, features that do
                not fit the images or are not finite, or a folder that cannot be written.
        """
        if comm.active():
            raise UserError(
                "the cluster engine works in one process (config.DISTRIBUTED.processes=1); config.TRAIN.threads makes "
                "use of more cores"
            )
        output_dir = prepare_folder(self.loaded.resolved.OUTPUT_DIR)
        folder = prepare_folder(str(output_dir / FOLDER))
        state = folder / STATE
        try:
            with interrupts():
                rows = self._rows(output_dir)
                labels, centroids, scores = self._cluster(rows, state)
                write_clusters(folder, rows, labels, centroids, scores, sheets=self.sheets, seed=self._seed)
                state.unlink(missing_ok=True)
        except KeyboardInterrupt as stopped:
            name = str(stopped.args[0]) if stopped.args else "SIGINT"
            print(f"\n{name}: stopped; what was found so far is in {output_dir}. The same command goes on.", flush=True)
            return 143 if name == "SIGTERM" else 130
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
        return 0

    def _rows(self, output_dir: Path) -> Rows:
        """The features, extracted or read."""
        settings = self.loaded.resolved
        section = settings.DATA.TRAIN
        if self.features is not None:
            dataset = None if section is None else open_source(section).dataset
            return read_rows(Path(self.features).expanduser(), dataset)
        if section is None:
            raise UserError(
                "there is nothing to cluster: give config.DATA.TRAIN the images, or config.ENGINE.features a .npy file"
            )
        weights = find_weights(settings, output_dir)
        look = look_of(settings, weights)
        source = open_source(section, look)
        trunk, remarks = build_trained(settings, weights, look)
        print("\n".join(remarks), flush=True)
        protocol = protocol_of(self.loaded)
        subject = network_subject(TRAINED, trained_identity(settings, weights, trunk), trunk, protocol, share=False)
        store = FeatureStore(output_dir / "features")
        print(f"features of {len(source.dataset):,d} images ...", flush=True)
        found = subject_features(subject, source, protocol, store)
        if found.skipped:
            print(f"{len(found.skipped)} images could not be read and are in no cluster", flush=True)
        return Rows(found.features, found.indices, source.dataset, feature_key(subject, source, protocol))

    def _cluster(self, rows: Rows, file: Path) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Labels ``[n]``; of k-means also centroids ``[K, D]`` and how near each row is to its own ``[n]``."""
        features = rows.features
        if self.pca is not None:
            features = Pca.learn(features, self.pca).apply(features, unit=self.spherical)
        elif self.spherical:
            features = normalize(features, dim=1)
        if self.algorithm == "power_iteration":
            return power_iteration_clusters(features, iterations=self.iterations), None, None
        facts: dict[str, Any] = {"rows": rows.key, "clusters": self.clusters, "pca": self.pca, "seed": self._seed}
        facts |= {"spherical": self.spherical, "rows_per_cluster": self.rows_per_cluster}
        state = _State(file, cache_key(facts))
        start, done = state.read(self.iterations)
        if done:
            print(f"k-means goes on after iteration {done}", flush=True)
        found = kmeans(
            features,
            random_priorities(len(features), self._seed),
            self.clusters,
            self.iterations,
            spherical=self.spherical,
            rows_per_cluster=self.rows_per_cluster,
            start=start,
            done=done,
            after=state.write,
        )
        return found.labels, found.centroids, found.scores if self.spherical else -found.scores


def read_rows(file: Path, dataset: ImageDataset | None) -> Rows:
    """Rows of a ``.npy`` file, one for each image.

    Raises:
        UserError: it is not there, is damaged, or does not fit the images.
    """
    try:
        array = read_array(file)
    except (OSError, ValueError) as error:
        raise UserError(f"ENGINE.features: {file} cannot be read as a .npy array: {error}") from error
    if array.ndim != 2 or not array.size or array.dtype.kind != "f":
        raise UserError(
            f"ENGINE.features: {file} holds {array.dtype} {list(array.shape)}; wanted are rows [N, F] of floating point"
        )
    if dataset is not None and len(dataset) != len(array):
        raise UserError(
            f"ENGINE.features: {file} has {len(array)} rows and DATA.TRAIN has {len(dataset)} images; there must be "
            "one row for each image, in the order of the dataset"
        )
    features = torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
    for part in features.split(65536):
        if not part.isfinite().all():
            raise UserError(f"ENGINE.features: {file} holds NaN or infinity")
    facts = file.stat()
    key = f"{file.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    return Rows(features, torch.arange(len(features)), dataset, key)


class _State:
    """Centroids after the newest iteration, on disk.

    Args:
        file: where.
        key: of what they belong to; others are not taken up.
    """

    def __init__(self, file: Path, key: str):
        self.file, self.key = file, key

    def read(self, iterations: int) -> tuple[Tensor | None, int]:
        """Centroids and finished iterations; None and 0 where there are none to go on from."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["state"])
                if facts["key"] == self.key and 0 < facts["done"] <= iterations:
                    return file.get_tensor("centroids"), facts["done"]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            pass  # nothing there, or not to be read: beginning anew costs some iterations
        return None, 0

    def write(self, done: int, centroids: Tensor) -> None:
        """After an iteration."""
        from safetensors.torch import save

        facts = json.dumps({"key": self.key, "done": done})
        write_atomic(self.file, save({"centroids": centroids.contiguous()}, {"state": facts}))
