import json
import os
import struct
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vissl_like.evaluation.base import Features
from vissl_like.evaluation.feature_file import FeatureFile
from vissl_like.evaluation.store import FeatureStore
from vissl_like.records import Skipped


def large_features(folder, rows=9, width=3):
    """Features that lie in a temporary file, as ``extract_features`` leaves many, and what they are."""
    values = torch.arange(rows * width, dtype=torch.float32).view(rows, width) / 7
    file = FeatureFile(folder)
    file.append(values[:4])
    file.append(values[4:])
    return file.complete(torch.arange(rows) * 2, None, [Skipped("b\udcff.png", "broken")]), values


def test_store_takes_over_the_file_of_many_features(tmp_path):
    store = FeatureStore(tmp_path)
    features, values = large_features(tmp_path)
    temporary = features.file
    store.put("k", features)
    assert features.file is None and not temporary.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["k.safetensors"]
    assert torch.equal(features.features, values)  # still usable
    del features
    found = FeatureStore(tmp_path).get("k", torch.arange(100, 200))
    assert torch.equal(found.features, values) and found.indices.tolist() == list(range(0, 18, 2))
    assert found.labels.tolist() == list(range(100, 118, 2)) and found.skipped == [Skipped("b\udcff.png", "broken")]
    with safe_open(tmp_path / "k.safetensors", framework="np") as file:  # the format that anyone reads
        np.testing.assert_array_equal(file.get_tensor("features"), values.numpy())


def test_store_copies_a_file_that_lies_elsewhere(tmp_path):
    features, values = large_features(tmp_path / "elsewhere")
    FeatureStore(tmp_path / "store").put("k", features)
    assert features.file.exists()
    assert torch.equal(FeatureStore(tmp_path / "store").get("k", None).features, values)


@pytest.mark.parametrize("left", [0, 8, 100, 4096, 4100, -1, -30])
def test_half_a_file_of_many_features_is_none(tmp_path, left):
    store = FeatureStore(tmp_path)
    store.put("k", large_features(tmp_path)[0])
    whole = (tmp_path / "k.safetensors").read_bytes()
    (tmp_path / "k.safetensors").write_bytes(whole[:left])
    assert store.get("k", None) is None


def test_a_file_without_its_end_is_none_under_any_name(tmp_path):
    """Killed amid the writing: the header comes last, so that even a renamed file is not taken for a complete one."""
    file = FeatureFile(tmp_path)
    file.append(torch.rand(50, 3))
    file._stream.flush()
    file.path.rename(tmp_path / "k.safetensors")
    assert FeatureStore(tmp_path).get("k", None) is None


def test_what_a_killed_run_left_goes_after_a_day(tmp_path):
    store = FeatureStore(tmp_path)
    fresh, old = FeatureFile(tmp_path), FeatureFile(tmp_path)
    day = old.path.stat().st_mtime - 25 * 3600
    os.utime(old.path, (day, day))
    assert store.drop_unused() == 0
    assert fresh.path.exists() and not old.path.exists()


def test_features_from_the_store_may_be_changed_in_memory(tmp_path):
    store = FeatureStore(tmp_path)
    store.put("k", Features(torch.ones(4, 3), None, torch.arange(4)))
    store.get("k", None).features.mul_(5)
    assert torch.equal(store.get("k", None).features, torch.ones(4, 3))


def test_rows_can_be_placed_in_any_order(tmp_path):
    values = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    file = FeatureFile(tmp_path)
    for positions in order.split(7):
        file.place(positions, values[positions])
    assert torch.equal(file.complete(torch.arange(20), None, []).features, values)


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files")
def test_a_file_larger_than_the_memory_is_opened(tmp_path):
    """Private writable mappings need as much memory as they are long, unless they say that they do not."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rows = 1000
    width = 2 * memory // (4 * rows)
    sizes = [4 * rows * width, 8 * rows, 2]
    ends = np.cumsum([0, *sizes]).tolist()
    shapes = {"features": ("F32", [rows, width]), "indices": ("I64", [rows]), "skipped": ("U8", [2])}
    header = {
        name: {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        for (name, (kind, shape)), begin, end in zip(shapes.items(), ends, ends[1:], strict=False)
    }
    text = json.dumps(header).encode().ljust(1016)
    try:
        with open(tmp_path / "k.safetensors", "wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.seek(1024 + ends[2])
            stream.write(b"[]")
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    found = FeatureStore(tmp_path).get("k", None)
    assert found.features.shape == (rows, width)
    found.features[-1, -1] = 3.0
    assert float(found.features[-1, -1]) == 3.0 and float(found.features[5, 7]) == 0.0
    assert found.indices.tolist() == [0] * rows
