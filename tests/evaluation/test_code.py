"""An edited measure is another one, wherever its code lies."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vissl_like.evaluation.code import PACKAGE, code_digest, code_files
from vissl_like.evaluation.detection import DetectionEvaluation


def test_everything_that_a_measure_imports_counts() -> None:
    files = {str(file.relative_to(PACKAGE)) for file in code_files(PACKAGE / "evaluation/detection.py")}
    wanted = {
        "evaluation/detection.py",
        "evaluation/detection_training.py",
        "evaluation/detection_data.py",
        "evaluation/functional/detection.py",
        "evaluation/supervised.py",
        "models/detectors/rcnn.py",
        "data/samplers/shuffled.py",
    }
    assert wanted <= files
    assert not [name for name in files if name.split("/")[0] in ("utils", "distributed", "engines", "trainer")]
    assert code_digest(DetectionEvaluation) == code_digest(DetectionEvaluation)


def _loaded(file: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("own_measure", file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_an_edited_plugin_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.py"
    digests = []
    for number in (1, 2):
        file.write_text(
            f"from vissl_like.evaluation.base import Evaluation\nclass Own(Evaluation):\n    x = {number}\n"
        )
        os.utime(file, ns=(number, number))
        module = _loaded(file)
        monkeypatch.setitem(sys.modules, "own_measure", module)
        digests.append(code_digest(module.Own))
    assert digests[0] != digests[1]
