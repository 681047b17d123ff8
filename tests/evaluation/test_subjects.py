import dataclasses
import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import ArrayDataset, random_images
from torch import nn

from vissl_like.data.datasets.tar import TarImages
from vissl_like.evaluation.base import Features, LeftOut
from vissl_like.evaluation.bench import Bench, Probe
from vissl_like.evaluation.store import FeatureStore, cache_key, dataset_identity
from vissl_like.evaluation.subjects import (
    OUTPUT,
    Encoding,
    Look,
    Protocol,
    Source,
    network_subject,
    pixel_subject,
    slug_of,
    subject_features,
    untrained_subject,
)
from vissl_like.records import Skipped

PROTOCOL = Protocol(image_size=8, batch_size=4, seed=3)


def small_net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_features_are_extracted_once(tmp_path):
    store, source = FeatureStore(tmp_path / "features"), Source(ArrayDataset(random_images(6), labels=range(6)))
    calls = []
    subject = network_subject("trained", "weights 1", nn.Flatten(), PROTOCOL)
    extract = subject.extract
    subject.extract = lambda *given: calls.append(1) or extract(*given)
    first = subject_features(subject, source, PROTOCOL, store)
    again = subject_features(subject, source, PROTOCOL, FeatureStore(tmp_path / "features"))
    assert len(calls) == 1
    assert torch.equal(first.features, again.features) and torch.equal(first.labels, again.labels)
    for other in (
        dataclasses.replace(subject, identity="weights 2"),
        subject,
    ):
        changed = dataclasses.replace(PROTOCOL, resize=9) if other is subject else PROTOCOL
        subject_features(other, source, changed, store)
    assert len(calls) == 3
    doubled = Encoding("doubled", lambda trunk, images: 2 * trunk(images))
    assert torch.equal(subject_features(subject, source, PROTOCOL, store, doubled).features, 2 * first.features)
    assert len(calls) == 4


def test_other_images_are_another_key(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"1")
    dataset = ArrayDataset(random_images(2))
    dataset.path = lambda index: str(file)
    before = dataset_identity(dataset)
    assert dataset_identity(dataset) == before
    file.write_bytes(b"22")
    assert dataset_identity(dataset) != before
    plain = Source(ArrayDataset(random_images(2))).identity
    assert Source(ArrayDataset(random_images(2), mean=[0.1])).identity != plain
    assert Source(ArrayDataset(random_images(3))).identity != plain
    assert Source(ArrayDataset(random_images(2)), {"seed": 1}).identity != plain


def test_a_damaged_cache_file_is_made_again(tmp_path):
    store, source = FeatureStore(tmp_path), Source(ArrayDataset(random_images(4)))
    subject = network_subject("trained", "x", nn.Flatten(), PROTOCOL)
    expected = subject_features(subject, source, PROTOCOL, store)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(subject_features(subject, source, PROTOCOL, store).features, expected.features)
    assert store.get(file.stem, None) is not None


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "features").write_text("a file in the way")
    subject = network_subject("trained", "x", nn.Flatten(), PROTOCOL)
    with pytest.warns(UserWarning, match="not kept"):
        found = subject_features(
            subject, Source(ArrayDataset(random_images(4))), PROTOCOL, FeatureStore(tmp_path / "features")
        )
    assert len(found) == 4


def test_store_keeps_skipped_and_takes_labels_of_today(tmp_path):
    store = FeatureStore(tmp_path)
    features = Features(torch.rand(2, 3), torch.tensor([5, 6]), torch.tensor([1, 4]), [Skipped("x", "broken")])
    store.put("k", features)
    found = store.get("k", torch.tensor([9, 8, 7, 6, 5]))
    assert found.labels.tolist() == [8, 5] and found.skipped == [Skipped("x", "broken")]
    assert store.get("absent", None) is None
    fresh = FeatureStore(tmp_path)
    assert fresh.has("k") and fresh.drop_unused() == 1 and not fresh.has("k")


def test_pixels_are_kept_exactly_in_bytes(tmp_path):
    store, source = FeatureStore(tmp_path), Source(ArrayDataset(random_images(4)))
    subject = pixel_subject()
    first = subject_features(subject, source, PROTOCOL, store)
    assert torch.equal(subject_features(subject, source, PROTOCOL, store).features, first.features)
    assert torch.equal(
        (first.features * 255).round().to(torch.uint8).view(4, 8, 8), torch.tensor(source.dataset.pixels)
    )


def test_untrained_network_depends_on_the_seed_alone():
    dataset = ArrayDataset(random_images(9))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = untrained_subject(small_net, "net", dataset, PROTOCOL).extract(dataset, PROTOCOL, OUTPUT)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(7)
    second = untrained_subject(small_net, "net", dataset, PROTOCOL).extract(dataset, PROTOCOL, OUTPUT)
    later = dataclasses.replace(PROTOCOL, seed=4)
    other = untrained_subject(small_net, "net", dataset, later).extract(dataset, later, OUTPUT)
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.features, other.features)


def test_untrained_network_is_calibrated_and_built_late():
    built = []
    dataset = ArrayDataset(random_images(9))
    subject = untrained_subject(lambda: built.append(small_net()) or built[-1], "net", dataset, PROTOCOL)
    assert not built
    subject.extract(dataset, PROTOCOL, OUTPUT)
    subject.extract(dataset, PROTOCOL, OUTPUT)
    assert len(built) == 1
    assert not torch.equal(built[0][1].running_mean, torch.zeros(4))


def test_more_pixels_than_memory_are_left_out():
    dataset = ArrayDataset(random_images(1))
    dataset.pixels = np.broadcast_to(dataset.pixels, (10**8, 8, 8))
    images, look = Source(dataset), Look(1, (0.5,), (0.25,))
    bench = Bench(pixel_subject(), PROTOCOL, look, Probe(images, images, 2))
    with pytest.raises(LeftOut, match=r"raw pixels are left out: 200,000,000 images of 8 px would take 47\.7 GiB"):
        bench.probe_features()
    bench.require_room(images, images, max_images=1000)
    Bench(network_subject("net", "net", nn.Flatten(), PROTOCOL), PROTOCOL, look).require_room(images)


def test_names():
    assert slug_of("random init") == "random_init"
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1}) != cache_key({"a": 1, "b": 3})


def test_images_of_an_archive_change_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VISSL_LIKE_CACHE", str(tmp_path / "cache"))
    archive, identities = tmp_path / "a.tar", set()
    for shade in (0, 200):
        buffer = io.BytesIO()
        Image.new("L", (8, 8), shade).save(buffer, "PNG")
        with tarfile.open(archive, "w") as packed:
            member = tarfile.TarInfo("0.png")
            member.size = len(buffer.getvalue())
            packed.addfile(member, io.BytesIO(buffer.getvalue()))
        os.utime(archive, (shade + 1, shade + 1))
        identities.add(dataset_identity(TarImages(path=str(archive))))
    assert len(identities) == 2
