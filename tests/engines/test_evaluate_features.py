"""Measures of frozen features through the engine: few labels, linear machines, clusters, linear probes by SGD."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small_run import checkpoint, photos, settings

from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.utils.errors import UserError

LAYERS = Path(__file__).parents[2] / "configs/benchmark"


@pytest.fixture
def place(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "test", per_class=5, seed=1)
    checkpoint(tmp_path / "run")
    return tmp_path


def evaluate(place, name, capsys, *more, **sets):
    """Runs it from its layer; the record, the arrays and what was printed."""
    sets = {"probe_train": place / "train", "probe_test": place / "test", **sets}
    layer = [f"config={LAYERS / name}.yaml", *(f"config.EVALUATION.{option}" for option in more)]
    capsys.readouterr()
    assert EvaluateEngine(settings(place / "run", *layer, **sets)).run() == 0
    record = json.loads((place / f"run/evaluation_{name}.json").read_text())
    with np.load(place / f"run/evaluation_{name}.npz", allow_pickle=False) as arrays:
        return record, dict(arrays), capsys.readouterr().out


def test_low_shot(place, capsys):
    record, arrays, text = evaluate(place, "low_shot", capsys, "shots=[1,20]", "draws=2")
    assert list(record["subjects"]) == ["trained", "random init", "raw pixels", "majority class"]
    assert record["main"] == "top1_k20" and record["subjects"]["raw pixels"]["metrics"]["top1_k20"] == 100.0
    assert record["subjects"]["majority class"]["metrics"] == {"top1_k1": 50.0, "top1_k20": 50.0}
    assert arrays["items_raw_pixels"].tolist() == [100.0] * 10 and arrays["indices"].tolist() == list(range(10))
    assert arrays["items_trained"].mean() == pytest.approx(record["subjects"]["trained"]["metrics"]["top1_k20"])
    assert record["differences"].keys() == {"random init", "raw pixels", "majority class"}
    assert "note: trained, random init, raw pixels: k=20: 2 class(es) with fewer training images" in text
    assert record["data"]["train_images"] == 24 and "cost 0.1" in text


def test_clustering(place, capsys):
    record, arrays, text = evaluate(place, "clustering", capsys, "runs=3")
    assert list(record["subjects"]) == ["trained", "random init", "raw pixels", "shuffled clusters"]
    pixels, shuffled = (record["subjects"][name]["metrics"] for name in ("raw pixels", "shuffled clusters"))
    assert pixels["nmi"] > 90 and pixels["purity"] > 95 and shuffled["nmi"] < 60
    assert record["main"] == "nmi" and record["differences"] == {} and not arrays
    assert record["data"]["test_images"] == 10 and record["subjects"]["trained"]["details"]["clusters"] == 2
    assert "shuffled clusters" in text and "training images" not in text


def test_linear_sgd(place, capsys):
    record, arrays, text = evaluate(place, "linear_sgd", capsys, "rates=[0.01,0.1,1]", "epochs=5", "batch_size=8")
    assert list(record["subjects"]) == ["trained", "random init", "raw pixels", "majority class"]
    assert record["main"] == "top1" and record["subjects"]["raw pixels"]["metrics"]["top1"] >= 90
    assert record["subjects"]["trained"]["details"]["rate"] in (0.01, 0.1, 1.0)
    assert 100 * arrays["correct_trained"].mean() == pytest.approx(record["subjects"]["trained"]["metrics"]["top1"])
    assert "features output" in text
    with pytest.raises(UserError, match="ResNet has no blocks with class tokens"):
        evaluate(place, "linear_sgd", capsys, "blocks=2")


def devkit(root, train=18, test=12):
    """Bright images show a sun, the others a moon."""
    place, generator, number = root / "VOCdevkit/VOC2007", np.random.default_rng(0), 0
    (place / "ImageSets/Main").mkdir(parents=True)
    (place / "JPEGImages").mkdir()
    for split, count in (("trainval", train), ("test", test)):
        lines = {"": [], "sun_": [], "moon_": []}
        for index in range(count):
            shown = 1 if index % 2 else -1
            pixels = generator.integers(0, 120, (20, 30)) + 60 * (shown + 1)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"JPEGImages/{number:06d}.png")
            for name, label in (("", ""), ("sun_", f" {shown}"), ("moon_", f" {-shown}")):
                lines[name].append(f"{number:06d}{label}\n")
            number += 1
        for name, rows in lines.items():
            (place / f"ImageSets/Main/{name}{split}.txt").write_text("".join(rows))
    return root / "VOCdevkit"


def test_svm_needs_no_labelled_images_of_a_run(place, capsys):
    path = devkit(place)
    more = (f"path={path}", "image_size=16", "resize=18", "costs=[0.1,1]")
    record, arrays, text = evaluate(place, "svm", capsys, *more, probe_train=None, probe_test=None)
    assert list(record["subjects"])[:2] == ["trained", "random init"]
    trained = record["subjects"]["trained"]
    assert record["main"] == "map" and list(trained["details"]["ap_per_class"]) == ["moon", "sun"]
    assert arrays["items_trained"].mean() == pytest.approx(trained["metrics"]["map"])
    assert arrays["indices_trained"].tolist() == [0, 1]
    assert record["data"]["train_images"] == 18 and record["data"]["test_images"] == 12
    assert "random init" in record["differences"] and "svm (" in text
    record, _, text = evaluate(place, "svm", capsys, *more, "shots=[2,4]", "draws=2", probe_train=None, probe_test=None)
    assert record["main"] == "map_k4" and "optimistic" in text


def test_svm_without_the_devkit(place, capsys):
    with pytest.raises(UserError, match=r"VOC: the folder .* does not exist"):
        evaluate(place, "svm", capsys, f"path={place / 'nowhere'}", probe_train=None, probe_test=None)


@pytest.mark.parametrize("name", ["low_shot", "clustering", "linear_sgd"])
def test_images_of_one_class(place, capsys, name):
    photos(place / "other", classes=("dark", "light"), per_class=3)
    for image in (place / "other/light").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match="one class"):
        evaluate(place, name, capsys, probe_train=place / "other", probe_test=place / "other")


@pytest.mark.parametrize("name", ["low_shot", "clustering", "svm", "linear_sgd"])
def test_layer_names_its_evaluation(name):
    layer = yaml.safe_load((LAYERS / f"{name}.yaml").read_text())
    assert layer["EVALUATION"]["name"] == name and layer["ENGINE"] == {"name": "evaluate"}


def test_layers(place, capsys):
    record, arrays, _ = evaluate(place, "layers", capsys, "dims=40", "costs=[0.001,0.01]")
    assert list(record["subjects"]) == ["trained", "random init", "majority class"]
    facts = record["subjects"]["trained"]
    assert sorted(facts["metrics"]) == [f"top1_stage{stage}" for stage in (1, 2, 3, 4)]
    stage = facts["details"]["stage"]
    assert record["main"] == f"top1_stage{stage}"
    assert 100 * arrays["correct_trained"].mean() == pytest.approx(facts["metrics"][record["main"]])
    held = facts["details"]["held_out_per_stage"]
    assert held[str(stage)] == max(held.values()) and len(held) == 4
    record, _, _ = evaluate(place, "layers", capsys, "stages=[2]", "costs=[0.01]")
    assert list(record["subjects"]["trained"]["metrics"]) == ["top1_stage2"]
    with pytest.raises(UserError, match="asks for stage 5; this network has 4"):
        evaluate(place, "layers", capsys, "stages=[5]")
