import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import RECORD, checkpoint, photos, settings

from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.evaluation import subjects
from vissl_like.evaluation.knn import KnnEvaluation
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.utils.errors import UserError


@pytest.fixture
def place(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "test", per_class=5, seed=1)
    checkpoint(tmp_path / "run")
    return tmp_path


def evaluate(place, *more, **sets):
    sets = {"probe_train": place / "train", "probe_test": place / "test", **sets}
    return EvaluateEngine(settings(place / "run", "config.ENGINE=evaluate", *more, **sets)).run()


def read(place, name="knn"):
    record = json.loads((place / "run" / f"evaluation_{name}.json").read_text())
    with np.load(place / "run" / f"evaluation_{name}.npz", allow_pickle=False) as arrays:
        return record, dict(arrays)


def test_trained_network_and_floors(place, capsys):
    assert evaluate(place, "config.EVALUATION={name: knn, k: [3, 1]}") == 0
    record, arrays = read(place)
    assert list(record["subjects"]) == ["trained", "random init", "raw pixels", "majority class"]
    assert record["step"] == 7 and record["data"]["test_images"] == 10 and record["data"]["train_images"] == 24
    assert record["data"]["classes"] == ["dark", "light"] and record["data"]["held_out_of_train"] is False
    assert record["subjects"]["majority class"]["metrics"]["top1"] == 50.0
    assert record["subjects"]["raw pixels"]["metrics"]["top1"] == 100.0  # brightness tells the classes apart
    assert record["settings"]["EVALUATE"]["image_size"] == 16 and "torch" in record["versions"]
    assert record["differences"].keys() == {"random init", "raw pixels", "majority class"}
    for slug, name in (("trained", "trained"), ("raw_pixels", "raw pixels"), ("majority_class", "majority class")):
        correct = arrays[f"correct_{slug}"]
        assert 100 * correct.mean() == pytest.approx(record["subjects"][name]["metrics"]["top1"])
        assert ((arrays[f"predictions_{slug}"] == arrays["labels"]) == correct).all()
    assert arrays["indices"].tolist() == list(range(10))
    text = capsys.readouterr().out
    assert "10 test images" in text and "random init" in text and "step 7" in text
    files = [place / "run/evaluation_knn.json", place / "run/evaluation_knn.npz"]
    assert text.endswith(f"written: {files[0]}, {files[1]}\n") and all(file.is_file() for file in files)


def test_both_evaluations_extract_once(place, monkeypatch):
    calls = []
    original = subjects.extract_features
    monkeypatch.setattr(subjects, "extract_features", lambda *a, **o: calls.append(1) or original(*a, **o))
    evaluate(place, "config.EVALUATION={name: knn, k: [3]}")
    assert len(calls) == 4  # two networks, two sets
    evaluate(place, "config.EVALUATION={name: linear, costs: [0.01, 0.1]}")
    assert len(calls) == 4
    assert read(place, "linear")[0]["subjects"]["trained"]["details"]["cost"] in (0.01, 0.1)
    files = sorted(file.name for file in (place / "run/features").iterdir())
    assert len(files) == 6
    checkpoint(place / "run", step=9, seed=5)
    evaluate(place, "config.EVALUATION={name: knn, k: [3]}")
    assert len(calls) == 6  # the new weights only
    assert read(place)[0]["step"] == 9
    assert len(list((place / "run/features").iterdir())) == 6  # features of step 7 are gone


def test_results_repeat(place):
    evaluate(place, "config.EVALUATION={name: knn, k: [3]}")
    first, arrays = read(place)
    shutil.rmtree(place / "run/features")
    torch.manual_seed(99)
    evaluate(place, "config.EVALUATION={name: knn, k: [3]}")
    second, again = read(place)
    assert first["subjects"]["random init"]["metrics"] == second["subjects"]["random init"]["metrics"]
    assert all((arrays[key] == again[key]).all() for key in arrays)


def test_without_a_test_set_a_share_is_held_out(place, capsys):
    evaluate(place, "config.EVALUATE.holdout=0.25", probe_test=None)
    record, arrays = read(place)
    assert record["data"]["held_out_of_train"] is True
    assert (record["data"]["train_images"], record["data"]["test_images"]) == (18, 6)
    assert np.bincount(arrays["labels"]).tolist() == [3, 3]
    assert "held out of the training images" in capsys.readouterr().out
    evaluate(place, "config.EVALUATION={name: linear, costs: [0.01]}", "config.EVALUATE.holdout=0.25", probe_test=None)
    assert (read(place, "linear")[1]["indices"] == arrays["indices"]).all()


def test_remarks_name_their_subjects(place, capsys):
    evaluate(place, "config.EVALUATION={name: knn, k: [90]}")
    assert read(place)[0]["notices"][1:] == ["trained, random init, raw pixels: k=90 uses all 24 training images"]
    assert "note: trained, random init, raw pixels: k=90" in capsys.readouterr().out


def test_no_floors(place):
    evaluate(place, "config.EVALUATE.floors=false")
    assert list(read(place)[0]["subjects"]) == ["trained"]


def test_a_given_file_of_weights(place):
    folder = checkpoint(place / "other", step=30, seed=3)
    evaluate(place, f"config.EVALUATE.weights={folder / 'backbone.safetensors'}", "config.EVALUATE.floors=false")
    assert read(place)[0]["step"] == 30
    evaluate(place, f"config.EVALUATE.weights={folder}", "config.EVALUATE.floors=false")
    assert read(place)[0]["weights"]["path"] == str(folder / "backbone.safetensors")


def test_the_architecture_is_that_of_the_weights(place, capsys):
    evaluate(place, "config.MODEL.TRUNK.width=0.25", "config.EVALUATE.floors=false")
    assert "not MODEL.TRUNK" in capsys.readouterr().out
    (place / "run/checkpoints/step_00000007/backbone.json").unlink()
    bare = place / "run/checkpoints/step_00000007/backbone.safetensors"
    with pytest.raises(UserError, match="do not fit the model"):
        evaluate(place, "config.MODEL.TRUNK.width=0.25", f"config.EVALUATE.weights={bare}")


def test_weights_from_elsewhere_are_pointed_to_the_importer(place, monkeypatch):
    """The command that is told brings them in, and they are measured."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "extra_scripts"))
    import import_backbone

    torch.manual_seed(1)
    tensors = ResNet(1, depth=10, width=0.125, stem="small").state_dict()
    foreign = place / "my net.pth"
    torch.save({"state_dict": {**tensors, "fc.weight": torch.zeros(2, 3)}}, foreign)
    with pytest.raises(UserError, match=r"what network are the weights .* of\?") as caught:
        evaluate(place, f"config.EVALUATE.weights={foreign}", "config.MODEL.TRUNK=null")
    assert "import_backbone.py --weights '" in str(caught.value) and "{name: resnet, depth: 50}" in str(caught.value)
    with pytest.raises(UserError, match=r"1 of the file are not used: fc.weight") as caught:
        evaluate(place, f"config.EVALUATE.weights={foreign}")
    (line,) = [text.strip() for text in str(caught.value).splitlines() if text.startswith("    ")]
    command = shlex.split(line)
    assert command[:2] == ["python", "extra_scripts/import_backbone.py"] and command[-1] == "models/my_net"
    monkeypatch.chdir(place)
    assert import_backbone.main([*command[2:], "--channels", "1"]) == 0
    assert evaluate(place, f"config.EVALUATE.weights={place / 'models/my_net'}") == 0


def test_skipped_images_are_counted(place):
    (place / "test/dark/002.png").write_bytes((place / "test/dark/002.png").read_bytes()[:90])
    evaluate(place, "config.EVALUATION={name: knn, k: [3]}")
    record, arrays = read(place)
    assert record["data"]["test_images"] == 9 and next(iter(record["data"]["skipped"])).endswith("test/dark/002.png")
    assert arrays["indices"].tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]


def test_other_normalisation_than_in_training_is_said(place, capsys):
    checkpoint(place / "run", step=8, mean=[0.3])
    evaluate(place, "config.EVALUATE.floors=false")
    assert "as in its training" not in capsys.readouterr().out  # nobody asked for anything else
    before = sorted((place / "run/features").iterdir())
    evaluate(place, "config.EVALUATE.floors=false", "config.DATA.PROBE_TRAIN.mean=[0.5]")
    said = "brought to the network as in its training: mean (0.3), not the (0.5) of DATA.PROBE_TRAIN"
    assert said in capsys.readouterr().out
    assert before == sorted((place / "run/features").iterdir())  # the same images, looked at in the same way


@pytest.mark.parametrize("role", ["probe_train", "probe_test"])
def test_images_without_labels(place, role):
    photos(place / "flat", classes=("only",))
    with pytest.raises(UserError, match="have no labels, and an evaluation needs them"):
        evaluate(place, **{role: place / "flat"})


def test_strange_test_class(place):
    photos(place / "strange", per_class=2, classes=("dark", "violet"))
    with pytest.raises(UserError, match="violet"):
        evaluate(place, probe_test=place / "strange")


def test_nothing_trained_yet(place):
    shutil.rmtree(place / "run")
    with pytest.raises(UserError, match=r"holds no checkpoint to evaluate. Train first"):
        evaluate(place)
    with pytest.raises(UserError, match="neither a file of weights, nor a checkpoint"):
        evaluate(place, "config.EVALUATE.weights=/nowhere/backbone.safetensors")


def test_images_come_in_as_many_channels_as_the_network_takes(place, capsys):
    assert RECORD["channels"] == 1
    checkpoint(place / "run", step=8, channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    evaluate(place)
    assert "channels (3), not the (1) of DATA.PROBE_TRAIN" in capsys.readouterr().out
    checkpoint(place / "run", step=9, channels=3, mean=None, std=None)  # a record that says no more
    evaluate(place, "config.DATA.PROBE_TRAIN.mean=[0.5]", "config.EVALUATE.floors=false")
    assert "mean (0.485, 0.456, 0.406), not the (0.5)" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stop_says_how_to_go_on(place, monkeypatch, capsys, name, status):
    def stopped(self, *given):
        raise KeyboardInterrupt(name)

    with monkeypatch.context() as patched:
        patched.setattr(KnnEvaluation, "__call__", stopped)
        assert evaluate(place) == status
    told = capsys.readouterr()
    assert "measuring trained ..." in told.out and f"{name}: stopped" in told.err and "goes on" in told.err
    assert evaluate(place) == 0
