"""What tests of the data room share."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Indexes of paths go to a folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VISSL_LIKE_CACHE", str(folder))
    return folder


@pytest.fixture
def picture():
    """``picture(number, size)``: a small RGB image, another for every number."""

    def make(number=0, size=(12, 10)):
        values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(values)

    return make


@pytest.fixture
def flat_folder(tmp_path, picture):
    """A folder of ten PNG images; image i is ``picture(i)``."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        picture(number).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def settle():
    """Sets the modification times of a folder and all folders below it back, past what counts as too recent to keep."""

    def back(folder: Path, seconds: float = 60.0) -> None:
        moment = time.time() - seconds
        for place, _, _ in os.walk(folder):
            os.utime(place, (moment, moment))

    return back
