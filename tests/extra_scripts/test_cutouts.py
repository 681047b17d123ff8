import io

import cutouts as script
import fake_packages as fake
import numpy as np
import pytest
from cutouts import Garment, Picture
from PIL import Image
from prepare_emoji import PrepareError

RNG = np.random.default_rng


def test_pictures_lose_their_margin(tmp_path):
    fake.cutout("a", (20, 16)).save(tmp_path / "a.png")
    cut = Picture(tmp_path / "a.png").cut_out(RNG(0))
    assert cut.size == (16, 12) and np.asarray(cut)[..., 3].min() == 255
    stream = io.BytesIO()
    fake.cutout("a", (516, 132)).save(stream, "PNG")
    assert Picture(stream.getvalue()).cut_out(RNG(0)).size == (256, 64)  # 512 x 128, halved
    Image.new("RGBA", (5, 4)).save(tmp_path / "empty.png")
    assert Picture(tmp_path / "empty.png").cut_out(RNG(0)).size == (5, 4)


def test_garments():
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[8:20, 6:22] = 200
    pixels[12:14, 12:14] = 0  # a hole is filled
    pixels[1:3, 1:3] = 200  # a loose part is left out
    item = Garment(pixels)
    cut = np.asarray(item.cut_out(RNG(1)))
    assert abs(cut.shape[0] - 48) <= 4 and abs(cut.shape[1] - 64) <= 4
    middle = cut[10:-10, 10:-10]
    assert (middle[..., 3] == 255).all()
    tint = RNG(1).uniform(0.45, 1.0, 3)
    assert np.abs(middle[0, 0, :3] - (60 + 0.76 * 200) * tint).max() < 4
    assert (np.asarray(item.cut_out(RNG(2)))[10, 10] != cut[10, 10]).any()


def test_place():
    ramp = np.zeros((40, 80, 4), dtype=np.uint8)
    ramp[..., 0], ramp[..., 3] = np.arange(80) * 3, 255
    image, mirrored, angles = Image.fromarray(ramp), 0, 0
    for seed in range(40):
        placed = script.place(image, 60, RNG(seed), turn=0)
        assert abs(placed.width - 60) <= 1 and abs(placed.height - 30) <= 1 and placed.mode == "RGBA"
        row = np.asarray(placed)[15, :, 0].astype(int)
        mirrored += row[5] > row[-5]
        assert 0.65 < max(row) / 237 < 1.08
        angles += script.place(image, 60, RNG(seed)).height > 35
    assert 10 < mirrored < 30 and angles > 15
    assert script.place(Image.new("RGBA", (8, 8)), 20, RNG(0)) is None


def test_paste_over_an_edge():
    canvas = Image.new("RGBA", (6, 4), (0, 0, 0, 255))
    image = Image.new("RGBA", (4, 4), (250, 0, 0, 255))
    image.putpixel((3, 2), (250, 0, 0, 100))
    mask = script.paste(canvas, image, -2, 1)
    expected = np.zeros((4, 6), dtype=bool)
    expected[1:, :2] = True
    expected[3, 1] = False  # less than half opaque
    assert (mask == expected).all()
    assert (np.asarray(canvas)[..., 0] == np.where(expected, 250, 0)).sum() == 23 and canvas.getpixel((1, 3))[0] == 98


def garments(folder, prefix):
    labels = np.arange(40, dtype=np.uint8) // (2 if prefix == "train" else 1) % 10
    return np.full((40, 28, 28), 200, dtype=np.uint8), labels


def test_library(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "fashion_mnist", garments)
    rows = [
        fake.row("1F401", "face-smiling"),
        fake.row("1F410", "cat-face"),  # of val, see test_picture_sources
        fake.row("1F402", "face-costume"),
        fake.row("1F403", "transport-ground", name="wheel"),
        fake.row("1F404", "transport-ground", without=["google"]),
        fake.row("1F404-FE0F", "transport-ground"),  # a variant of the same concept
        fake.row("1F405", "drink"),
    ]
    fake.emoji(tmp_path, rows)
    names = [
        "animals/mammals/a",
        "animals/marsupials/b",
        "vehicles/car",
        "vehicles/big/wheel",
        "military/vehicles/tank",
    ]
    fake.stamps(tmp_path, [*names, "military/other/sword", "food/fruit/fig"], (90, 90))
    pools = script.cutout_pools(tmp_path, tmp_path)

    found = {
        split: {
            name: {source: [len(items) for items in concepts] for source, concepts in pool.items()}
            for name, pool in of_split.items()
            if pool
        }
        for split, of_split in pools.items()
    }
    # printf a.png | md5sum | cut -c1-8: 32d3ca5e, b 0a7b8575, car d3e0b775, tank 7fc31d05, fig c77c6519,
    # 1F404 48df696b; below 40000000 is val.
    assert found["val"]["mammal"] == {"stamp": [1, 1]} and found["train"]["fruit"] == {"stamp": [1]}
    assert found["train"]["vehicle"] == {"stamp": [1, 1], "emoji": [7]} and "vehicle" not in found["val"]
    assert found["train"]["face"] == {"emoji": [4]} and found["val"]["face"] == {"emoji": [4]}
    # Every 20th of 40 for train: labels 0, 0; every 10th for val: 0, 0, 0, 0.
    assert found["train"]["garment"] == {"fashion": [1, 1]} and found["val"]["garment"] == {"fashion": [1, 1, 1, 1]}
    assert "insect" not in found["train"] and "shoe" not in found["val"]


def test_without_fashion_mnist(tmp_path):
    with pytest.raises(
        PrepareError, match=r"has no train-images.*python extra_scripts/prepare_fashion_mnist\.py --out"
    ):
        script.fashion_mnist(tmp_path, "train")


def test_pick_takes_every_item():
    pools = {"bird": {"a": [["x", "y"], ["z"]], "b": [["w"]]}}
    rng = RNG(0)
    picked = [script.pick(pools, "bird", rng) for _ in range(400)]
    # Sources are equally likely, then concepts, then items.
    shares = {item: picked.count(item) / 400 for item in "xyzw"}
    assert shares["w"] == pytest.approx(0.5, abs=0.08) and shares["z"] == pytest.approx(0.25, abs=0.08)
    assert shares["x"] == pytest.approx(0.125, abs=0.06) and shares["y"] == pytest.approx(0.125, abs=0.06)
