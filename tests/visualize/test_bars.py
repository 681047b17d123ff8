import io

from PIL import Image

from vissl_like.visualize.bars import result_bars


def test_every_value_is_told_and_drawn():
    values = {"ours": {"knn": 80.25, "linear": 70.0}, "raw pixels": {"knn": 60.0}}
    picture = result_bars(values, ["raw pixels"])
    assert picture.alt == "Results in percent. ours: knn 80.2, linear 70.0; raw pixels: knn 60.0."
    image = Image.open(io.BytesIO(picture.png)).convert("RGB")
    colours = {colour for _, colour in image.getcolors(image.width * image.height)}
    assert (31, 111, 180) in colours and (156, 163, 175) in colours  # the first blue, the first grey
    assert result_bars({}) is None and result_bars({"ours": {}}) is None


def test_many_networks_and_measures():
    values = {f"net {n}": {f"measure {m}": float(n + m) for m in range(9)} for n in range(14)}
    assert Image.open(io.BytesIO(result_bars(values, [f"net {n}" for n in range(9, 14)]).png)).width > 1000


def test_many_measures_take_rows_not_width():
    """As wide as the page, whatever their number: shrunk to it, a wider chart could not be read."""
    few = {f"net {n}": {f"entry {m}": 50.0 for m in range(3)} for n in range(4)}
    many = {f"net {n}": {f"entry {m}": 50.0 for m in range(22)} for n in range(4)}
    small, large = (Image.open(io.BytesIO(result_bars(values, caption="Said below.").png)) for values in (few, many))
    assert small.width <= large.width < 1600 and large.height > 2 * small.height
    assert result_bars(few, caption="Said below.").caption.endswith("floors in grey. Said below.")
