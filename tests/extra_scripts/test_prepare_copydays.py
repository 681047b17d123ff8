import fake_packages as fake
import numpy as np
import pytest
from PIL import Image
from prepare_copydays import main

from vissl_like.data.readers.copydays import read_copydays


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    fake.photos(folder)
    fake.stamps(folder, [f"animals/birds/{number}" for number in range(6)], (80, 60))
    return folder


@pytest.fixture(scope="module")
def made(packages, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    assert main(["--out", str(out), "--packages", str(packages)]) == 0
    return out


def test_layout(made):
    found = read_copydays(made)
    # printf '0:0.png' | md5sum | cut -c1-8, ...: 49e42b16 9c7ea4a0 187edfb9 a6e6d0f0 97596a8c 4af4927b: four are even.
    # Of every seven photographs one is for grounds, two for distractors, four for originals.
    assert len(found.originals) == 40 + 4 and len(found.distractors) == 2 + 20 * 20
    assert list(found.blocks) == [
        "strong",
        *(f"jpegqual/{quality}" for quality in (5, 15, 30, 75)),
        *(f"crops/{percent}" for percent in (20, 40, 60, 80)),
    ]
    for block in found.blocks.values():
        assert [positions.tolist() for positions in block.positives] == [[number] for number in range(44)]
    with Image.open(found.blocks["crops/80"].queries[0]) as image:
        assert image.size == (224, 224)
    with Image.open(found.blocks["jpegqual/5"].queries[0]) as image:
        assert image.size == (112, 112)
    text = (made / "SOURCE.txt").read_text()
    assert "44 originals, each in 9 copies, and 402 distractors" in text and "GPL-2" in text and "CC BY-SA" in text


def test_copies_look_like_their_originals(made):
    def small(file):
        with Image.open(file) as image:
            values = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float)
        return values.reshape(-1) - values.mean()

    found = read_copydays(made)
    database = np.stack([small(file) for file in found.originals])
    queries = np.stack([small(file) for file in found.blocks["jpegqual/75"].queries])
    database, queries = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (database, queries))
    assert ((queries @ database.T).argmax(1) == np.arange(len(queries))).mean() > 0.95


def test_again_gives_the_same(packages, made, tmp_path, monkeypatch):
    monkeypatch.setattr("prepare_copydays.CROPS_OF_DISTRACTORS", 1)
    assert main(["--out", str(tmp_path / "out"), "--packages", str(packages)]) == 0
    first, second = fake.tree(made), fake.tree(tmp_path / "out")
    for name in second:
        if "distractors" not in name or int(name.split("/")[1][:5]) < 2:
            assert first[name] == second[name], name
