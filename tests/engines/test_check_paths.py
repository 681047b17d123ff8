"""``--check`` looks for what an evaluation or a suite is to read, without torch."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from small_run import checkpoint, photos

import vissl_like
from vissl_like.engines import cli

ROOT = Path(vissl_like.__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", per_class=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "VOCdevkit").mkdir()
    folder = checkpoint(tmp_path / "run")
    (tmp_path / "bare").mkdir()
    (tmp_path / "net.safetensors").write_bytes((folder / "backbone.safetensors").read_bytes())
    return tmp_path


def check(capsys, *arguments):
    status = cli.main(["--check", "config=benchmark/knn", *arguments])
    found = capsys.readouterr()
    return status, found.out + found.err


SVM = ["config=benchmark/svm"]
PROBE = "config.DATA.PROBE_TRAIN=photos"


@pytest.mark.parametrize("weights", ["run", "run/checkpoints/step_00000007", "net.safetensors"])
def test_everything_is_there(place, capsys, weights):
    status, said = check(capsys, PROBE, f"config.EVALUATE.weights={weights}")
    assert (status, said) == (0, "The settings are valid. The weights and the data are there.\n")


def test_what_is_missing_is_told_together(place, capsys):
    status, said = check(
        capsys, "config.DATA.PROBE_TRAIN=phots", "config.DATA.PROBE_TEST=a/b", "config.EVALUATE.weights=rum"
    )
    assert status == 2 and "3 problems" in said
    assert "EVALUATE.weights = 'rum': there is no 'rum' in" in said and "Did you mean 'run'?" in said
    assert "DATA.PROBE_TRAIN.path = 'phots'" in said and "Did you mean 'photos'?" in said
    assert "DATA.PROBE_TEST.path = 'a/b': there is no 'a' in" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config.EVALUATE.weights=net.safetensors"], "needs labelled images"),
        ([PROBE, "config.EVALUATE.weights=bare"], "neither a checkpoint's folder"),
        ([PROBE, "config.OUTPUT_DIR=bare"], "OUTPUT_DIR 'bare' holds no checkpoint to evaluate"),
        (
            ["config=benchmark/svm", "config.EVALUATION.path=VOC", "config.EVALUATE.weights=run"],
            "EVALUATION.path = 'VOC'",
        ),
    ],
)
def test_each_kind(place, capsys, arguments, said):
    status, text = check(capsys, *arguments)
    assert status == 2 and said in text and "1 problem in" in text


@pytest.mark.parametrize("name", ["auto", "tar"])
@pytest.mark.parametrize("pattern", ["{00..01}.tar", "{00,01}.tar", "*.tar", "0?.tar", "0[01].tar"])
def test_archives_that_a_pattern_names(place, capsys, name, pattern):
    shards = place / "shards"
    shards.mkdir()
    given = [f"config.DATA.PROBE_TRAIN={{name: {name}, path: '{shards}/{pattern}'}}", "config.EVALUATE.weights=run"]
    status, said = check(capsys, *given)
    assert status == 2 and f"DATA.PROBE_TRAIN.path = '{shards}/{pattern}': " in said
    for number in ("00", "01"):
        with tarfile.open(shards / f"{number}.tar", "w") as archive:
            archive.add(place / "photos/dark/000.png", "0.png")
    assert check(capsys, *given)[0] == 0
    (shards / "01.tar").unlink()
    status, said = check(capsys, *given)
    assert (status, str(shards / "01.tar") in said) == ((2, True) if "{" in pattern else (0, False))


def test_images_that_an_evaluation_does_not_use_may_be_away(place, capsys):
    more = ["config=benchmark/svm", "config.EVALUATION.path=VOCdevkit", "config.EVALUATE.weights=run"]
    assert check(capsys, "config.DATA.PROBE_TRAIN=nowhere", *more)[0] == 0


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"version https://git-lfs", "is text, not weights"), (b"\0\1", "damaged")]
)
def test_weights_that_are_none(place, capsys, content, said):
    (place / "net.safetensors").write_bytes(content)
    status, text = check(capsys, PROBE, "config.EVALUATE.weights=net.safetensors")
    assert status == 2 and "EVALUATE.weights = 'net.safetensors'" in text and said in text
    assert cli.main(["--check", "config=quick/synthetic", "config.MODEL.WEIGHTS.path=net.safetensors"]) == 2
    assert "MODEL.WEIGHTS.path = 'net.safetensors'" in capsys.readouterr().err


def test_folders_without_images(place, capsys):
    status, text = check(capsys, "config.DATA.PROBE_TRAIN=empty", "config.EVALUATE.weights=run")
    assert status == 2 and "DATA.PROBE_TRAIN: " in text and "empty" in text
    for engine in ("train", "full"):
        assert cli.main(["--check", "config=quick/folder", "config.DATA.TRAIN=empty", f"config.ENGINE={engine}"]) == 2
        assert "DATA.TRAIN: " in capsys.readouterr().err
    assert cli.main(["--check", "config=quick/folder", "config.DATA.TRAIN=away"]) == 2
    assert "DATA.TRAIN.path = 'away'" in capsys.readouterr().err
    assert cli.main(["--check", "config=quick/folder", "config.DATA.TRAIN=photos"]) == 0
    assert capsys.readouterr().out == "The settings are valid. The data can be read.\n"


def test_a_training_is_not_asked_for_weights(place, capsys):
    assert cli.main(["--check", "config=quick/synthetic"]) == 0
    assert capsys.readouterr().out == "The settings are valid.\n"


SUITE = """
ENGINE:
  name: suite
  checkpoints:
    one: [config.EVALUATE.weights=run]
    two: [config.EVALUATE.weights=gone]
  entries:
    near: {arguments: [config=benchmark/knn, config.DATA.PROBE_TRAIN=photos]}
    voc: {arguments: [config=benchmark/svm, config.EVALUATION.path=VOCdevkit]}
    lost: {arguments: [config=benchmark/svm, config.EVALUATION.path=away]}
"""


def test_every_entry_of_a_suite(place, capsys):
    (place / "suite.yaml").write_text(SUITE)
    assert cli.main(["--check", "config=suite.yaml"]) == 2
    said = capsys.readouterr().err
    assert "2 problems" in said  # each once, with all that need it
    assert "EVALUATE.weights = 'gone'" in said and "Needed by near, two; voc, two; lost, two." in said
    assert "EVALUATION.path = 'away'" in said and "Needed by lost, one; lost, two." in said
    mended = [
        "config.ENGINE.entries.lost=null",
        "config.ENGINE.checkpoints.two=[config.EVALUATE.weights=net.safetensors]",
    ]
    assert cli.main(["--check", "config=suite.yaml", *mended]) == 0
    assert "2 evaluation(s) of 2 checkpoint(s): the weights and the data are there." in capsys.readouterr().out
    assert cli.main(["--check", "config=suite.yaml", "config.ENGINE.entries.near.arguments=[config=no/such]"]) == 2
    assert "ENGINE.entries.near (one): " in capsys.readouterr().err


def test_without_torch(place):
    (place / "suite.yaml").write_text(SUITE)
    train = "{name: tar, path: 'x/{00..01}.tar'}"
    more = f'config.ENGINE.entries.near.arguments=[config=benchmark/knn, "config.DATA.PROBE_TRAIN={train}"]'
    code = "import sys; from vissl_like.engines import cli; "
    code += "print(cli.main(['--check', 'config=suite.yaml', sys.argv[1]])); "
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{code}sys.exit('torch' in sys.modules)", more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "2\n"
    assert "2 of the 2 archives of 'x/{00..01}.tar' do not exist" in done.stderr
