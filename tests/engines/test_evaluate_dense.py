"""Video objects and attention masks of a small vision transformer, from the command line's settings to the record."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import checkpoint, settings

from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.trainer.checkpoint import CheckpointStore
from vissl_like.utils.errors import UserError

VIT = {"size": "tiny", "patch_size": 8, "image_size": 32, "depth": 2}


@pytest.fixture
def place(tmp_path):
    """A run with a checkpoint of a vision transformer."""
    torch.manual_seed(0)
    trunk = VisionTransformer(1, **VIT)
    store = CheckpointStore(tmp_path / "run/checkpoints", 5, None, None, say=lambda text, level: None)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    record = {"arch": "vit", "arch_options": VIT, "channels": 1, "step": 40, "mean": [0.5], "std": [0.25]}
    assert store.save(40, {}, {}, trunk.state_dict(), record, {"metrics": {}}) is not None
    return tmp_path


def save(pixels, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def pictures(mask, seed):
    """Noise that is lighter where the mask is set."""
    noise = np.random.default_rng(seed).integers(0, 120, mask.shape)
    return (noise + 120 * (mask > 0)).astype(np.uint8)


@pytest.fixture
def videos(tmp_path):
    root = tmp_path / "davis"
    for video in ("first", "second"):
        for frame in range(4):
            mask = np.zeros((64, 128), dtype=np.uint8)
            mask[16:48, 8 + 8 * frame : 40 + 8 * frame] = 1
            save(mask, root / f"Annotations/480p/{video}/{frame:05d}.png")
            save(pictures(mask, frame), root / f"JPEGImages/480p/{video}/{frame:05d}.jpg")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("first\nsecond\n")
    return root


@pytest.fixture
def objects(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for number in range(5):
        mask = np.zeros((30, 40), dtype=np.uint8)
        mask[:12, : 8 * number + 4], mask[20:, 30:] = 1, 2
        for kind in ("Class", "Object"):
            save(mask, root / f"Segmentation{kind}/{number}.png")
        save(pictures(mask, number), root / f"JPEGImages/{number}.jpg")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"{number}\n" for number in range(5)))
    return root.parent


def evaluate(place, layer, *more):
    assert EvaluateEngine(settings(place / "run", f"config=benchmark/{layer}", *more)).run() == 0
    record = json.loads((place / "run" / f"evaluation_{layer}.json").read_text())
    with np.load(place / "run" / f"evaluation_{layer}.npz", allow_pickle=False) as arrays:
        return record, dict(arrays)


def test_video(place, videos, capsys):
    options = [f"config.EVALUATION.path={videos}", "config.EVALUATION.short_side=64"]
    record, arrays = evaluate(place, "video", *options, "config.EVALUATION.save_masks=true")
    assert list(record["subjects"]) == ["trained", "random init", "first mask copied"]
    assert record["main"] == "J&F" and record["step"] == 40 and record["data"]["test_images"] == 4
    for slug, name in (
        ("trained", "trained"),
        ("random_init", "random init"),
        ("first_mask_copied", "first mask copied"),
    ):
        metrics = record["subjects"][name]["metrics"]
        assert metrics["J&F"] == pytest.approx((metrics["J"] + metrics["F"]) / 2)
        assert arrays[f"items_{slug}"].mean() == pytest.approx(metrics["J&F"]) and len(arrays[f"items_{slug}"]) == 2
        assert 0 <= metrics["J"] <= 100
    # Of 32 pixels 24 and 16 overlap after one and two steps of 8.
    expected = 100 * (24 / 40 + 16 / 48) / 2
    assert record["subjects"]["first mask copied"]["metrics"]["J"] == pytest.approx(expected)
    assert record["differences"].keys() == {"random init", "first mask copied"}
    assert record["subjects"]["trained"]["details"]["patch"] == 8
    for slug in ("trained", "random_init"):
        files = sorted((place / "run/video" / slug / "second").iterdir())
        assert [file.name for file in files] == [f"0000{frame}.png" for frame in range(4)]
        assert np.array(Image.open(files[3])).shape == (64, 128)
    assert "objects 2" in capsys.readouterr().out


def test_attention_masks(place, objects, capsys):
    options = [f"config.EVALUATION.path={objects}", "config.EVALUATION.image_size=32"]
    record, arrays = evaluate(place, "attention_masks", *options)
    assert list(record["subjects"]) == ["trained", "random init", "whole image"]
    assert record["main"] == "jaccard" and record["data"]["test_images"] == 5
    assert record["subjects"]["trained"]["details"]["heads"] == 3
    for slug, name in (("trained", "trained"), ("random_init", "random init"), ("whole_image", "whole image")):
        found = record["subjects"][name]["metrics"]["jaccard"]
        assert 0 < found < 100 and arrays[f"items_{slug}"].mean() == pytest.approx(found)
    areas = [[12 * (8 * number + 4), 100] for number in range(5)]
    assert record["subjects"]["whole image"]["metrics"]["jaccard"] == pytest.approx(100 * np.mean(areas) / 1200)
    assert len(list((place / "run/features").iterdir())) == 2
    assert "jaccard" in capsys.readouterr().out


def test_convolutions(place, videos, objects):
    checkpoint(place / "other")
    other = place / "other"
    options = [f"config.EVALUATION.path={videos}", "config.EVALUATION.short_side=64"]
    evaluate_other = EvaluateEngine(settings(other, "config=benchmark/video", *options))
    assert evaluate_other.run() == 0
    record = json.loads((other / "evaluation_video.json").read_text())
    assert record["subjects"]["trained"]["details"]["patch"] == 8
    with pytest.raises(UserError, match="ResNet has no attention of a class token"):
        EvaluateEngine(settings(other, "config=benchmark/attention_masks", f"config.EVALUATION.path={objects}")).run()
