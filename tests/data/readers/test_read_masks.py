import numpy as np
import pytest
from PIL import Image

from vissl_like.data.readers.masks import palette, read_mask, write_mask
from vissl_like.utils.errors import UserError


def test_palette():
    colours = np.array(palette()).reshape(256, 3)
    # Published colours of VOC: background, aeroplane, bicycle, bird, ..., tvmonitor, border.
    published = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 20: (0, 64, 128)}
    for index, colour in {**published, 255: (224, 224, 192)}.items():
        assert tuple(colours[index]) == colour
    assert len(np.unique(colours, axis=0)) == 256


def test_round_trip(tmp_path):
    mask = np.arange(12).reshape(3, 4)
    mask[0, 0] = 255
    write_mask(tmp_path / "a.png", mask)
    assert (read_mask(tmp_path / "a.png") == mask).all() and read_mask(tmp_path / "a.png").dtype == np.uint8
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)


def test_what_is_no_mask(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="mode 'RGB'"):
        read_mask(tmp_path / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="which is too many"):
        read_mask(tmp_path / "b.png", max_pixels=15)
    (tmp_path / "c.png").write_bytes(b"x")
    for name in ("c.png", "none.png"):
        with pytest.raises(UserError, match="cannot be read"):
            read_mask(tmp_path / name)
