"""Pixels of views against torchvision's functions on PIL images, with the same parameters."""

import random

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from vissl_like.data.transforms.parameters import ViewParameters, sample_generator
from vissl_like.data.transforms.pixels import render
from vissl_like.registry import TRANSFORMS
from vissl_like.utils.errors import SettingsError, UserError

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


GREY_JITTER = {"brightness": 0.8, "contrast": 0.8, "p": 0.8}


def photo(width, height, mode="RGB", seed=0):
    """A smooth image with edges, over the whole range of values."""
    random_values = np.random.default_rng(seed)
    noise = Image.fromarray(random_values.integers(0, 256, (height, width, 3), dtype=np.uint8))
    image = noise.filter(ImageFilter.GaussianBlur(3))
    image = Image.eval(image, lambda value: max(0, min(255, (value - 128) * 6 + 128)))
    return image.convert(mode)


def by_torchvision(image, view):
    size = [view.size, view.size]
    image = F.resized_crop(image, view.top, view.left, view.height, view.width, size, MODES[view.interpolation])
    image = F.hflip(image) if view.flip else image
    image = F.vflip(image) if view.vertical_flip else image
    for name, amount in view.jitter:
        image = ADJUST[name](image, amount)
    image = F.to_grayscale(image, len(image.getbands())) if view.grayscale else image
    image = image.filter(ImageFilter.GaussianBlur(view.blur)) if view.blur is not None else image
    image = F.solarize(image, 128) if view.solarize else image
    return F.pil_to_tensor(image).numpy()


def multi_crop(channels=3, **options):
    return TRANSFORMS.get("multi_crop")(channels, **options)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_whole_views_equal_torchvision_bit_for_bit(mode, interpolation):
    colour = {"grayscale": 0.3} if mode == "RGB" else {"grayscale": 0, "jitter": GREY_JITTER}
    transform = multi_crop(
        3 if mode == "RGB" else 1,
        views=[{"count": 3, "size": 64, "scale": [0.14, 1]}, {"count": 3, "size": 32, "scale": [0.05, 0.14]}],
        vertical_flip=0.5,
        solarize=0.3,
        interpolation=interpolation,
        **colour,
    )
    seen = set()
    for index, size in enumerate([(150, 100), (64, 64), (31, 200), (9, 7), (300, 280)] * 4):
        image = photo(*size, mode, seed=index)
        before = image.tobytes()
        views = transform.draw(*size, sample_generator(0, 0, index))
        for made, view in zip(transform.render(image, views), views, strict=True):
            expected = by_torchvision(image, view)
            assert made.dtype == np.uint8 and made.flags.c_contiguous and made.shape == expected.shape
            assert np.array_equal(made, expected), view
            seen.update({(k, bool(getattr(view, k))) for k in ("flip", "jitter", "grayscale", "blur", "solarize")})
        assert image.tobytes() == before
    assert len(seen) == (10 if mode == "RGB" else 9)  # every step both done and left out; grey is never made grey


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", list(ADJUST))
def test_single_steps_equal_torchvision(mode, name):
    image = photo(40, 40, mode)
    for amount in (-0.5, -0.2, 0.0, 0.013, 0.5) if name == "hue" else (0.0, 0.3, 1.0, 1.8):
        view = ViewParameters(0, 0, 40, 40, 40, jitter=((name, amount),))
        assert np.array_equal(render(image, view), F.pil_to_tensor(ADJUST[name](image, amount)).numpy()), amount


def test_hue_over_all_colours():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
    square = Image.fromarray(np.resize(colours, (365, 365, 3)))
    for turns in (-0.2, 0.09, 0.37):
        view = ViewParameters(0, 0, 365, 365, 365, jitter=(("hue", turns),))
        assert np.array_equal(render(square, view), F.pil_to_tensor(F.adjust_hue(square, turns)).numpy())


def test_crop_comes_before_resizing():
    """A crop of flat black beside white: nothing of the white may bleed in."""
    image = Image.new("L", (64, 64), 255)
    image.paste(0, (16, 16, 48, 48))
    assert render(image, ViewParameters(16, 16, 32, 32, 7, "bicubic")).max() == 0


def test_swav_is_the_default():
    transform = multi_crop()
    assert transform.sizes == (224, 224, 96, 96, 96, 96, 96, 96) and transform.num_views == 8
    big, small = transform.view_specs
    assert (big.scale, small.scale) == ((0.14, 1.0), (0.05, 0.14)) and big.ratio == (3 / 4, 4 / 3)
    jitter = big.jitter
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p) == (0.8, 0.8, 0.8, 0.2, 0.8)
    assert (big.flip, big.grayscale, big.blur.p, big.blur.sigma, big.solarize) == (0.5, 0.2, 0.5, (0.1, 2.0), 0.0)
    assert big.interpolation == "bilinear" and big.vertical_flip == 0


def test_a_kind_of_view_may_differ_in_colour():
    """DINO: the first global view always blurred, the second seldom, and solarized."""
    transform = multi_crop(
        views=[
            {"count": 1, "size": 32, "scale": [0.4, 1], "blur": {"p": 1.0, "sigma": [0.1, 2]}},
            {"count": 1, "size": 32, "scale": [0.4, 1], "blur": {"p": 0.1, "sigma": [0.1, 2]}, "solarize": 0.2},
            {"count": 2, "size": 16, "scale": [0.05, 0.4], "flip": 0, "jitter": None, "interpolation": "bicubic"},
        ],
        blur=None,
    )
    first, second, local = transform.view_specs
    assert first.blur.p == 1.0 and second.blur.p == 0.1 and local.blur is None
    assert (first.solarize, second.solarize, local.solarize) == (0, 0.2, 0)
    assert local.jitter is None and first.jitter is not None and local.flip == 0 and first.flip == 0.5
    assert local.interpolation == "bicubic" and transform.sizes == (32, 32, 16, 16)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"views": []}, "views is .*at least one"),
        ({"views": [{"count": 1, "size": 32}]}, r"views\[0\] has no scale"),
        ({"views": [{"count": 0, "size": 32, "scale": [0.1, 1]}]}, r"views\[0\]\.count is 0"),
        ({"views": [{"count": 1, "size": 0, "scale": [0.1, 1]}]}, r"views\[0\]\.size is 0"),
        ({"views": [{"count": 1, "size": 32, "scale": [0.5, 0.1]}]}, r"0 < lo <= hi <= 1"),
        ({"views": [{"count": 1, "size": 32, "scale": [0.0, 0.1]}]}, r"views\[0\]\.scale"),
        ({"views": [{"count": 1, "size": 32, "scale": [0.5, 1.1]}]}, r"views\[0\]\.scale"),
        ({"views": [{"count": 1, "size": 32, "scale": 0.5}]}, r"views\[0\]\.scale is 0.5"),
        ({"views": [{"count": 1, "size": 32, "scale": [0.5, 1], "flp": 1}]}, "Did you mean 'flip'"),
        ({"views": [{"count": 1, "size": 32, "scale": [0.5, 1], "flip": 2}]}, r"views\[0\]\.flip is 2"),
        ({"ratio": [2, 1]}, "ratio is"),
        ({"jitter": {"brightnes": 0.4}}, "Did you mean 'brightness'"),
        ({"jitter": {"hue": 0.6}}, r"jitter\.hue is 0.6"),
        ({"jitter": {"contrast": -1}}, r"jitter\.contrast is -1"),
        ({"blur": {"p": 0.5}}, "blur is"),
        ({"blur": {"p": 0.5, "sigma": [2, 1]}}, r"blur\.sigma"),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
        ({"grayscale": float("nan")}, "grayscale is nan"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(SettingsError, match=words):
        multi_crop(**options)


def test_all_problems_come_at_once():
    with pytest.raises(SettingsError) as caught:
        multi_crop(views=[{"count": 0, "size": 0, "scale": [0.5, 2]}], flip=3)
    assert len(caught.value.problems) == 4


def test_colour_options_are_refused_for_grey_images():
    with pytest.raises(SettingsError) as caught:
        multi_crop(1)
    text = " ".join(caught.value.problems)
    assert len(caught.value.problems) == 3 and "set it to 0" in text
    assert all(key in text for key in ("jitter.saturation", "jitter.hue", "grayscale"))
    multi_crop(1, grayscale=0, jitter={"brightness": 0.4, "contrast": 0.4, "saturation": 0, "p": 0.8})


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 300), (75, 50), (50, 75), (33, 200), (32, 32)])
@pytest.mark.parametrize("edge", [(32, 36), (32, 32), (24, 33)])
def test_center_equals_torchvision(size, edge, interpolation):
    cut, resize = edge
    image = photo(*size)
    expected = tv.Compose([tv.Resize(resize, MODES[interpolation]), tv.CenterCrop(cut)])(image)
    transform = TRANSFORMS.get("center")(3, size=cut, resize=resize, interpolation=interpolation)
    (made,) = transform(image, random.Random(0))
    assert transform.num_views == 1 and transform.sizes == (cut,)
    assert np.array_equal(made, F.pil_to_tensor(expected).numpy())


def test_center_options_and_thin_strips():
    assert TRANSFORMS.get("center")(1, size=40, resize=None).resize == 40
    with pytest.raises(UserError, match="below the size 40"):
        TRANSFORMS.get("center")(3, size=40, resize=39)
    strip = Image.new("L", (20_000, 1), 7)  # as a whole it would become 20 million pixels
    (made,) = TRANSFORMS.get("center")(1, size=224, resize=1000)(strip, random.Random(0))
    assert made.shape == (1, 224, 224) and (made == 7).all()


def test_every_transform_documents_its_options():
    described = list(TRANSFORMS.components())
    assert {"center", "multi_crop"} <= {entry.name for entry in described}
    for entry in described:
        assert entry.summary and all(option.doc for option in entry.options.values()), entry.name
