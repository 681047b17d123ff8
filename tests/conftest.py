"""Shared by all tests."""

import os
import signal
import sys
from pathlib import Path

import pytest

# A shell without job control lets what it starts in the background ignore Ctrl-C; tests send that signal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(Path(__file__).parent))  # for tests/processes.py, also in spawned processes
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Index caches of tests never land in the user's cache folder."""
    monkeypatch.setenv("VISSL_LIKE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _own_threads():
    """A test that launches a run in this process leaves the number of torch threads as it was: sums depend on it."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        wanted = before or int(os.environ.get("OMP_NUM_THREADS", 0)) or torch.get_num_threads()
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)
