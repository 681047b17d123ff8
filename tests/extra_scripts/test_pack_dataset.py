"""Folders packed into archives, read again by the dataset for archives."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pack_dataset
import pytest
from pack_dataset import main
from PIL import Image

from vissl_like.data.datasets.auto import auto
from vissl_like.data.datasets.folder import FolderImages
from vissl_like.data.datasets.tar import TarImages


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(12):
        place = (
            tmp_path / "photos" / ("ants" if number % 3 else "bees") / f"photo.{number}.{('jpg', 'PNG')[number % 2]}"
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(place)
    return tmp_path / "photos"


def run(photos, out, *more):
    return main(["--images", str(photos), "--out", str(out), *more])


def test_the_same_images_and_labels_come_out(photos, tmp_path, capsys):
    assert run(photos, tmp_path / "packed") == 0
    before, after = FolderImages(path=str(photos)), auto(path=str(tmp_path / "packed"))
    assert isinstance(after, TarImages) and len(after) == 12 and after.labels.tolist() == before.labels.tolist()
    for index in range(12):
        assert np.array_equal(before.read_pixels(index), after.read_pixels(index))
    with tarfile.open(tmp_path / "packed" / "000000.tar") as archive:
        first = archive.getmembers()[0]
        assert archive.extractfile(first).read() == Path(before.path(0)).read_bytes()
    record = json.loads((tmp_path / "packed" / "pack.json").read_text())
    assert record["images"] == 12 and record["classes"] == ["ants", "bees"] and record["left_out"] == 0
    assert "12 images in 1 archives" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed", "photos"]


def test_archives_keep_their_size_and_samples_stay_together(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_dataset, "_END", 1_000_000 - 12_000)  # leaves 12,000 of the smallest archive's bytes
    assert run(photos, tmp_path / "packed", "--shard-mb", "1") == 0
    archives = sorted((tmp_path / "packed").glob("*.tar"))
    assert len(archives) > 2
    names = []
    for path in archives:
        with tarfile.open(path) as archive:
            here = archive.getnames()
        assert len(here) % 2 == 0 and [n.split(".")[0] for n in here[::2]] == [n.split(".")[0] for n in here[1::2]]
        names += here[::2]
    assert [int(name.split(".")[0]) for name in names] == list(range(12))
    assert len(TarImages(path=str(tmp_path / "packed"))) == 12


def test_shuffled_by_a_seed(photos, tmp_path):
    for name, seed in (("one", "1"), ("again", "1"), ("two", "2")):
        assert run(photos, tmp_path / name, "--shuffle", seed) == 0
    one, again, two = ((tmp_path / name / "000000.tar").read_bytes() for name in ("one", "again", "two"))
    assert one == again and one != two
    before, after = FolderImages(path=str(photos)), TarImages(path=str(tmp_path / "one"))
    pairs = [
        {(images.read_pixels(i).tobytes(), int(images.labels[i])) for i in range(12)} for images in (before, after)
    ]
    assert pairs[0] == pairs[1] and after.labels.tolist() != before.labels.tolist()


def test_made_smaller_only_when_asked(photos, tmp_path):
    assert run(photos, tmp_path / "small", "--short-side", "15", "--quality", "80") == 0
    small = TarImages(path=str(tmp_path / "small"))
    assert small.read(0).size == (20, 15)
    record = json.loads((tmp_path / "small" / "pack.json").read_text())
    assert (record["short_side"], record["quality"]) == (15, 80)
    assert run(photos, tmp_path / "kept", "--short-side", "300") == 0
    assert TarImages(path=str(tmp_path / "kept")).read(0).size == (40, 30)


def test_what_cannot_be_opened_is_listed(photos, tmp_path, capsys):
    (photos / "ants" / "broken.jpg").write_bytes(b"no image")
    (photos / "ants" / "empty.jpg").write_bytes(b"")
    assert run(photos, tmp_path / "packed") == 0
    assert len(TarImages(path=str(tmp_path / "packed"))) == 12
    listed = (tmp_path / "packed" / "left_out.txt").read_text()
    assert "broken.jpg" in listed and "empty.jpg" in listed and listed.count("\n") == 2
    assert "2 left out" in capsys.readouterr().out


def test_images_without_labels(photos, tmp_path):
    assert run(photos / "ants", tmp_path / "packed") == 0
    assert TarImages(path=str(tmp_path / "packed")).labels is None
    assert json.loads((tmp_path / "packed" / "pack.json").read_text())["labels"] is False


def test_a_folder_with_images_beside_archives_is_a_folder_of_images(photos, tmp_path):
    assert run(photos, tmp_path / "packed") == 0
    (photos / "old.tar").write_bytes((tmp_path / "packed" / "000000.tar").read_bytes())
    assert isinstance(auto(path=str(photos)), FolderImages)
    (tmp_path / "packed" / "one.jpg").write_bytes(next(photos.rglob("*.jpg")).read_bytes())
    assert isinstance(auto(path=str(tmp_path / "packed")), FolderImages)


def test_nothing_is_written_over(photos, tmp_path, capsys):
    out = tmp_path / "packed"
    assert run(photos, out) == 0
    assert run(photos, out) == 2 and "exists already" in capsys.readouterr().err
    assert run(photos, out, "--shuffle", "1", "--replace") == 0
    assert json.loads((out / "pack.json").read_text())["shuffle"] == 1
    assert run(photos, photos, "--replace") == 2 and "was not written by this script" in capsys.readouterr().err
    assert len(FolderImages(path=str(photos))) == 12


def test_mistakes(photos, tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "packed") == 2
    assert "does not exist" in capsys.readouterr().err and not (tmp_path / "packed").exists()
    assert run(photos, tmp_path / "packed") == 0
    assert run(tmp_path / "packed", tmp_path / "again") == 2
    assert "in a file already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(photos, tmp_path / "x", "--quality", "101", "--short-side", "5")


def test_half_written_archives_go_when_it_ends_badly(photos, tmp_path, monkeypatch, capsys):
    def full(self, members):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_dataset.Shards, "add", full)
    assert run(photos, tmp_path / "packed") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
