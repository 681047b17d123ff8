import numpy as np
import pytest
import torch
from PIL import Image
from small_run import checkpoint, photos, settings

from vissl_like.config import load_settings
from vissl_like.engines import attention as module
from vissl_like.engines.attention import AttentionEngine
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.registry import ENGINES
from vissl_like.trainer.checkpoint import CheckpointStore
from vissl_like.trainer.components import build
from vissl_like.utils.errors import UserError

VIT = {"size": "tiny", "patch_size": 8, "image_size": 32, "depth": 2}


@pytest.fixture
def place(tmp_path):
    """Photos and a run with a checkpoint of a vision transformer that was made for 32 pixels."""
    photos(tmp_path / "train")
    torch.manual_seed(0)
    trunk = VisionTransformer(1, **VIT)
    store = CheckpointStore(tmp_path / "run/checkpoints", 5, None, None, say=lambda text, level: None)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    record = {"arch": "vit", "arch_options": VIT, "channels": 1, "step": 40, "mean": [0.5], "std": [0.25]}
    assert store.save(40, {}, {}, trunk.state_dict(), record, {"metrics": {}}) is not None
    return tmp_path


@pytest.fixture
def sheets(monkeypatch):
    """What was drawn: ``(image, attention, share, name)`` each."""
    calls = []
    draw = module.attention_sheet
    monkeypatch.setattr(module, "attention_sheet", lambda *given: calls.append(given) or draw(*given))
    return calls


def run(place, engine="{name: attention}", folder="run", **sets):
    loaded = settings(place / folder, f"config.ENGINE={engine}", **{"train": place / "train", **sets})
    assert build(ENGINES, loaded.resolved.ENGINE, loaded).run() == 0


def written(place):
    files = sorted((place / "run/attention").iterdir())
    for file in files:
        assert Image.open(file).format == "PNG" and min(Image.open(file).size) > 100
    return [file.name for file in files]


def test_four_pictures_at_the_size_of_evaluations(place, sheets, capsys):
    run(place)
    assert written(place) == ["00.png", "01.png", "02.png", "03.png"]
    assert [attention.shape for _, attention, _, _ in sheets] == [(3, 2, 2)] * 4  # EVALUATE.image_size is 16 here
    assert {share for _, _, share, _ in sheets} == {0.6}
    assert all("step 40" in name for *_, name in sheets)
    said = capsys.readouterr().out
    assert "loaded 30/30 tensors" in said and "4 image(s) of DATA.TRAIN, 16 x 16 pixels" in said


def test_another_size_that_is_not_square(place, sheets, capsys):
    """56 x 96 for a network of 32 pixels; the attention is that of the network for just these pixels."""
    run(place, "{name: attention, images: 1, height: 61, width: 96, mass: 0.8}")
    assert written(place) == ["00.png"]
    ((image, found, share, _),) = sheets
    assert image.size == (96, 56) and found.shape == (3, 7, 12) and share == 0.8
    assert "96 x 56 pixels, not 96 x 61: whole patches of 8" in capsys.readouterr().out
    torch.manual_seed(0)
    trunk = VisionTransformer(1, **VIT).eval()
    pixels = (torch.from_numpy(np.asarray(image).copy()).float()[None, None] / 255 - 0.5) / 0.25
    expected = trunk.last_attention(pixels)[0, :, 0, 1:].reshape(3, 7, 12)
    torch.testing.assert_close(torch.from_numpy(found).float(), expected.detach(), rtol=1e-4, atol=1e-6)


def test_proportions_of_the_photo_stay(place, sheets):
    """A disc stays a disc in a wide rectangle."""
    side = np.hypot(*np.mgrid[-50:50, -50:50]) < 20
    (place / "disc").mkdir()
    Image.fromarray((255 * side).astype(np.uint8)).save(place / "disc/disc.png")
    run(place, "{name: attention, height: 48, width: 96}", train=place / "disc")
    where = np.argwhere(np.asarray(sheets[0][0]) > 128)
    high, wide = where.max(axis=0) - where.min(axis=0) + 1
    assert high == pytest.approx(wide, abs=2) and high > 30


def test_images_of_the_test_set_come_first(place, sheets, capsys):
    photos(place / "test", per_class=1, seed=1)
    run(place, probe_train=place / "train", probe_test=place / "test")
    assert len(sheets) == 2 and "2 image(s) of DATA.PROBE_TEST" in capsys.readouterr().out


def test_unreadable_images_are_left_out_and_named(place, capsys):
    for file in sorted((place / "train").rglob("*.png"))[:-1]:
        file.write_bytes(file.read_bytes()[:60])
    run(place, "{name: attention, images: 24}")
    assert written(place) == ["00.png"] and capsys.readouterr().out.count("left out: ") == 23
    sorted((place / "train").rglob("*.png"))[-1].write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the images"):
        run(place)


def test_a_network_without_attention_is_refused(place):
    checkpoint(place / "other", step=5)
    with pytest.raises(UserError, match=r"'resnet' gives no attention maps.*TRUNK.name=vit"):
        run(place, folder="other")


def test_what_cannot_be_drawn_is_said(place):
    with pytest.raises(UserError, match="no room for a patch of 8"):
        run(place, "{name: attention, height: 5}")
    loaded = settings(place / "run", train=place / "train")
    for section in ("TRAIN", "PROBE_TRAIN", "PROBE_TEST"):
        loaded.resolved.DATA._set_flag("readonly", False)
        loaded.resolved.DATA[section] = None
    with pytest.raises(UserError, match="need images"):
        AttentionEngine(loaded).run()
    with pytest.raises(UserError, match="holds no checkpoint"):
        run(place, folder="empty")


def test_weights_that_are_not_finite_are_refused(place, monkeypatch):
    monkeypatch.setattr(module, "class_attention", lambda trunk, image: np.full((3, 2, 2), np.nan))
    with pytest.raises(UserError, match="is not finite"):
        run(place)


def test_options_are_checked_and_the_layer_says_its_defaults(place):
    with pytest.raises(UserError, match=r"ENGINE.mass"):
        settings(place / "run", "config.ENGINE={name: attention, mass: 1.5}", train=place / "train")
    layer = load_settings(["config=quick/synthetic", "config=benchmark/attention"]).resolved.ENGINE
    assert dict(layer) == {"name": "attention", "images": 4, "mass": 0.6}


def test_the_launcher_gives_the_engine_its_options(place):
    from vissl_like.distributed.launch import launch

    engine = "config.ENGINE={name: attention, images: 2, height: 16, width: 24}"
    assert launch(settings(place / "run", engine, train=place / "train")) == 0
    assert written(place) == ["00.png", "01.png"]
