import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "dev" / "bench"))

from seeds import main


def run(folder, seed, trained, floor, indices=None, method="swav", left_out=None):
    folder.mkdir()
    labels = np.zeros(len(trained), dtype=np.int64)
    indices = np.arange(len(trained)) if indices is None else np.asarray(indices)
    subjects = {"trained": {"slug": "trained"}, "raw pixels": {"slug": "raw_pixels"}}
    record = {"subjects": subjects, "settings": {"SEED": seed}, "step": 40}
    record["weights"] = {"backbone": {"method": method, "arch": "resnet"}}
    (folder / "evaluation_knn.json").write_text(json.dumps(record))
    arrays = {
        "indices": indices,
        "labels": labels,
        "correct_trained": np.array(trained, dtype=bool),
        "correct_raw_pixels": np.array(floor, dtype=bool),
        "indices_trained": indices,
        "indices_raw_pixels": indices,
    }
    arrays.pop(left_out, None)
    np.savez(folder / "evaluation_knn.npz", **arrays)
    return str(folder)


def test_table_by_hand(tmp_path, capsys):
    floor = [1, 1, 0, 0]
    folders = [run(tmp_path / "a", 0, [1, 1, 1, 0], floor), run(tmp_path / "b", 1, [1, 1, 1, 1], floor)]
    assert main([*folders, "--evaluations", "knn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("**knn** of swav, top-1 in percent, 4 test images, seeds 0, 1, weights of step 40, 40")
    assert lines[2] == "| features | seed 0 | seed 1 | mean ± sd | trained - this [95 %] |"
    assert lines[4] == "| trained | 75.0 | 100.0 | 87.5 ± 17.7 |  |"
    assert lines[5].startswith("| raw pixels | 50.0 | 50.0 | 50.0 ± 0.0 | +37.5 [")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"seed": 0}, "must differ in their seed"),
        ({"seed": 1, "indices": [0, 1, 2, 9]}, "other test images"),
        ({"seed": 1, "method": "dino"}, "another recipe than {first}: method is dino, not swav"),
        ({"seed": 1, "left_out": "correct_raw_pixels"}, "does not say which images were right"),
    ],
)
def test_runs_that_do_not_fit(tmp_path, capsys, second, message):
    folders = [run(tmp_path / "a", 0, [1] * 4, [0] * 4)]
    folders.append(run(tmp_path / "b", trained=[1] * 4, floor=[0] * 4, **second))
    assert main([*folders, "--evaluations", "knn"]) == 1
    assert message.format(first=folders[0]) in capsys.readouterr().err


def test_missing_evaluation(tmp_path, capsys):
    folder = run(tmp_path / "a", 0, [1], [0])
    assert main([folder]) == 1
    assert "no complete linear evaluation" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["evaluation_knn.json", "evaluation_knn.npz"])
def test_damaged_evaluation(tmp_path, capsys, name):
    folder = run(tmp_path / "a", 0, [1], [0])
    (tmp_path / "a" / name).write_text("{")
    assert main([folder, "--evaluations", "knn"]) == 1
    assert "no complete knn evaluation" in capsys.readouterr().err
