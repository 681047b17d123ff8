import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "dev" / "bench"))

import lightly_methods
import lightly_side
import quality_against_lightly as script
from seeds import Runs, TableError

from vissl_like.config import load_settings, make_plan
from vissl_like.utils.errors import UserError

TRANSFORM = {
    "name": "multi_crop",
    "views": [{"count": 2, "size": 28, "scale": [0.3, 1.0]}, {"count": 4, "size": 20, "scale": [0.1, 0.4]}],
    "flip": 0.5,
    "vertical_flip": 0.0,
    "jitter": {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1, "p": 0.8},
    "grayscale": 0.2,
    "blur": None,
    "solarize": 0.0,
}


def runs(name, trained):
    floor = np.zeros_like(trained, dtype=bool)
    correct = {"trained": np.array(trained, dtype=bool), "random init": floor, "raw pixels": floor}
    return Runs(name, "swav", correct, list(range(len(trained))), [9] * len(trained))


def test_row_by_hand():
    good, bad = [[1, 1, 1, 1], [1, 1, 1, 0]], [[1, 1, 0, 0], [1, 0, 0, 0]]
    tables = {name: {"ours": runs(name, good), "lightly": runs(name, bad)} for name in ("knn", "linear")}
    cells = script.row("quick/x", tables, {"ours": [100.0, 110.0], "lightly": [250.0, 250.0]}).strip("| ").split(" | ")
    assert cells[:4] == ["quick/x", "0 1", "87.5 ± 17.7", "37.5 ± 17.7"]
    assert cells[4].startswith("+50.0 [") and cells[5:7] == ["0.0 ± 0.0", "0.0 ± 0.0"]
    assert cells[-2:] == ["105 ± 7", "250 ± 0"]
    head, rule = (line.strip("|").split("|") for line in script.header().splitlines())
    assert len(head) == len(rule) == len(cells)


def test_scores_of_different_images_are_refused():
    tables = {name: {"ours": runs(name, [[1, 1]]), "lightly": runs(name, [[1, 1, 0]])} for name in ("knn", "linear")}
    with pytest.raises(TableError, match="scores of"):
        script.row("x", tables, {"ours": [1.0], "lightly": [1.0]})


def test_commands_share_the_settings():
    given = ["config=quick/x", "config.SEED=3"]
    ours = script.train_command("ours", Path("a"), given, "other")
    theirs = script.train_command("lightly", Path("b"), given, "other")
    assert ours[0] == sys.executable and "config.OUTPUT_DIR=a" in ours and "config.ENGINE=train" in ours
    assert theirs[0] == "other" and theirs[-3:] == ["b", *given] and set(given) < set(ours)
    scored = script.evaluate_command("lightly", Path("b"), given, "knn")
    assert "config.EVALUATE.weights=b/backbone.safetensors" in scored and "config=benchmark/knn" in scored
    assert not any("weights" in word for word in script.evaluate_command("ours", Path("a"), given, "knn"))


def test_a_step_runs_once(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.3: pass\nopen({!r}, 'a').write('x')"
    command = [sys.executable, "-c", burn.format(str(tmp_path / "count"))]
    seconds = script.once(tmp_path / "a", "train", command)
    assert 0.25 < seconds < 10
    assert script.once(tmp_path / "a", "train", command) == pytest.approx(seconds, abs=0.06)
    assert (tmp_path / "count").read_text() == "x"
    with pytest.raises(script.StepError, match="other settings"):
        script.once(tmp_path / "a", "train", [*command, "more"])


def test_a_failing_step_shows_its_last_lines(tmp_path):
    with pytest.raises(script.StepError, match=r"(?s)exit status 3.*the reason"):
        script.once(tmp_path, "train", [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])
    assert not (tmp_path / "train.json").exists()


def test_missing_lightly(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lightly", None)  # an import of it fails
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    assert script.main(["--config", "quick/fashion_mnist", "config.SEED=1"]) == 2
    assert "pip install lightly" in capsys.readouterr().err
    assert lightly_side.main([str(tmp_path), "config=quick/fashion_mnist"]) == 2
    assert "pip install lightly" in capsys.readouterr().err


def test_views_for_lightly():
    views = lightly_methods.view_options(TRANSFORM)
    assert (views["sizes"], views["counts"], views["scales"]) == ([28, 20], [2, 4], [(0.3, 1.0), (0.1, 0.4)])
    shared = views["shared"]
    strengths = [shared["cj_strength"] * shared[key] for key in ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")]
    assert strengths == pytest.approx([0.4, 0.3, 0.2, 0.1]) and shared["cj_prob"] == 0.8
    assert lightly_methods.view_options({**TRANSFORM, "jitter": None})["shared"]["cj_prob"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"blur": {"p": 0.5, "sigma": [0.1, 2.0]}},
        {"solarize": 0.1},
        {"views": TRANSFORM["views"][:1]},
        {"views": [{"count": 2, "size": 28, "scale": [0.3, 1.0], "solarize": 0.2}, TRANSFORM["views"][1]]},
        {"name": "center"},
    ],
)
def test_views_that_lightly_cannot_make(change):
    with pytest.raises(UserError, match="lightly's side of the comparison needs"):
        lightly_methods.view_options({**TRANSFORM, **change})


def test_optimizer_has_the_numbers_of_the_settings():
    model = torch.nn.Linear(3, 2)
    section = {"name": "adamw", "base_lr": 1.0, "weight_decay": 0.3, "beta2": 0.9}
    first, second = lightly_side.make_optimizer(section, model, 0.01).param_groups
    assert first["params"] == [model.weight] and second["params"][0] is model.bias
    assert (first["weight_decay"], second["weight_decay"], first["lr"]) == (0.3, 0.0, 0.01)
    assert first["betas"] == (0.9, 0.9)
    optimizer = lightly_side.make_optimizer({"name": "sgd", "momentum": 0.7}, model, 0.1)
    assert len(optimizer.param_groups[0]["params"]) == 2 and optimizer.defaults["momentum"] == 0.7
    with pytest.raises(UserError, match="only sgd and adamw"):
        lightly_side.make_optimizer({"name": "larc"}, model, 0.1)


@pytest.mark.parametrize(("kind", "norms"), [("tensor", [1.0, 0.5]), ("whole", [3 / 9.25**0.5, 0.5 / 9.25**0.5])])
def test_clipping(kind, norms):
    class Train:
        clip_norm, clip = 1.0, kind

    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for parameter, value in zip(parameters, (3.0, 0.5), strict=True):
        parameter.grad = torch.tensor([value])
    lightly_side.clip(parameters, Train)
    assert [parameter.grad.item() for parameter in parameters] == pytest.approx(norms, rel=1e-4)


class Halving:
    """A method that lightly has no part in: pulls one weight to zero."""

    def __init__(self, settings, trunk, plan, normalize):
        self.transform = lambda image: [torch.zeros(1)]
        self.encoder, self.trained, self.seen = trunk, trunk, []

    def loss(self, views, progress):
        return sum(parameter.square().sum() for parameter in self.trained.parameters())

    def before_update(self, progress):
        self.seen.append(progress.step)

    def after_update(self, progress):
        self.seen.append(-progress.step)


def test_loop_and_written_encoder(tmp_path, monkeypatch):
    fake = type(sys)("lightly")
    fake.__version__ = "0"
    monkeypatch.setitem(sys.modules, "lightly", fake)
    made = []
    monkeypatch.setitem(lightly_methods.METHODS, "swav", lambda *given: made.append(Halving(*given)) or made[-1])
    given = ["config=quick/synthetic", "config.SEED=5", "config.TRAIN.length=5 steps", "config.DATA.WORKERS=0"]
    assert lightly_side.main([str(tmp_path), *given]) == 0
    assert made[0].seen == [0, 0, 1, -1, 2, -2, 3, -3, 4, -4]
    record = json.loads((tmp_path / "backbone.json").read_text())
    settings = load_settings(given).resolved
    assert record["arch"] == "resnet" and record["step"] == make_plan(settings, 64, 1, "cpu", False, 1).total_steps == 5
    from safetensors.torch import load_file

    assert load_file(tmp_path / "backbone.safetensors").keys() == made[0].encoder.state_dict().keys()
