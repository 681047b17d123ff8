"""From a folder and a network, or from rows of a file, to clusters, a list to train on, and pictures."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import checkpoint, photos, settings

from vissl_like.clustering import kmeans as kmeans_module
from vissl_like.engines import cluster as module
from vissl_like.registry import ENGINES
from vissl_like.trainer.components import build, build_dataset
from vissl_like.utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path):
    photos(tmp_path / "train")
    checkpoint(tmp_path / "run")
    return tmp_path


def run(place, engine, **sets):
    loaded = settings(place / "run", f"config.ENGINE={engine}", **{"train": place / "train", **sets})
    return build(ENGINES, loaded.resolved.ENGINE, loaded).run()


def summary(place):
    return json.loads((place / "run/clusters/summary.json").read_text())


def rows_of_groups(count=90, groups=3):
    generator = np.random.default_rng(0)
    rows = 5 * np.eye(8)[np.arange(count) % groups] + 0.1 * generator.standard_normal((count, 8))
    return rows.astype(np.float32)


@pytest.mark.parametrize("engine", ["{name: cluster, clusters: 4}", "{name: cluster, clusters: 4, pca: 3}"])
def test_images_to_clusters_and_a_list_to_train_on(place, engine, capsys):
    (place / "train/dark/000.png").write_bytes(b"no image")
    assert run(place, engine) == 0
    folder = place / "run/clusters"
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    assert labels[0] == -1 and set(labels[1:]) <= set(range(4)) and len(labels) == 24
    lines = list(csv.DictReader((folder / "clusters.csv").open()))
    assert [int(line["label"]) for line in lines] == labels[1:].tolist()
    again = build_dataset({"name": "auto", "path": str(folder / "clusters.csv"), "channels": 1})
    assert len(again) == 23 and np.asarray(again.labels).tolist() == labels[1:].tolist()
    found = summary(place)
    assert found["images"] == 23 and found["sizes"]["clusters"] == 4 and 0 <= found["nmi"] <= 100
    for name in ("members.png", "sizes.png"):
        assert min(Image.open(folder / name).size) > 100
    said = capsys.readouterr().out
    assert "1 images could not be read" in said and "23 images in" in said and "NMI" in said
    assert not (folder / module.STATE).exists()


def test_brightness_is_found(place):
    # Two classes of brightness: their features lie apart, also in an untrained network.
    assert run(place, "{name: cluster, clusters: 2, spherical: false}") == 0
    assert summary(place)["purity"] > 95


@pytest.mark.parametrize("algorithm", ["kmeans", "power_iteration"])
def test_rows_of_a_file_without_images(tmp_path, algorithm):
    np.save(tmp_path / "rows.npy", rows_of_groups())
    options = f"{{name: cluster, clusters: 3, algorithm: {algorithm}, features: {tmp_path / 'rows.npy'}}}"
    loaded = settings(tmp_path / "run", f"config.ENGINE={options}", "config.DATA.TRAIN=null")
    assert build(ENGINES, loaded.resolved.ENGINE, loaded).run() == 0
    labels = np.load(tmp_path / "run/clusters/labels.npy")
    truth = np.arange(90) % 3
    pure = sum(np.bincount(truth[labels == label]).max() for label in set(labels))
    assert pure == 90 and (len(set(labels)) == 3 or algorithm == "power_iteration")
    assert not (tmp_path / "run/clusters/clusters.csv").exists()


def test_stopped_and_gone_on(place, monkeypatch, capsys):
    engine = "{name: cluster, clusters: 5, iterations: 6}"
    assert run(place, engine) == 0
    expected = np.load(place / "run/clusters/centroids.npy")
    moved, calls = kmeans_module._moved, []

    def stop_at_the_fourth(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt("SIGTERM")
        return moved(*given)

    monkeypatch.setattr(kmeans_module, "_moved", stop_at_the_fourth)
    assert run(place, engine) == 143
    assert "The same command goes on" in capsys.readouterr().out
    assert run(place, engine) == 0
    assert len(calls) == 4 + 3 and "goes on after iteration 3" in capsys.readouterr().out
    assert np.array_equal(np.load(place / "run/clusters/centroids.npy"), expected)


def test_centroids_of_other_settings_are_not_taken_up(place, monkeypatch):
    state = module._State(place / "state", "one")
    state.write(3, torch.ones(2, 2))
    assert state.read(9)[1] == 3 and state.read(2) == (None, 0)
    assert module._State(place / "state", "other").read(9) == (None, 0)
    (place / "state").write_bytes(b"\0" * 20)
    assert state.read(9) == (None, 0)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((24, 3, 2), np.float32), r"holds float32 \[24, 3, 2\]; wanted are rows"),
        (np.zeros((24, 3), np.int64), "wanted are rows"),
        (np.zeros((23, 3), np.float32), "has 23 rows and DATA.TRAIN has 24 images"),
        (np.full((24, 3), np.nan, np.float32), "holds NaN or infinity"),
        (None, "cannot be read as a .npy array"),
    ],
)
def test_rows_that_cannot_be_used(place, array, text):
    file = place / "rows.npy"
    if array is None:
        file.write_bytes(b"rows")
    else:
        np.save(file, array)
    with pytest.raises(UserError, match=text):
        run(place, f"{{name: cluster, clusters: 2, features: {file}}}")


def test_refused(place):
    with pytest.raises(UserError, match="25 clusters were asked for and there are 24 rows"):
        run(place, "{name: cluster, clusters: 25}")
    loaded = settings(place / "run", "config.ENGINE=cluster", "config.DATA.TRAIN=null")
    with pytest.raises(UserError, match="there is nothing to cluster"):
        build(ENGINES, loaded.resolved.ENGINE, loaded).run()


def test_the_tool(tmp_path):
    np.save(tmp_path / "rows.npy", rows_of_groups())
    command = [sys.executable, str(ROOT / "tools/cluster_features.py"), f"config.ENGINE.features={tmp_path}/rows.npy"]
    done = subprocess.run(
        [*command, "config.ENGINE.clusters=3", f"config.OUTPUT_DIR={tmp_path}/out"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "90 images in 3 clusters of 30 to 30" in done.stdout
    done = subprocess.run([*command, "config.ENGINE.cluster=3"], capture_output=True, text=True)
    assert done.returncode == 2 and "Did you mean 'clusters'?" in done.stderr
