"""Four orientations of one crop, by Pillow and by the native kernel."""

import random

import numpy as np
import pytest
from PIL import Image

from vissl_like.data.transforms import native
from vissl_like.data.transforms.rotations import Rotations


def photo(channels, seed=0):
    shape = (40, 50) if channels == 1 else (40, 50, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [True, False])
def test_views_are_turns_of_the_first(channels, kernel, monkeypatch):
    if kernel and not native.available():
        pytest.skip("the native kernel is not built")
    monkeypatch.setattr(native, "available", lambda: kernel)
    transform = Rotations(channels, size=16)
    views = transform(Image.fromarray(photo(channels)), random.Random(3))
    assert [view.shape for view in views] == [(channels, 16, 16)] * 4 and transform.num_views == 4
    for turn in range(4):
        for channel in range(channels):
            np.testing.assert_array_equal(views[turn][channel], np.rot90(views[0][channel], turn))
        assert views[turn].flags["C_CONTIGUOUS"] and views[turn].dtype == np.uint8
    assert transform.takes_arrays is kernel
    if kernel:
        rows = [np.empty((channels, 16, 16), np.uint8) for _ in range(4)]
        generator = random.Random(3)
        transform.render_into(photo(channels), transform.draw(50, 40, generator), rows)
        for row, view in zip(rows, views):
            np.testing.assert_array_equal(row, view)


def test_turned_counter_clockwise():
    pixels = np.zeros((20, 20), np.uint8)
    pixels[:10] = 200  # bright above
    views = Rotations(1, size=20, scale=[1.0, 1.0], ratio=[1.0, 1.0], flip=0)(Image.fromarray(pixels), random.Random(0))
    above, left, below, right = (view[0] for view in views)
    assert above[:10].min() == left[:, :10].min() == below[10:].min() == right[:, 10:].min() == 200
    assert above[10:].max() == left[:, 10:].max() == below[:10].max() == right[:, :10].max() == 0


def test_crops_and_mirroring_vary():
    transform = Rotations(3, size=16)
    first = [transform(Image.fromarray(photo(3)), random.Random(seed))[0] for seed in range(20)]
    assert len({view.tobytes() for view in first}) == 20
