import fake_packages as fake
import numpy as np
import picture_sources as script
import pytest
from PIL import Image
from prepare_emoji import PrepareError


def test_split_is_the_hash_of_the_key():
    # printf 1F401 | md5sum | cut -c1-8 and so on; below 40000000 is for validation.
    assert script.stable_hash("1F401") == 0xEA8513F2 and script.stable_hash("1F410") == 0x2402AB78
    assert (script.split_of("1F401"), script.split_of("1F410")) == ("train", "val")


def test_drawings(tmp_path):
    rows = [
        fake.row("1F468-200D-2642-FE0F", "person", skins=["1F3FB"]),
        fake.row("1F402", without=["apple", "twitter"]),
    ]
    fake.emoji(tmp_path, rows)
    found = script.drawings(tmp_path, toned=True)
    assert [(one.vendor, one.code) for one in found if one.vendor != "twitter"] == [
        ("apple", "1F468-200D-2642-FE0F"),
        ("apple", "1F468-200D-2642-FE0F-1F3FB"),
        ("google", "1F468-200D-2642-FE0F"),
        ("google", "1F468-200D-2642-FE0F-1F3FB"),
        ("google", "1F402"),
        ("facebook", "1F468-200D-2642-FE0F"),
        ("facebook", "1F468-200D-2642-FE0F-1F3FB"),
        ("facebook", "1F402"),
    ]
    assert [one.toned for one in found[:2]] == [False, True] and found[1].kind == "person"
    assert {one.concept for one in found[:2]} == {"1F468"}
    assert {one.untoned for one in found[:2]} == {"1F468-200D-2642"}
    assert not any(one.toned for one in script.drawings(tmp_path, toned=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(unified="../x"), "strange code point: '../x'"),
        (lambda row: row.pop("category"), "a row that cannot be understood"),
        (lambda row: row.update(skin_variations={"1F3FB": {"has_img_apple": True}}), "a row that cannot be understood"),
    ],
)
def test_strange_tables(tmp_path, change, message):
    rows = [fake.row("1F401")]
    fake.emoji(tmp_path, rows)
    change(rows[0])
    fake.emoji(tmp_path, rows, images=False)
    with pytest.raises(PrepareError, match=message):
        script.drawings(tmp_path, toned=True)


def test_on_colour():
    image = Image.new("RGBA", (2, 1), (200, 100, 0, 0))
    image.putpixel((1, 0), (200, 100, 0, 255))
    assert np.asarray(script.on_colour(image, (1, 2, 3))).tolist() == [[[1, 2, 3], [200, 100, 0]]]


def test_stamps(tmp_path):
    names = [
        "animals/mammals/cat",
        "animals/mammals/cat_mirror",
        "animals/cartoon/dog",
        "plants/rose_cartoon",
        "plants/a",
    ]
    fake.stamps(tmp_path, [*names, "symbols/x/heart", "vehicles/flat"])
    folder = tmp_path / "unpacked/tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    Image.new("RGBA", (20, 20), (255, 0, 0, 255)).save(folder / "vehicles/flat.png")
    everything = [(one.top, one.sub, one.path.stem) for one in script.stamps(tmp_path, photos_only=False)]
    assert everything == [
        ("animals", "cartoon", "dog"),
        ("animals", "mammals", "cat"),
        ("plants", "plants", "a"),
        ("plants", "plants", "rose_cartoon"),
        ("vehicles", "vehicles", "flat"),
    ]
    # Scaled up to 64 x 64 without new colours, noise of 16 x 12 pixels has too few.
    with pytest.raises(PrepareError, match="there are no stamps in"):
        script.stamps(tmp_path, photos_only=True)
    fake.cutout("a", (90, 90)).save(folder / "plants/b.png")
    assert [one.path.stem for one in script.stamps(tmp_path, photos_only=True)] == ["b"]


def test_photos(tmp_path):
    fake.photos(tmp_path)
    found = script.photos(tmp_path)
    assert len(found) == 70 and found[0].name == "Bridge_by_x.png" and found[-1].name == "grass_x.png"
    assert found[26].parts[-4:] == ("Autumn", "contents", "images", "1280x800.png")
    found[3].unlink()
    with pytest.raises(PrepareError, match="69 of 70 photographs"):
        script.photos(tmp_path)


def test_crops_lie_in_the_photograph(tmp_path):
    ramp = np.zeros((300, 400, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(400) * 255 // 399, (np.arange(300) * 255 // 299)[:, None]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    widths, mirrored = [], []
    rng = np.random.default_rng(3)
    for _ in range(60):
        crop = np.asarray(script.photo_crop(tmp_path / "ramp.png", rng, 32)).astype(float)
        assert crop.shape == (32, 32, 3)
        mirrored.append(crop[0, 0, 0] > crop[0, -1, 0])
        widths.append(abs(crop[0, -1, 0] - crop[0, 0, 0]) / 255 * 400 * 32 / 31 / 300)
    assert 0.28 < min(widths) < 0.45 and 0.85 < max(widths) < 1.02 and 15 < sum(mirrored) < 45
    again = np.asarray(script.photo_crop(tmp_path / "ramp.png", np.random.default_rng(3), 32))
    assert (again == np.asarray(script.photo_crop(tmp_path / "ramp.png", np.random.default_rng(3), 32))).all()
