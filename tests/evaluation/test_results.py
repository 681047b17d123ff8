import dataclasses

import numpy as np
import torch
from tiny_data import ArrayDataset, random_images

from vissl_like.evaluation.base import EvaluationResult
from vissl_like.evaluation.bench import Bench, Probe
from vissl_like.evaluation.knn import KnnEvaluation
from vissl_like.evaluation.results import ResultStore, result_key
from vissl_like.evaluation.scoring import Scored, score
from vissl_like.evaluation.subjects import Look, Protocol, Source, feature_key, pixel_subject
from vissl_like.records import Skipped

PROTOCOL = Protocol(image_size=8)
SOURCE = Source(ArrayDataset(random_images(4)))


def bench(labels=(0, 1, 0, 1), protocol=PROTOCOL):
    images = Source(ArrayDataset(random_images(4), labels=list(labels)))
    return Bench(pixel_subject(), protocol, Look(1, (0.5,), (0.25,)), Probe(images, images, 2))


def same(a, b):
    for entry in dataclasses.fields(a):
        left, right = getattr(a, entry.name), getattr(b, entry.name)
        if isinstance(left, EvaluationResult):
            same(left, right)
        elif isinstance(left, (torch.Tensor, np.ndarray)):
            assert (left == right).all() and left.dtype == right.dtype
        else:
            assert left == right, entry.name


def test_a_result_comes_back_whole(tmp_path):
    store = ResultStore(tmp_path / "results")
    scored = score(bench(), KnnEvaluation(k=[1, 3]))
    scored.result.skipped = [Skipped("a.png", "broken")]
    assert store.get("k") is None
    store.put("k", scored)
    found = store.get("k")
    assert found.name == "raw pixels" and found.seconds == scored.seconds
    assert found.written == scored.written != "" and found.versions == scored.versions and found.versions["torch"]
    same(scored.result, found.result)
    bare = Scored("net", EvaluationResult("svm", {"map": 50.0}, main="map"), 1.5)
    store.put("bare", bare)
    same(bare.result, store.get("bare").result)


def test_damaged_results_are_made_again(tmp_path):
    store = ResultStore(tmp_path)
    store.put("k", score(bench(), KnnEvaluation()))
    for ending in ("json", "npz"):
        file = tmp_path / f"k.{ending}"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert store.get("k") is None
        file.write_bytes(whole)
    assert store.get("k") is not None
    (tmp_path / "k.npz").unlink()
    assert store.get("k") is None


def test_whatever_a_result_depends_on_is_in_its_key():
    def key(settings=None, other=None, identity="images"):
        return result_key(settings or {"name": "knn", "k": [20]}, identity, other or bench())

    keys = {
        key(),
        key({"name": "knn", "k": [10]}),
        key(identity="others"),
        key(other=bench(protocol=dataclasses.replace(PROTOCOL, image_size=9))),
        key(other=bench(protocol=dataclasses.replace(PROTOCOL, resize=9))),
        key(other=bench(protocol=dataclasses.replace(PROTOCOL, fit="squash"))),
        key(other=bench(protocol=dataclasses.replace(PROTOCOL, max_images=3))),
        key(other=dataclasses.replace(bench(), subject=dataclasses.replace(pixel_subject(), identity="other weights"))),
    }
    assert len(keys) == 8 and key() == key()
    other = {"image_size": 9, "resize": 9, "fit": "squash", "interpolation": "bicubic", "max_images": 3, "seed": 1}
    same_result = ("batch_size", "device", "workers", "plugins", "start_method", "channels_last", "folder")
    for field in dataclasses.fields(Protocol):
        if field.name not in same_result:
            changed = dataclasses.replace(PROTOCOL, **{field.name: other[field.name]})
            assert key(other=bench(protocol=changed)) != key(), field.name
            if field.name != "seed":
                assert feature_key(pixel_subject(), SOURCE, changed) != feature_key(pixel_subject(), SOURCE, PROTOCOL)
    assert key(other=dataclasses.replace(bench(), look=Look(3, (0.5,) * 3, (0.25,) * 3))) != key()
    assert bench().probe_identity() != bench([1, 1, 0, 1]).probe_identity()
