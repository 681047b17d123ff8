"""Shared by all tests."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for tests/processes.py, also in spawned processes
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Index caches of tests never land in the user's cache folder."""
    monkeypatch.setenv("VISSL_LIKE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
