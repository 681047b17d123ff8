import json
import re
import shutil

import pytest
from small_run import checkpoint, photos, settings

from vissl_like.engines import full
from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.engines.report import ReportEngine
from vissl_like.utils.errors import UserError

STEP = {"kind": "step", "epoch": 1.0, "loss": 3.0, "lr": 0.1, "images_per_s": 50.0, "data_wait": 0.1}
EVENTS = [
    {
        "kind": "run_start", "step": 0, "epoch": 0.0, "time": 1000.0, "total_steps": 20, "trivial_loss": 2.0794,
        "steps_per_epoch": 4, "versions": {"torch": "9.9-test"},
        "plan": {
            "dataset_size": 24, "total_steps": 20, "epochs": 5.0, "images_total": 320, "global_batch": 16,
            "world_size": 1, "peak_lr": 0.1, "precision": "fp32",
        },
    },
    *[{**STEP, "step": step, "time": 1000.0 + step} for step in (5, 10, 15, 20)],
    {"kind": "knn", "step": 20, "epoch": 5.0, "time": 1021.0, "top1": 66.0},
    {"kind": "message", "step": 2, "epoch": 0.5, "time": 1002.0, "level": "warning", "text": "be careful with <these>"},
    {"kind": "run_end", "step": 20, "epoch": 5.0, "time": 1022.0, "stop_reason": None},
]  # fmt: skip


def write_events(folder, events=EVENTS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"kind": "step", "st')


@pytest.fixture
def place(tmp_path):
    photos(tmp_path / "train")
    write_events(tmp_path / "run")
    return tmp_path


def report(place, *more, **sets):
    loaded = settings(place / "run", "config.ENGINE=report", *more, **{"train": place / "train", **sets})
    assert ReportEngine(loaded).run() == 0
    html = (place / "run/report.html").read_text(encoding="utf-8")
    assert "http" not in html and "<script" not in html
    assert all(link.startswith("data:image/png;base64,") for link in re.findall(r'(?:src|href)="([^"]*)"', html))
    return html


def headings(html):
    """``{heading: pictures below it}``."""
    parts = re.split(r"<h2>(.*?)</h2>", html)[1:]
    return {title: body.count("<img ") for title, body in zip(parts[::2], parts[1::2], strict=True)}


def test_a_run_with_labels_and_evaluations(place):
    checkpoint(place / "run", step=20)
    photos(place / "test", per_class=4, seed=1)
    sets = {"probe_train": place / "train", "probe_test": place / "test"}
    EvaluateEngine(settings(place / "run", "config.EVALUATION={name: knn, k: [3]}", **sets)).run()
    (place / "run/settings_given.yaml").write_text("SEED: 123456\n")
    html = report(place, **sets)
    found = headings(html)
    assert found["Curves"] == 4 and found["What the network was given"] == 1
    assert found["Nearest neighbours"] == 1 and found["Map of the features"] == 1
    assert "random init" in html and "majority class" in html and "raw pixels" in html
    assert "be careful with &lt;these&gt;" in html and "9.9-test" in html and "SEED: 123456" in html
    assert "finished: step 20 of 20" in html and "trivial value 2.079" in html
    assert "Coloured by 2 classes" in html and "have the class of their query" in html
    assert "DATA.PROBE_TEST" in html


def test_a_run_without_labels(place):
    checkpoint(place / "run", step=20)
    photos(place / "flat", classes=("only",))
    html = report(place, "config.REPORT.embedding_map=tsne", train=place / "flat")
    found = headings(html)
    assert found["Nearest neighbours"] == 1 and found["Map of the features"] == 1
    assert "Nothing was scored: the settings name no labelled images" in html
    assert "t-SNE" in html and "training photos (DATA.TRAIN)" in html
    assert "Green frames" not in html and "Coloured by" not in html


def test_a_run_that_died_before_its_first_checkpoint(place):
    write_events(
        place / "run", [*EVENTS[:2], {"kind": "error", "step": 5, "time": 1006.0, "error": "E", "reason": "r"}]
    )
    html = report(place)
    assert "The run died at step 5 of 20: E r" in html
    assert headings(html)["Nearest neighbours"] == 0 and "holds no checkpoint" in html


def test_images_that_have_moved(place):
    checkpoint(place / "run", step=20)
    shutil.rmtree(place / "train")
    html = report(place)
    found = headings(html)
    assert found["What the network was given"] == found["Map of the features"] == 0 and found["Curves"] == 4
    assert html.count(str(place / "train")) >= 2


def test_a_checkpoint_alone(place):
    checkpoint(place / "run", step=20)
    (place / "run/events.jsonl").unlink()
    html = report(place, "config.REPORT.sample_crops=0", "config.REPORT.nearest_neighbours=0")
    found = headings(html)
    assert found["Curves"] == 0 and "no step is recorded" in html
    assert found["What the network was given"] == found["Nearest neighbours"] == 0
    assert "REPORT.sample_crops is 0" in html and "REPORT.nearest_neighbours is 0" in html
    assert found["Map of the features"] == 1


def test_neighbours_never_are_the_query_itself(place, monkeypatch):
    from vissl_like.engines import gallery
    from vissl_like.engines import report as module

    checkpoint(place / "run", step=20)
    rows = []
    monkeypatch.setattr(module, "neighbour_rows", lambda *a: rows.extend(gallery.neighbour_rows(*a)) or rows)
    report(place, "config.REPORT.nearest_neighbours=5")
    assert len(rows) == 5
    for row in rows:
        assert len(row.neighbours) == gallery.NEIGHBOURS
        assert row.query.tobytes() not in [photo.tobytes() for photo in row.neighbours]
        assert list(row.similarities) == sorted(row.similarities, reverse=True)


def test_a_damaged_evaluation_is_left_out(place):
    (place / "run/evaluation_knn.json").write_text('{"subjects": {"trained"')
    (place / "run/evaluation_other.json").write_text('{"subjects": {"trained": {}}, "evaluation": "other"}')
    html = report(place)
    assert "<h3>" not in html


def test_a_folder_without_a_run(place):
    loaded = settings(place / "nowhere", "config.ENGINE=report")
    with pytest.raises(UserError, match="holds no run to report on"):
        ReportEngine(loaded).run()


def test_reports_alike_are_written_whole(place):
    checkpoint(place / "run", step=20)
    first, second = report(place), report(place)
    assert re.sub(r"Written .*? from", "", first) == re.sub(r"Written .*? from", "", second)
    assert not [file for file in (place / "run").iterdir() if file.name.endswith(".tmp")]


def engines(monkeypatch, trained=0, failing=()):
    """Replaces the three engines by ones that note their calls."""
    calls = []

    def engine(kind, status):
        class Engine:
            def __init__(self, loaded):
                self.loaded = loaded

            def run(self):
                section = self.loaded.resolved.EVALUATION
                calls.append(kind if kind != "evaluate" else dict(section))
                if kind == "evaluate" and section.name in failing:
                    raise UserError("no")
                return status

        return Engine

    monkeypatch.setattr(full, "TrainEngine", engine("train", trained))
    monkeypatch.setattr(full, "EvaluateEngine", engine("evaluate", 0))
    monkeypatch.setattr(full, "ReportEngine", engine("report", 0))
    return calls


def test_full_trains_evaluates_and_reports(place, monkeypatch):
    calls = engines(monkeypatch)
    loaded = settings(place / "run", "config.EVALUATION={name: knn, k: [5]}", probe_train=place / "train")
    assert full.FullEngine(loaded).run() == 0
    assert calls == ["train", {"name": "knn", "k": [5]}, {"name": "linear"}, "report"]
    assert dict(loaded.resolved.EVALUATION) == {"name": "knn", "k": [5]}  # the given settings are untouched


def test_full_without_labels(place, monkeypatch, capsys):
    calls = engines(monkeypatch)
    assert full.FullEngine(settings(place / "run", train=place / "train")).run() == 0
    assert calls == ["train", "report"] and "No evaluation" in capsys.readouterr().err


def test_full_stops_where_training_stopped(place, monkeypatch):
    calls = engines(monkeypatch, trained=130)
    assert full.FullEngine(settings(place / "run", probe_train=place / "train")).run() == 130
    assert calls == ["train"]


def test_full_reports_although_an_evaluation_is_impossible(place, monkeypatch, capsys):
    calls = engines(monkeypatch, failing=("knn",))
    assert full.FullEngine(settings(place / "run", probe_train=place / "train")).run() == 2
    assert calls[-1] == "report" and {"name": "linear"} in calls
    assert "The knn evaluation is not possible: no" in capsys.readouterr().err
