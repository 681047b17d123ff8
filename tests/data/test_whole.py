import random

import numpy as np
from PIL import Image

from vissl_like.data.transforms.whole import Longest, Squashed


def picture(width, height):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_squashed_keeps_everything():
    halves = Image.new("L", (40, 20))
    halves.paste(200, (20, 0, 40, 20))
    (view,) = Squashed(1, 10)(halves, random.Random(0))
    assert view.shape == (1, 10, 10)
    assert (view[0, :, :4] == 0).all() and (view[0, :, 6:] == 200).all()


def test_squashed_over_a_shorter_side():
    image = picture(90, 60)
    (view,) = Squashed(3, 16, resize=20)(image, random.Random(0))
    expected = image.resize((30, 20), Image.Resampling.BILINEAR).resize((16, 16), Image.Resampling.BILINEAR)
    assert (view == np.asarray(expected).transpose(2, 0, 1)).all()


def test_longest_side_shrinks_and_never_grows():
    transform = Longest(3, 32)
    assert transform(picture(64, 48), random.Random(0))[0].shape == (3, 24, 32)
    assert transform(picture(20, 31), random.Random(0))[0].shape == (3, 31, 20)
    image = picture(64, 48)
    expected = image.copy()
    expected.thumbnail((32, 32), Image.Resampling.LANCZOS)
    assert (transform(image, random.Random(0))[0] == np.asarray(expected).transpose(2, 0, 1)).all()
    assert image.size == (64, 48)
