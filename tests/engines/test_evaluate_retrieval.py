"""Retrieval and copy detection from a checkpoint to a record, on sets made here."""

import json

import numpy as np
import pytest
from PIL import Image
from small_run import checkpoint, settings

from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.utils.errors import UserError


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def place(tmp_path):
    """Three textures, four gallery pictures of each, one query of each; and the same as copies."""
    random = np.random.default_rng(0)
    textures = random.integers(0, 256, (3, 20, 20))

    def picture(texture):
        return textures[texture] + random.integers(-30, 30, (20, 20))

    for texture in range(3):
        for number in range(4):
            save(tmp_path / f"oxford/jpg/g{texture}{number}.png", picture(texture))
        save(tmp_path / f"oxford/jpg/q{texture}.png", np.hstack([picture(texture), picture((texture + 1) % 3)]))
        save(tmp_path / f"copydays/original/100{texture}00.png", picture(texture))
        save(tmp_path / f"copydays/strong/100{texture}01.png", picture(texture))
        save(tmp_path / f"copydays/crops/30/100{texture}00.png", picture(texture))
    for number in range(4):
        save(tmp_path / f"copydays/distractors/d{number}.png", random.integers(0, 256, (20, 20)))
    gnd = [
        {"easy": [4 * t, 4 * t + 1], "hard": [4 * t + 2], "junk": [4 * t + 3], "bbx": [0, 0, 20, 20]} for t in range(3)
    ]
    names = {"imlist": [f"g{t}{n}" for t in range(3) for n in range(4)], "qimlist": ["q0", "q1", "q2"], "gnd": gnd}
    (tmp_path / "oxford/gnd.json").write_text(json.dumps(names))
    checkpoint(tmp_path / "run")
    return tmp_path


def evaluate(place, *more):
    return EvaluateEngine(settings(place / "run", *more)).run()


def read(place, name):
    record = json.loads((place / "run" / f"evaluation_{name}.json").read_text())
    with np.load(place / "run" / f"evaluation_{name}.npz", allow_pickle=False) as arrays:
        return record, dict(arrays)


RETRIEVAL = ("config=benchmark/retrieval", "config.EVALUATION.image_size=20", "config.EVALUATION.fit=squash")
COPIES = ("config=benchmark/copy_detection", "config.EVALUATION.image_size=20")


def test_retrieval(place, capsys):
    assert evaluate(place, *RETRIEVAL, f"config.EVALUATION.path={place}/oxford") == 0
    record, arrays = read(place, "retrieval")
    assert list(record["subjects"])[:2] == ["trained", "random init"] and record["main"] == "map_medium"
    assert record["data"]["test_images"] == 3 and record["data"]["skipped"] == {}
    metrics = record["subjects"]["trained"]["metrics"]
    # Pictures of one texture lie nearer to each other than to others, also for a network without training.
    assert metrics["map_medium"] == metrics["map_easy"] == metrics["precision_at_1"] == 100.0
    assert record["subjects"]["trained"]["details"]["queries"] == "cropped to their boxes"
    assert arrays["items_trained"].tolist() == [100.0] * 3 and arrays["indices_trained"].tolist() == [0, 1, 2]
    assert "random init" in record["differences"]
    out = capsys.readouterr().out
    assert "map_medium" in out and "3 test images" in out


def test_retrieval_shows_whole_queries_and_whitens(place):
    evaluate(
        place,
        *RETRIEVAL,
        f"config.EVALUATION.path={place}/oxford/gnd.json",
        "config.EVALUATION.crop_queries=false",
        "config.EVALUATION.whiten=2",
        f"config.EVALUATION.whiten_on={place}/copydays/distractors",
        "config.EVALUATE.floors=false",
    )
    record, _ = read(place, "retrieval")
    details = record["subjects"]["trained"]["details"]
    assert details["queries"] == "whole images" and details["whiten"] == 2 and record["data"]["train_images"] == 4
    assert any("queries are shown whole" in text for text in record["notices"])


def test_retrieval_in_the_shape_of_each_image(place):
    evaluate(
        place,
        "config=benchmark/retrieval",
        f"config.EVALUATION.path={place}/oxford",
        "config.EVALUATION.image_size=24",
        "config.EVALUATION.crop_queries=false",
        "config.EVALUATION.scales=[1, 0.7071]",
        "config.EVALUATE.floors=false",
    )
    record, _ = read(place, "retrieval")
    assert record["subjects"]["trained"]["details"]["fit"] == "longest"
    assert 0 < record["subjects"]["trained"]["metrics"]["map_medium"] <= 100


def test_copy_detection(place):
    assert evaluate(place, *COPIES, f"config.EVALUATION.path={place}/copydays") == 0
    record, arrays = read(place, "copy_detection")
    trained = record["subjects"]["trained"]
    assert trained["metrics"] == {"map_strong": 100.0, "map_crops_30": 100.0} and record["main"] == "map_strong"
    assert trained["details"]["pooling"] == "GeM 4" and trained["details"]["distractors"] == 4
    assert arrays["items_trained"].tolist() == [100.0] * 3
    before = sorted((place / "run/features").iterdir())
    evaluate(place, *COPIES, f"config.EVALUATION.path={place}/copydays", "config.EVALUATION.blocks=[crops/30]")
    record, _ = read(place, "copy_detection")
    assert record["main"] == "map_crops_30" and any("crops/30 counts" in text for text in record["notices"])
    assert set((place / "run/features").iterdir()) < set(before)  # nothing was extracted anew


def test_mistakes_are_named(place):
    with pytest.raises(UserError, match=r"gnd\.json"):
        evaluate(place, *RETRIEVAL, f"config.EVALUATION.path={place}/copydays")
    with pytest.raises(UserError, match="'original'"):
        evaluate(place, *COPIES, f"config.EVALUATION.path={place}/oxford")
    (place / "oxford/jpg/g11.png").unlink()
    with pytest.raises(UserError, match="g11"):
        evaluate(place, *RETRIEVAL, f"config.EVALUATION.path={place}/oxford")
    with pytest.raises(UserError, match="fit"):
        evaluate(place, *RETRIEVAL, "config.EVALUATION.fit=crop")
