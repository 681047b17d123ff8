"""The native kernel against torchvision's functions on PIL images, its refusals, and its loops against each other."""

import dataclasses
import importlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from vissl_like.data.transforms import native
from vissl_like.data.transforms.parameters import ViewParameters, sample_generator
from vissl_like.registry import TRANSFORMS
from vissl_like.utils.errors import UserError

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "vissl_like/data/transforms"
NAME = "vissl_like.data.transforms._views"
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


@pytest.fixture
def kernel():
    """The C module."""
    try:
        return importlib.import_module(NAME)
    except ImportError as error:
        pytest.skip(f"the native kernel is not built here: {error}")


@pytest.fixture
def choose(monkeypatch):
    """``choose("0")``: as if the process had been started with that in its environment."""

    def again(value):
        if value is None:
            monkeypatch.delenv(native.ENVIRONMENT_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(native.ENVIRONMENT_VARIABLE, value)
        native._choice.cache_clear()

    yield again
    monkeypatch.undo()
    native._choice.cache_clear()


def by_torchvision(pixels, view):
    image, size = Image.fromarray(pixels), [view.size, view.size]
    image = F.resized_crop(image, view.top, view.left, view.height, view.width, size, MODES[view.interpolation])
    image = F.hflip(image) if view.flip else image
    image = F.vflip(image) if view.vertical_flip else image
    for name, amount in view.jitter:
        image = ADJUST[name](image, amount)
    image = F.to_grayscale(image, len(image.getbands())) if view.grayscale else image
    image = image.filter(ImageFilter.GaussianBlur(view.blur)) if view.blur is not None else image
    image = F.solarize(image, 128) if view.solarize else image
    return F.pil_to_tensor(image).numpy()


def noise(height, width, channels=3, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width, channels=3, seed=0):
    """Like a photo: most neighbours are alike, some are not, all values occur."""
    image = Image.fromarray(noise(height, width, channels, seed)).filter(ImageFilter.GaussianBlur(3))
    return np.asarray(Image.eval(image, lambda value: max(0, min(255, (value - 128) * 6 + 128)))).copy()


def draw(chance, height, width, sizes=(1, 2, 7, 31, 32, 33, 64, 100)):
    crop_height, crop_width = chance.randint(1, height), chance.randint(1, width)
    steps = [
        (name, chance.uniform(-0.5, 0.5) if name == "hue" else chance.choice([0.0, 1.0, chance.uniform(0, 3)]))
        for name in ADJUST
    ]
    chance.shuffle(steps)
    return ViewParameters(
        chance.randint(0, height - crop_height),
        chance.randint(0, width - crop_width),
        crop_height,
        crop_width,
        chance.choice(sizes),
        chance.choice(["bilinear", "bicubic"]),
        chance.random() < 0.5,
        chance.random() < 0.5,
        tuple(steps[: chance.randint(0, 4)]),
        chance.random() < 0.25,
        chance.choice([None, chance.uniform(0.1, 2), chance.uniform(0, 9), 60.0]),
        chance.random() < 0.25,
    )


def memory(views, channels):
    return [np.empty((channels, view.size, view.size), np.uint8) for view in views]


def rendered(kernel, pixels, views, plain=False):
    rows = memory(views, 1 if pixels.ndim == 2 else 3)
    kernel.render_into(pixels, views, rows, native._order_of_passes()[0], plain)
    return rows


PLAIN = ViewParameters(0, 0, 8, 10, 4)
SHAPES = [(1, 1), (1, 300), (300, 1), (2, 3), (40, 30), (150, 100), (64, 64), (400, 90), (90, 400), (375, 500)]


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("channels", [3, 1])
def test_views_equal_torchvision_bit_for_bit(kernel, channels, plain):
    chance = random.Random(channels)
    for number, (height, width) in enumerate(SHAPES * 2):
        pixels = (smooth if number % 3 else noise)(height, width, channels, seed=number)
        before = pixels.copy()
        views = [draw(chance, height, width) for _ in range(6)]
        for view, made in zip(views, rendered(kernel, pixels, views, plain), strict=True):
            if channels == 1:  # colour changes leave grey as it is
                view = dataclasses.replace(
                    view, jitter=tuple(step for step in view.jitter if step[0] in ("brightness", "contrast"))
                )
            assert np.array_equal(made, by_torchvision(pixels, view)), view
        assert np.array_equal(pixels, before)


@pytest.mark.parametrize("interpolation", MODES)
def test_shrinking_and_enlarging_a_lot(kernel, interpolation):
    pixels = smooth(900, 1400)
    crops = [
        (0, 0, 900, 1400),
        (899, 0, 1, 1400),
        (0, 1399, 900, 1),
        (450, 700, 1, 1),
        (3, 5, 890, 20),
        (3, 5, 2, 1390),
    ]
    views = [ViewParameters(*crop, size, interpolation) for crop in crops for size in (1, 3, 150)]
    for view, made in zip(views, rendered(kernel, pixels, views), strict=True):
        assert np.array_equal(made, by_torchvision(pixels, view)), view


def test_the_sizes_of_the_recipes(kernel):
    pixels = smooth(375, 500)
    chance = random.Random(3)
    views = [draw(chance, 375, 500, sizes=(224,)) for _ in range(4)] + [draw(chance, 375, 500, (96,)) for _ in range(4)]
    for view, made in zip(views, rendered(kernel, pixels, views), strict=True):
        assert np.array_equal(made, by_torchvision(pixels, view)), view


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
def test_hue_of_every_kind_of_colour(kernel, plain):
    levels = np.concatenate([np.arange(0, 256, 5), [1, 2, 127, 128, 129, 253, 254]]).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    side = int(len(colours) ** 0.5)
    pixels = colours[-side * side :].reshape(side, side, 3)
    for turns in (-0.5, -0.2, 0.003, 0.1, 0.5):
        view = ViewParameters(0, 0, side, side, side, jitter=(("hue", turns),))
        assert np.array_equal(rendered(kernel, pixels, [view], plain)[0], by_torchvision(pixels, view))


@pytest.mark.slow
def test_hue_of_every_colour(kernel):
    levels = np.arange(256, dtype=np.uint8)
    for red in range(0, 256, 16):
        grid = np.meshgrid(levels[red : red + 16], levels, levels, indexing="ij")
        pixels = np.stack(grid, axis=-1).reshape(1024, 1024, 3)
        view = ViewParameters(0, 0, 1024, 1024, 1024, jitter=(("hue", 0.17),))
        assert np.array_equal(rendered(kernel, pixels, [view])[0], by_torchvision(pixels, view))


def test_only_the_memory_of_the_views_is_written(kernel):
    chance = random.Random(0)
    views = [draw(chance, 60, 50, sizes=(1, 5, 33, 40)) for _ in range(20)]
    sizes = [3 * view.size**2 for view in views]
    buffer = np.full(sum(sizes) + 100 * (len(sizes) + 1), 77, np.uint8)
    begin, rows, between = 100, [], [slice(0, 100)]
    for size in sizes:
        rows.append(buffer[begin : begin + size])
        between.append(slice(begin + size, begin + size + 100))
        begin += size + 100
    pixels = noise(60, 50)
    kernel.render_into(pixels, views, rows, native._order_of_passes()[0], False)
    assert all((buffer[part] == 77).all() for part in between)
    for view, row in zip(views, rows, strict=True):
        assert np.array_equal(row.reshape(3, view.size, view.size), by_torchvision(pixels, view))


def wrong_view(**changes):
    return lambda: (noise(8, 10), [dataclasses.replace(PLAIN, **changes)], [np.zeros((3, 4, 4), np.uint8)])


def wrong_arrays(pixels=None, row=None, views=1):
    def made():
        given = noise(8, 10) if pixels is None else pixels()
        return given, [PLAIN] * views, [np.zeros((3, 4, 4), np.uint8) if row is None else row(given)]

    return made


def read_only(_):
    array = np.zeros((3, 4, 4), np.uint8)
    array.flags.writeable = False
    return array


REFUSED = {
    "crop too low": (wrong_view(top=1), "top of a view is 1"),
    "crop too far right": (wrong_view(left=1), "left of a view is 1"),
    "crop above": (wrong_view(top=-1), "top"),
    "crop far away": (wrong_view(left=10**30), "left"),
    "crop too high": (wrong_view(height=9), "height of a view is 9; it must be a whole number in 1..8"),
    "crop too wide": (wrong_view(width=2**31 + 1), "width"),
    "crop empty": (wrong_view(height=0), "height"),
    "crop of half pixels": (wrong_view(top=0.5), "whole number"),
    "crop of text": (wrong_view(width="4"), "width"),
    "no size": (wrong_view(size=0), "size"),
    "another size": (wrong_view(size=5), r"has 48 bytes; it must be \[3, 5, 5\]"),
    "huge size": (wrong_view(size=10**9), "size"),
    "filter": (wrong_view(interpolation="lanczos"), "lanczos"),
    "no filter": (wrong_view(interpolation=2), "bilinear or bicubic"),
    "blur below 0": (wrong_view(blur=-1.0), "blur"),
    "blur not a number": (wrong_view(blur=float("nan")), "finite"),
    "blur without end": (wrong_view(blur=float("inf")), "finite"),
    "blur too far": (wrong_view(blur=1e8), "blur"),
    "factor not a number": (wrong_view(jitter=(("contrast", float("nan")),)), "contrast"),
    "factor too large": (wrong_view(jitter=(("brightness", 1e300),)), "finite"),
    "shift without end": (wrong_view(jitter=(("hue", float("-inf")),)), "hue"),
    "unknown step": (wrong_view(jitter=(("gamma", 1.0),)), "gamma"),
    "step without factor": (wrong_view(jitter=(("hue",),)), "name, factor"),
    "list of steps": (wrong_view(jitter=[]), "tuple"),
    "too many steps": (wrong_view(jitter=(("hue", 0.1),) * 17), "at most 16"),
    "image of floats": (wrong_arrays(lambda: np.zeros((8, 10, 3), np.float32)), "uint8"),
    "image of signed": (wrong_arrays(lambda: np.zeros((8, 10, 3), np.int8)), "uint8"),
    "image of two channels": (wrong_arrays(lambda: np.zeros((8, 10, 2), np.uint8)), "H, W, 3"),
    "row of pixels": (wrong_arrays(lambda: np.zeros(240, np.uint8)), "H, W, 3"),
    "empty image": (wrong_arrays(lambda: np.zeros((0, 10, 3), np.uint8)), "H, W, 3"),
    "every other row": (wrong_arrays(lambda: noise(16, 10)[::2]), "C-contiguous"),
    "turned image": (wrong_arrays(lambda: noise(10, 8).transpose(1, 0, 2)), "C-contiguous"),
    "backwards": (wrong_arrays(lambda: noise(8, 10)[:, ::-1]), "C-contiguous"),
    "no image": (wrong_arrays(lambda: [[1]]), "array of uint8"),
    "memory of floats": (wrong_arrays(row=lambda _: np.zeros((3, 4, 4), np.float32)), "uint8"),
    "memory read-only": (wrong_arrays(row=read_only), "writable"),
    "memory scattered": (wrong_arrays(row=lambda _: np.zeros((3, 4, 8), np.uint8)[:, :, ::2]), "C-contiguous"),
    "memory grey": (wrong_arrays(row=lambda _: np.zeros((1, 4, 4), np.uint8)), "16 bytes"),
    "memory of the image": (wrong_arrays(row=lambda pixels: pixels.reshape(-1)[8:56]), "overlaps"),
    "more views than memory": (wrong_arrays(views=2), "2 views, but memory for 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused(kernel, case):
    made, message = REFUSED[case]
    pixels, views, rows = made()
    with pytest.raises(ValueError, match=message):
        kernel.render_into(pixels, views, rows, True, False)
    assert not any(row.any() for row in rows if not np.shares_memory(row, pixels))


def test_things_that_are_no_views_are_refused(kernel):
    row = [np.zeros((3, 4, 4), np.uint8)]
    with pytest.raises(AttributeError, match="height"):
        kernel.render_into(noise(8, 10), [object()], row, True, False)
    with pytest.raises(TypeError):
        kernel.render_into(noise(8, 10), (PLAIN,), row, True, False)
    with pytest.raises(TypeError):
        kernel.render_into(noise(8, 10))
    kernel.render_into(noise(8, 10), [], [], True, False)


def test_a_list_that_changes_while_it_is_read(kernel):
    """Reading an attribute may run any code."""
    views, rows = [], [np.zeros((3, 4, 4), np.uint8) for _ in range(3)]

    class Treacherous:
        def __getattr__(self, name):
            views.clear()
            rows.clear()
            return getattr(PLAIN, name)

    kept = list(rows)
    views += [Treacherous(), Treacherous(), Treacherous()]
    pixels = noise(8, 10)
    kernel.render_into(pixels, views, rows, True, False)
    assert all(np.array_equal(row, by_torchvision(pixels, PLAIN)) for row in kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": (0, 0, 9, 10)}, "inside"),
        ({"box": (-1, 0, 8, 10)}, "inside"),
        ({"box": (0, 0, 0, 10)}, "inside"),
        ({"box": (2**31 - 1, 0, 8, 10)}, "inside"),
        ({"whole": (4, 5), "place": (1, 0)}, "inside"),
        ({"place": (0, -1)}, "inside"),
        ({"whole": (2**31 - 1, 6)}, "inside"),
        ({"size": 0}, "inside"),
        ({"size": 5}, "bytes"),
        ({"interpolation": "nearest"}, "nearest"),
    ],
)
def test_wrong_windows_are_refused(kernel, choose, changes, message):
    choose(None)
    right = {"box": (0, 0, 8, 10), "whole": (6, 7), "place": (1, 2), "size": 4, "interpolation": "bilinear"}
    with pytest.raises(ValueError, match=message):
        native.window_into(noise(8, 10), row=np.zeros((3, 4, 4), np.uint8), **{**right, **changes})
    with pytest.raises((OverflowError, TypeError)):
        native.window_into(noise(8, 10), row=np.zeros((3, 4, 4), np.uint8), **{**right, "box": (0, 0, 2**40, 10)})


@pytest.mark.parametrize("value", ["auto", "plain", "0"])
def test_windows_equal_resizing_the_whole(kernel, choose, value):
    choose(value)
    for number, (height, width) in enumerate(SHAPES):
        for channels, interpolation in itertools.product((1, 3), MODES):
            pixels = noise(height, width, channels, seed=number)
            row = np.empty((channels, 20, 20), np.uint8)
            native.window_into(pixels, (0, 0, height, width), (31, 44), (11, 3), 20, interpolation, row)
            image = F.resize(Image.fromarray(pixels), [31, 44], MODES[interpolation])
            assert np.array_equal(row, F.pil_to_tensor(image)[:, 11:31, 3:23].numpy())


def test_threads_at_the_same_time_make_the_same(kernel, choose):
    choose(None)
    pixels = [smooth(200, 260, seed=number) for number in range(8)]
    chance = random.Random(1)
    views = [[draw(chance, 200, 260) for _ in range(6)] for _ in pixels]
    expected = [rendered(kernel, *each) for each in zip(pixels, views, strict=True)]

    def work(number):
        rows = memory(views[number % 8], 3)
        native.render_into(pixels[number % 8], views[number % 8], rows)
        return all(np.array_equal(*pair) for pair in zip(rows, expected[number % 8], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))


def test_other_threads_run_meanwhile(kernel, choose):
    choose(None)
    view = ViewParameters(0, 0, 64, 64, 2000, "bicubic", blur=5.0)
    pixels, rows, said = noise(64, 64), memory([view], 3), []

    def work():
        said.append("begun")
        native.render_into(pixels, [view], rows)
        said.append("ended")

    before = sys.getswitchinterval()
    sys.setswitchinterval(100)  # a thread gives the interpreter away only by itself
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while not said:
            time.sleep(0)
        assert said == ["begun"]
        thread.join()
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [None, "plain", "0"])
def test_transforms_make_the_same_either_way(kernel, choose, value, channels):
    """Of an image and of an array, by the kernel and by Pillow."""
    choose(value)
    small = [{"count": 2, "size": 32, "scale": [0.14, 1]}, {"count": 2, "size": 20, "scale": [0.05, 0.14]}]
    only_grey = {"grayscale": 0.0, "jitter": {"brightness": 0.5, "contrast": 0.5}} if channels == 1 else {}
    multi_crop = TRANSFORMS.get("multi_crop")(channels, views=small, **only_grey)
    center = TRANSFORMS.get("center")(channels, size=24, resize=30)
    assert multi_crop.takes_arrays is center.takes_arrays is (value != "0")
    for index, (height, width) in enumerate([(50, 70), (70, 50), (9, 9), (200, 20)]):
        pixels = smooth(height, width, channels, seed=index)
        for transform in (multi_crop, center):
            views = transform.draw(width, height, sample_generator(0, 0, index))
            rows = memory(views, channels)
            transform.render_into(pixels, views, rows)
            for row, made in zip(rows, transform.render(Image.fromarray(pixels), views), strict=True):
                assert np.array_equal(row, made)
            if transform is multi_crop:
                assert all(np.array_equal(r, by_torchvision(pixels, v)) for r, v in zip(rows, views, strict=True))
    assert not transform_of_its_own().takes_arrays


def transform_of_its_own():
    return importlib.import_module("vissl_like.data.transforms.whole").Longest(3, 8)


def test_render_into_of_a_transform_of_its_own():
    pixels = noise(16, 8)
    row = np.zeros((3, 8, 4), np.uint8)
    transform = transform_of_its_own()
    transform.render_into(pixels, transform.draw(8, 16, random.Random(0)), [row])
    expected = Image.fromarray(pixels)
    expected.thumbnail((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(row, F.pil_to_tensor(expected).numpy())


def test_what_is_in_use_and_why(kernel, choose):
    choose(None)
    assert native.available() and native.why().startswith(f"views are made by the native kernel ({kernel.loops}; ")
    choose("1")
    assert native.available()
    choose("plain")
    assert native.available() and "(plain C; " in native.why()
    choose("0")
    assert not native.available() and native.why() == "views are made by Pillow: VISSL_LIKE_NATIVE=0"
    choose("yes")
    with pytest.raises(UserError, match="'yes'; it can be auto, 0, 1 or plain"):
        native.available()


def test_a_kernel_that_was_not_built(choose, monkeypatch):
    monkeypatch.setitem(sys.modules, NAME, None)
    choose(None)
    assert not native.available() and "was not built" in native.why()
    pixels, rows = noise(8, 10), memory([PLAIN], 3)
    native.render_into(pixels, [PLAIN], rows)
    assert np.array_equal(rows[0], by_torchvision(pixels, PLAIN))
    choose("1")
    with pytest.raises(UserError, match=r"is not there .*Install the package again"):
        native.available()


@pytest.mark.parametrize("first", ["widths", "heights"])
def test_the_order_of_passes_is_that_of_the_installed_pillow(kernel, choose, monkeypatch, first):
    """Older versions always began with the widths; a version that begins with the heights is unknown."""
    original = Image.Image.resize

    def resize(image, size, *given):
        between = (size[0], image.height) if first == "widths" else (image.width, size[1])
        return original(original(image, between, *given), size, *given)

    monkeypatch.setattr(Image.Image, "resize", resize)
    choose(None)
    if first == "heights":
        assert "another order" in native.why()
        return
    assert "widths first, as this Pillow does" in native.why()
    pixels, view = smooth(300, 60), ViewParameters(0, 0, 300, 60, 40, "bicubic")
    rows = memory([view], 3)
    native.render_into(pixels, [view], rows)
    assert np.array_equal(rows[0], by_torchvision(pixels, view))
    by_cost = memory([view], 3)
    kernel.render_into(pixels, [view], by_cost, True, False)
    assert not np.array_equal(rows[0], by_cost[0])


def compiler():
    """The C compiler that Python extensions are built with."""
    command = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(command) or shutil.which("cc") or pytest.skip("there is no C compiler here")


def run_driver(folder, flags, rounds):
    program = folder / "driver"
    command = [
        compiler(),
        *flags,
        "-g",
        "-ffp-contract=off",
        f"-I{SOURCES}",
        str(Path(__file__).with_name("views_driver.c")),
    ]
    built = subprocess.run([*command, "-o", str(program), "-lm"], capture_output=True, text=True, timeout=300)
    if "sanitize" in " ".join(flags) and built.returncode and "asan" in built.stderr:
        pytest.skip(f"the compiler has no sanitizers: {built.stderr[-200:]}")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program), "5", str(rounds)], capture_output=True, text=True, timeout=600)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert (done.returncode, done.stdout) == (0, f"{rounds} rounds agree\n"), done.stdout + done.stderr[-3000:]


def test_loops_for_this_processor_equal_the_plain_ones(tmp_path):
    run_driver(tmp_path, ["-O1"], 400)


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    run_driver(tmp_path, ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], 4000)


@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
def test_building_with_and_without_a_compiler(tmp_path, works):
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "vissl_like", tmp_path / "vissl_like", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    environment = {**os.environ, "CC": compiler() if works else "/bin/false"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert bool(list(tmp_path.rglob("_views*.so"))) is works
    if works:
        code = (
            "import vissl_like; from vissl_like.data.transforms import native; print(vissl_like.__file__, native.why())"
        )
        asked = {**os.environ, "PYTHONPATH": str(tmp_path), native.ENVIRONMENT_VARIABLE: "1"}
        said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=asked, capture_output=True, text=True)
        assert str(tmp_path) in said.stdout and "native kernel" in said.stdout, said.stderr
