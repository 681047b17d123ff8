"""A light run of dev/fuzz.py: readers of files and settings do, or refuse clearly, whatever they are given."""

import importlib
import logging
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")
DEV = Path(__file__).parents[2] / "dev"
INPUTS = {"settings": 20, "overrides": 20, "lists": 80, "arrays": 60, "index": 80, "tar": 100, "manifest": 60}


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(DEV))
    logging.disable(logging.CRITICAL)
    yield importlib.import_module("fuzz")
    logging.disable(logging.NOTSET)
    for name in ("fuzz", "fuzz_readers"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", INPUTS)
def test_nothing_crashes_a_reader(fuzz, name, tmp_path):
    found = fuzz.run(fuzz.targets(tmp_path)[name], INPUTS[name])
    assert not found.crashes, "\n".join(f"{value!r}\n{trace}" for value, trace in found.crashes.values())
    assert found.outcomes.total() >= INPUTS[name]
    assert found.outcomes["refused"] > 0 or name == "manifest"  # whose damage is returned, not raised


def test_a_crash_is_found(fuzz, tmp_path):
    target = fuzz.targets(tmp_path)["tar"]

    def fragile(data):
        if b"0.png" in data:
            raise ZeroDivisionError("a mistake")

    found = fuzz.run(target._replace(read=fragile), 50)
    (place,) = found.crashes
    assert place.startswith("ZeroDivisionError at") and found.outcomes["crashed"] > 0 and found.outcomes["read"] > 0
