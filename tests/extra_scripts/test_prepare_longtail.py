from collections import Counter

import fake_packages as fake
import numpy as np
import prepare_longtail as script
import pytest
from PIL import Image
from prepare_longtail import main

from vissl_like.data.datasets.file_list import ListedImages


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISSL_LIKE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    folder = tmp_path / "packages"
    fake.photos(folder)
    fake.stamps(folder, [f"animals/birds/{number}" for number in range(6)])
    kinds = {"drink": 4, "rare": 3, "flag": 6}
    codes = iter(f"1F5{number:02d}" for number in range(40))
    fake.emoji(folder, [fake.row(next(codes), kind) for kind, count in kinds.items() for _ in range(count)])
    source = tmp_path / "elpv"
    (source / "images").mkdir(parents=True)
    lines = []
    for number in range(4):
        Image.fromarray(fake.noise(str(number), (10, 10))).save(source / f"images/{number}.png")
        lines.append(f"images/{number}.png 0.0 {'mono' if number else 'poly'}\n")
    (source / "labels.csv").write_text("".join(lines))
    labels = np.repeat(np.arange(10, dtype=np.uint8), 30)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    monkeypatch.setattr(script, "fashion_mnist", lambda folder, prefix: (pixels, labels))
    monkeypatch.setattr(script, "TOTAL", 300)
    return folder


def call(packages, out):
    return main(["--out", str(out), "--packages", str(packages), "--elpv", str(packages.parent / "elpv")])


def test_layout(packages, tmp_path, capsys):
    assert call(packages, tmp_path / "out") == 0
    data = ListedImages(path=str(tmp_path / "out/labels.csv"))
    counts = Counter(data.classes[label] for label in data.labels)
    # 10 garments, 2 kinds of emoji (one has too few concepts), 2 of cells, 1 of stamps, 70 photographs.
    assert len(counts) == 85 and "emoji/rare" not in counts
    harmonic = sum(1 / rank for rank in range(1, 86))
    wanted = [max(1, round(300 / rank / harmonic)) for rank in range(1, 86)]
    have = {
        "fashion": 30,
        "emoji/drink": 16,
        "emoji/flag": 24,
        "elpv/mono": 3,
        "elpv/poly": 1,
        "stamps": 6,
        "photo": 60,
    }
    limit = {name: have.get(name) or have[name.split("/")[0]] for name in counts}
    # The fourteen largest (here: photographs) come first, so the first ranks are not cut short.
    assert sorted(counts.values(), reverse=True)[:10] == wanted[:10]
    assert all(count <= limit[name] for name, count in counts.items())
    assert f"{len(data)} images of 85 classes" in capsys.readouterr().out
    files = sorted((tmp_path / "out/images").iterdir())
    assert [path.name for path in files] == [f"{number:06d}.jpg" for number in range(len(data))]
    # Classes are spread over the numbers.
    largest = data.classes.index(counts.most_common(1)[0][0])
    places = np.flatnonzero(data.labels == largest)
    assert 0.3 < places.mean() / len(data) < 0.7 and places.std() > len(data) / 6


def test_again_gives_the_same(packages, tmp_path):
    call(packages, tmp_path / "a")
    call(packages, tmp_path / "b")
    assert fake.tree(tmp_path / "a") == fake.tree(tmp_path / "b") and len(fake.tree(tmp_path / "a")) > 100


def test_large_kinds_of_emoji_are_cut(packages, monkeypatch):
    monkeypatch.setattr(script, "MAX_CONCEPTS", 5)
    classes = script.emoji_by_kind(packages)
    assert {name: len(items) for name, items in classes.items()} == {"emoji/drink": 16, "emoji/flag": 20}


def test_order_and_sizes():
    counts = {f"c{number:02d}": 100 - number for number in range(20)}
    found = script.order_and_sizes(counts, np.random.default_rng(0))
    assert {name for name, _ in found[:14]} == {f"c{number:02d}" for number in range(14)}
    assert [name for name, _ in found[:14]] != sorted(counts)[:14] and len({name for name, _ in found}) == 20
    harmonic = sum(1 / rank for rank in range(1, 21))
    assert [size for _, size in found] == [round(12000 / rank / harmonic) for rank in range(1, 21)]


def test_missing_parts(packages, tmp_path, capsys):
    (tmp_path / "elpv/images/2.png").unlink()
    assert call(packages, tmp_path / "out") == 1
    assert "labels.csv has the line 'images/2.png 0.0 mono'" in capsys.readouterr().err
    (tmp_path / "elpv/labels.csv").unlink()
    assert call(packages, tmp_path / "out") == 1
    assert "labels.csv cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
