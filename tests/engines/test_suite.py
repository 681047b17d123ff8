import json
import os
import re
import shutil
import signal
import time

import pytest
import torch
from small_run import RECORD, checkpoint, photos, settings

from vissl_like.engines import evaluate
from vissl_like.engines.suite import SuiteEngine
from vissl_like.evaluation import subjects
from vissl_like.evaluation.knn import KnnEvaluation
from vissl_like.evaluation.linear import LinearEvaluation
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.utils.errors import SettingsError

KNN = ["config.EVALUATION={name: knn, k: [3]}"]
LINEAR = ["config.EVALUATION={name: linear, costs: [0.01]}"]


@pytest.fixture
def place(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "test", per_class=5, seed=1)
    checkpoint(tmp_path / "one")
    checkpoint(tmp_path / "two", seed=5)
    return tmp_path


def suite(place, entries, **options):
    base = settings(place / "suite", "config.ENGINE=evaluate", probe_train=place / "train", probe_test=place / "test")
    checkpoints = {"one": [f"config.EVALUATE.weights={place / 'one'}"], "two": str(place / "two")}
    options = {"checkpoints": checkpoints, **options}
    return SuiteEngine(base, entries={name: {"arguments": entry} for name, entry in entries.items()}, **options)


def cells(place):
    return json.loads((place / "suite/results.json").read_text())["cells"]


@pytest.fixture
def counted(monkeypatch):
    calls = []
    for kind in (KnnEvaluation, LinearEvaluation):
        original = kind.__call__

        def count(self, *given, original=original):
            calls.append(type(self).__name__)
            return original(self, *given)

        monkeypatch.setattr(kind, "__call__", count)
    return calls


def test_every_entry_of_every_checkpoint_once(place, counted, capsys):
    assert suite(place, {"near": KNN, "line": LINEAR}).run() == 0
    # Two networks; their untrained twin and the pixels are the same for both.
    assert sorted(counted) == ["KnnEvaluation"] * 4 + ["LinearEvaluation"] * 4
    found = cells(place)
    assert [(cell["entry"], cell["checkpoint"]) for cell in found] == [
        ("near", "one"),
        ("near", "two"),
        ("line", "one"),
        ("line", "two"),
    ]
    assert list(found[0]["subjects"]) == ["trained", "random init", "raw pixels", "majority class"]
    assert found[0]["subjects"]["raw pixels"] == found[1]["subjects"]["raw pixels"]
    text = (place / "suite/results.md").read_text()
    assert text.count("\n| one ") == text.count("\n| two ") == text.count("\n| raw pixels ") == 2
    assert "## All\n| entry | counts | " in text and "## Ahead of [95 %]" in text
    page = (place / "suite/report.html").read_text()
    assert "4 of 4 done" in page and "data:image/png" in page
    said = capsys.readouterr().out
    assert text[: text.index("## near")].strip() in said and f"all measures: {place / 'suite/results.md'}" in said
    lines = [line for line in said.splitlines() if line.startswith("[")]
    assert lines[0] == "[1/4] near, one ..." and lines[1].startswith("[1/4] near, one, ") and "trained " in lines[1]
    assert lines[6] == "[4/4] line, two ..." and len(lines) == 8
    suite(place, {"near": KNN, "line": LINEAR}).run()
    assert len(counted) == 8  # nothing again
    assert cells(place) == found


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped_and_started_again(place, counted, monkeypatch, capsys, name, status):
    whole = suite(place, {"near": KNN, "line": LINEAR})
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def stop(*_):
        try:
            signal.raise_signal(getattr(signal, name))  # to this thread: of two to the process, either may come first
            time.sleep(5)
        finally:
            signal.raise_signal(signal.SIGTERM)  # the launcher's, which comes with it

    monkeypatch.setattr(LinearEvaluation, "__call__", stop)
    assert whole.run() == status
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    said = capsys.readouterr().err
    assert f"{name}: stopped in [3/4] line, one. 2 of 4 are finished; nothing that is finished is lost" in said
    assert "The same command goes on from there." in said
    monkeypatch.undo()
    assert len(cells(place)) == 2 and "2 of 4 done" in (place / "suite/report.html").read_text()
    kept = {file: file.stat().st_mtime_ns for file in (place / "suite/results").iterdir()}
    assert suite(place, {"near": KNN, "line": LINEAR}).run() == 0
    assert all(file.stat().st_mtime_ns == written for file, written in kept.items())
    assert len(cells(place)) == 4


def test_a_signal_that_is_taken_already_is_left_alone(place, monkeypatch):
    """A job on a cluster has to know of it, to go back into the queue."""
    heard = []

    def note(number, frame):
        heard.append(number)
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(LinearEvaluation, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    before = signal.signal(signal.SIGTERM, note)
    try:
        assert suite(place, {"line": LINEAR}).run() == 143 and heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_stopped_before_anything_leaves_what_an_earlier_suite_found(place, monkeypatch, capsys):
    suite(place, {"near": KNN}).run()
    monkeypatch.setattr(LinearEvaluation, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert suite(place, {"line": LINEAR}).run() == 130
    assert "0 of 2 are finished" in capsys.readouterr().err and len(cells(place)) == 2


def test_changed_weights_images_labels_or_options_are_measured_again(place, counted):
    entries = {"near": KNN}
    suite(place, entries).run()
    assert len(counted) == 4
    checkpoint(place / "two", step=9, seed=8)
    suite(place, entries).run()
    assert len(counted) == 5
    shutil.move(place / "test/dark/000.png", place / "test/light/900.png")
    suite(place, entries).run()
    assert len(counted) == 9
    suite(place, {"near": ["config.EVALUATION={name: knn, k: [5]}"]}).run()
    assert len(counted) == 13


def test_what_cannot_run_does_not_keep_others_from_running(place, capsys):
    missing = [*KNN, f"config.DATA.PROBE_TEST={place / 'nowhere'}"]
    shutil.copytree(place / "one", place / "suite")
    assert suite(place, {"lost": missing, "near": KNN}, checkpoints=None).run() == 2
    found = cells(place)
    assert "nowhere" in found[0]["problem"] and found[1]["problem"] is None
    captured = capsys.readouterr()
    assert "1 of 2 could not be run" in captured.err and "lost, checkpoint: not possible" in captured.out
    assert "nowhere" in (place / "suite/report.html").read_text()


def test_the_one_checkpoint_of_the_settings(place):
    shutil.copytree(place / "one", place / "suite")
    assert suite(place, {"near": KNN}, checkpoints=None).run() == 0
    assert cells(place)[0]["checkpoint"] == "checkpoint"


def test_figures_from_elsewhere_stand_beside(place):
    engine = suite(place, {"near": KNN}, checkpoints={"one": [f"config.EVALUATE.weights={place / 'one'}"]})
    engine.entries["near"]["references"] = {"a paper": 74.5}
    engine.run()
    text = (place / "suite/results.md").read_text()
    assert re.search(r"\| reported: a paper \| +74\.5 \|", text) and "| a paper 74.5 |" in text
    assert cells(place)[0]["references"] == {"a paper": 74.5}


def test_mistakes_of_all_entries_are_told_before_anything_runs(place, counted):
    wrong = {"a": ["config.EVALUATION.k=[0]"], "b": ["config=no/such"], "c": KNN}
    with pytest.raises(SettingsError) as caught:
        suite(place, wrong).run()
    assert "ENGINE.entries.a (one): EVALUATION.k" in str(caught.value)
    assert "ENGINE.entries.b (two): " in str(caught.value)
    assert not counted and not (place / "suite/results.json").exists()
    with pytest.raises(SettingsError, match=r"ENGINE\.entries is empty"):
        SuiteEngine(suite(place, {}).loaded, entries={"gone": None}).run()


def test_names_and_arguments_that_would_mislead(place):
    weights = [f"config.EVALUATE.weights={place / 'one'}"]
    mistaken = {"a b": [*KNN, "config.OUTPUT_DIR=elsewhere"], "a-b": [*KNN, "config.ENGINE=train"]}
    with pytest.raises(SettingsError) as caught:
        suite(place, mistaken, checkpoints={"raw pixels": weights, "chance": weights, "\u6570\u636e": weights}).run()
    text = str(caught.value)
    assert "'raw pixels' is what a floor is called" in text and "'chance' is what a floor is called" in text
    assert "names the same folder as 'a b'" in text and "has none of them" in text
    assert "config.OUTPUT_DIR=elsewhere has no effect here, only on the command line" in text
    assert "config.ENGINE=train has no effect" in text


def test_weights_that_are_read_in_another_way_are_others(place, counted):
    """One file, two networks in it: what counts is what was loaded."""
    tensors = {}
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        net = ResNet(1, depth=10, width=0.125, stem="small")
        tensors |= {f"{name}.{key}": value for key, value in net.state_dict().items()}
    torch.save(tensors, place / "both.pth")
    (place / "both.json").write_text(json.dumps({**RECORD, "mean": [0.5], "std": [0.25]}))
    chosen = {
        name: [
            f"config.EVALUATE.weights={place / 'both.pth'}",
            f"config.MODEL.WEIGHTS.prefix={name}.",
            "config.MODEL.WEIGHTS.allow_unused=['*']",
        ]
        for name in ("student", "teacher")
    }
    assert suite(place, {"near": KNN}, checkpoints=chosen).run() == 0
    assert len(counted) == 4  # both, untrained, pixels


def test_features_outlive_a_suite_that_has_all_results(place, monkeypatch):
    suite(place, {"near": KNN}).run()
    suite(place, {"near": KNN}).run()
    monkeypatch.setattr(subjects, "extract_features", None)  # would fail
    assert suite(place, {"near": KNN, "line": LINEAR}).run() == 0


def test_every_checkpoint_beside_its_floors_and_the_first(place):
    suite(place, {"near": KNN}).run()
    one, two = cells(place)
    assert list(one["differences"]) == ["random init", "raw pixels", "majority class"]
    assert list(two["differences"]) == ["random init", "raw pixels", "majority class", "one"]
    top1 = {name: found["metrics"]["top1"] for name, found in two["subjects"].items()}
    top1["one"] = one["subjects"]["trained"]["metrics"]["top1"]
    for name, found in two["differences"].items():
        # The same ten images on both sides: the difference of the means is the mean of the differences.
        assert found["difference"] == pytest.approx(top1["trained"] - top1[name])
        assert found["low"] <= found["difference"] <= found["high"]


def test_other_images_are_not_compared(place):
    photos(place / "more", per_class=5, seed=2)
    chosen = {name: [f"config.EVALUATE.weights={place / name}"] for name in ("one", "two")}
    chosen["two"].append(f"config.DATA.PROBE_TEST.path={place / 'more'}")
    suite(place, {"near": KNN}, checkpoints=chosen).run()
    assert "one" not in cells(place)[1]["differences"]


def test_every_number_says_how_it_was_made(place):
    suite(place, {"near": [*KNN, "config.EVALUATE.image_size=12"]}).run()
    cell = cells(place)[0]
    assert cell["settings"]["EVALUATE"]["image_size"] == 12 and cell["settings"]["EVALUATION"]["k"] == [3]
    assert len(cell["weights"]["sha256"]) == 64 and cell["data"]["train"]["path"] == str(place / "train")
    assert cell["subjects"]["trained"]["written"].endswith("Z") and cell["subjects"]["trained"]["versions"]["torch"]


def test_results_that_cannot_be_kept_are_no_failure(place):
    (place / "suite").mkdir()
    (place / "suite/results").write_text("in the way")
    assert suite(place, {"near": KNN}).run() == 0
    assert any("is not kept" in text for text in cells(place)[0]["notices"])


def test_an_edited_protocol_is_measured_again(place, counted, monkeypatch):
    suite(place, {"near": KNN, "line": LINEAR}).run()
    assert len(counted) == 8
    original = evaluate.code_digest
    monkeypatch.setattr(evaluate, "code_digest", lambda kind: "edited" if kind is KnnEvaluation else original(kind))
    suite(place, {"near": KNN, "line": LINEAR}).run()
    assert len(counted) == 12 and counted[8:] == ["KnnEvaluation"] * 4


def test_entries_as_jobs_of_their_own(place, counted, capsys):
    entries = {"near": KNN, "line": LINEAR}
    jobs = suite(place, entries).job_arguments()
    assert jobs["near, two"] == ["config.ENGINE.only=['near, two']"]
    assert list(jobs) == ["near, one", "near, two", "line, one", "line, two"]
    for name in jobs:
        assert suite(place, entries, only=[name]).run() == 0
    assert not (place / "suite/results.json").exists()
    measured, _ = len(counted), capsys.readouterr()
    assert suite(place, entries).run() == 0
    assert len(counted) == measured == 8 and len(cells(place)) == 4  # the table alone is made
    with pytest.raises(SettingsError, match="there is no entry 'far'; there are near, one, near, two"):
        suite(place, entries, only=["far"]).run()
