import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.decode import decode_bytes, decode_file, read_header, to_eight_bits


def saved(tmp_path, image, name, **options):
    path = str(tmp_path / name)
    image.save(path, **options)
    return path


def gradient(size=(40, 30)):
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8))


def test_lossless_rgb_is_exact_and_bytes_are_read_alike(tmp_path):
    path = saved(tmp_path, gradient(), "a.png")
    image = decode_file(path, 3)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(gradient()))
    with open(path, "rb") as file:
        assert np.array_equal(np.asarray(decode_bytes(file.read(), "a", 3)), np.asarray(image))


def test_one_channel_is_the_usual_luma(tmp_path):
    grey = decode_file(saved(tmp_path, Image.new("RGB", (2, 2), (255, 0, 0)), "red.png"), 1)
    assert grey.mode == "L" and np.asarray(grey).tolist() == [[76, 76], [76, 76]]  # 0.299 * 255


def test_grey_is_repeated_for_colour(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 7], [200, 255]], np.uint8)), "grey.png")
    assert np.asarray(decode_file(path, 3))[1, 0].tolist() == [200, 200, 200]
    assert np.asarray(decode_file(path, 1)).tolist() == [[0, 7], [200, 255]]


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 257, 300], [32768, 65000, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(values), name)
    assert Image.open(path).mode.startswith("I")
    # 65535 / 257 = 255; 300 / 257 = 1.17, 32768 / 257 = 127.50, 65000 / 257 = 252.9
    assert np.asarray(decode_file(path, 1)).tolist() == [[0, 1, 1], [128, 253, 255]]
    assert decode_file(path, 3).mode == "RGB"


def test_integers_and_floats_to_eight_bits():
    assert to_eight_bits(np.array([0, 65535], np.int32)).tolist() == [0, 255]
    assert to_eight_bits(np.array([0, 65535], ">u2")).tolist() == [0, 255]
    assert to_eight_bits(np.array([0.0, 0.5, 1.0], np.float32)).tolist() == [0, 128, 255]
    assert to_eight_bits(np.array([0.0, 1.6, 255.0])).tolist() == [0, 2, 255]
    assert to_eight_bits(np.array([0.0, 65535.0])).tolist() == [0, 255]
    for bad in ([-1.0, 0.0], [0.0, 70000.0], [0.0, np.nan]):
        with pytest.raises(ValueError, match="can be scaled"):
            to_eight_bits(np.array(bad))


def test_float_tiff(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0.0, 1.0]], np.float32)), "f.tif")
    assert np.asarray(decode_file(path, 1)).tolist() == [[0, 255]]
    path = saved(tmp_path, Image.fromarray(np.array([[0.0, np.inf]], np.float32)), "g.tif")
    with pytest.raises(UnreadableImage, match="values from 0 to inf"):
        decode_file(path, 1)


def test_cmyk(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "cmyk.jpg", quality=95)
    red, green, blue = np.asarray(decode_file(path, 3))[8, 8]
    assert red > 245 and green < 10 and blue < 10


def test_transparency_is_laid_on_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    rgba.putpixel((1, 0), (10, 20, 30, 0))
    assert np.asarray(decode_file(saved(tmp_path, rgba, "a.png"), 3)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    la = Image.new("LA", (1, 1), (0, 128))  # half of black on white
    assert abs(int(np.asarray(decode_file(saved(tmp_path, la, "la.png"), 1))[0, 0]) - 127) <= 1


def test_palette_with_and_without_transparency(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert np.asarray(decode_file(saved(tmp_path, palette, "p.png"), 3)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    path = saved(tmp_path, palette, "t.png", transparency=1)
    assert np.asarray(decode_file(path, 3)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_one_bit(tmp_path):
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert np.asarray(decode_file(saved(tmp_path, image, "b.png"), 1)).tolist() == [[0, 255]]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_exif_rotation_is_applied(tmp_path, name):
    image = Image.new("RGB", (32, 16), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 16, 16))  # the left half is black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees: left becomes top
    pixels = np.asarray(decode_file(saved(tmp_path, image, name, exif=exif), 1))
    assert pixels.shape == (32, 16)
    assert pixels[:14].max() < 40 and pixels[18:].min() > 215


def test_broken_exif_does_not_cost_the_picture(tmp_path):
    path = saved(tmp_path, gradient(), "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert decode_file(path, 3).size == (40, 30)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    path = str(tmp_path / "a.gif")
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.asarray(decode_file(path, 3))[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tif"])
def test_truncated_files_are_refused(tmp_path, name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = saved(tmp_path, noise, name)
    with open(path, "rb") as file:
        data = file.read()
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(UnreadableImage) as caught:
            decode_bytes(data[: int(len(data) * part)], name, 3)
        assert caught.value.path == name and 0 < len(caught.value.reason) <= 160
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_not_an_image(tmp_path):
    with pytest.raises(UnreadableImage, match="empty file"):
        decode_bytes(b"", "zero.jpg", 3)
    with pytest.raises(UnreadableImage, match="not an image"):
        decode_bytes(b"<html>404</html>", "page.jpg", 3)
    with pytest.raises(UnreadableImage, match="No such file"):
        decode_file(str(tmp_path / "gone.jpg"), 3)
    with pytest.raises(UnreadableImage, match="directory"):
        decode_file(str(tmp_path), 3)


def test_postscript_is_not_run():
    with pytest.raises(UnreadableImage, match="not an image"):
        decode_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "a.png", 3)


def test_bombs_are_refused_from_the_header(tmp_path):
    path = saved(tmp_path, Image.new("1", (3000, 2000)), "big.png")
    with pytest.raises(UnreadableImage, match="3000 x 2000 pixels are more than the limit"):
        decode_file(path, 1, max_pixels=5_999_999)
    assert decode_file(path, 1, max_pixels=6_000_000).size == (3000, 2000)
    with open(path, "rb") as file:
        data = bytearray(file.read())
    data[16:24] = struct.pack(">II", 60_000, 60_000)  # the header promises 3.6 billion pixels
    with pytest.raises(UnreadableImage):
        decode_bytes(bytes(data), "bomb.png", 1)


def test_header_only(tmp_path):
    assert read_header(saved(tmp_path, gradient(), "a.jpg")) == ("JPEG", (40, 30))
    (tmp_path / "b.jpg").write_text("hello")
    with pytest.raises(UnreadableImage):
        read_header(str(tmp_path / "b.jpg"))
