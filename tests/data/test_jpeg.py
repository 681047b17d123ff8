import io
import random
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

from vissl_like.data import jpeg
from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.decode import bytes_pixels, decode_bytes, decode_file, file_pixels


@pytest.fixture
def fast():
    pytest.importorskip("simplejpeg", reason="needs simplejpeg: pip install 'vissl-like[fast]'")
    return jpeg


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def noisy(width, height, mode="RGB", seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (max(1, height // 4), max(1, width // 4), 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height)).convert(mode)


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 64), (333, 250)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{}, {"quality": 20}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}]
)
def test_pillows_pixels(fast, size, mode, options):
    data = encoded(noisy(*size, mode), **options)
    found = jpeg.decode(data, mode)
    assert found.dtype == np.uint8 and found.flags.c_contiguous and np.array_equal(found, by_pillow(data))
    assert np.array_equal(bytes_pixels(data, "x", {"RGB": 3, "L": 1}[mode]), found)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_are_those_of_decoding_whatever_the_file(fast, tmp_path, channels, mode):
    file = tmp_path / "photo.jpg"
    for turned in (None, 1, 6, 300):
        exif = Image.Exif()
        if turned is not None:
            exif[ExifTags.Base.Orientation] = turned
        file.write_bytes(encoded(noisy(40, 24, mode), exif=exif))
        expected = np.asarray(decode_file(str(file), channels))
        found = file_pixels(str(file), channels)
        assert np.array_equal(found, expected) and found.shape[:2] == ((40, 24) if turned == 6 else (24, 40))
        assert np.array_equal(bytes_pixels(file.read_bytes(), "x", channels), expected)
    noisy(9, 5).save(tmp_path / "photo.png")
    assert np.array_equal(file_pixels(str(tmp_path / "photo.png"), 3), np.asarray(noisy(9, 5)))


def outcome(read, data):
    try:
        return np.asarray(read(data, "x", 3, 50_000)).tobytes()
    except UnreadableImage as error:
        return error.reason


def test_damaged_files_are_refused_or_read_as_pillow_does(fast):
    dice, good, seen = random.Random(0), encoded(noisy(60, 44), quality=90), set()
    for _ in range(400):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        data = bytes(data[: dice.randrange(len(data))] if dice.random() < 0.3 else data)
        expected = outcome(decode_bytes, data)
        assert outcome(bytes_pixels, data) == expected
        seen.add(type(expected))
    assert seen == {str, bytes}  # some were refused, some read


def test_more_bytes_than_an_image_has_are_not_read(fast, tmp_path, monkeypatch):
    file = tmp_path / "photo.jpg"
    file.write_bytes(encoded(noisy(8, 8)))
    with open(file, "r+b") as stream:
        stream.truncate(2**32)  # sparse: takes no room
    monkeypatch.setattr(jpeg, "decode", lambda *_: pytest.fail("four GiB were read"))
    assert np.array_equal(file_pixels(str(file), 3), np.asarray(decode_file(str(file), 3)))


def test_without_simplejpeg_pillow_does_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    jpeg._decoder.cache_clear()
    try:
        assert jpeg.decode(encoded(noisy(8, 8)), "RGB") is None and "pip install" in jpeg.why()
        assert bytes_pixels(encoded(noisy(8, 8)), "x", 3).shape == (8, 8, 3)
    finally:
        jpeg._decoder.cache_clear()


def test_a_decoder_with_other_pixels_is_not_used(monkeypatch, fast):
    import simplejpeg

    original = simplejpeg.decode_jpeg

    def other(data, colour, strict):
        pixels = original(data, colour, strict=strict).copy()
        pixels[0, 0, 0] ^= 1
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", other)
    jpeg._decoder.cache_clear()
    try:
        assert jpeg.decode(encoded(noisy(8, 8)), "RGB") is None and "other pixels" in jpeg.why()
    finally:
        monkeypatch.undo()
        jpeg._decoder.cache_clear()
    assert "by simplejpeg" in jpeg.why()
