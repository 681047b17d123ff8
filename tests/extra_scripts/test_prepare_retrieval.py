import fake_packages as fake
import numpy as np
from PIL import Image
from prepare_retrieval import main

from vissl_like.data.readers.retrieval import read_retrieval

ROWS = [
    fake.row("1F468", "person", skins=["1F3FB", "1F3FF"]),
    fake.row("1F468-200D-2640-FE0F", "person"),  # another gender of the first
    fake.row("1F402"),
    fake.row("1F403", without=["twitter"]),  # no query: not all vendors have it
    fake.row("1F3FB", category="Component"),
]


def test_ground_truth(tmp_path, capsys):
    fake.emoji(tmp_path / "packages", ROWS, {("google", "1F403"): ("twitter", "1F402")})
    arguments = ["--out", str(tmp_path / "out"), "--packages", str(tmp_path / "packages")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "3 queries, 20 images in the database; 1 queries with hard and 3 with junk" in printed
    assert "all rights reserved" in printed
    found = read_retrieval(tmp_path / "out")
    names = [path.rpartition("/")[2].removesuffix(".png") for path in found.database]
    assert len(names) == 20 and not any(name.startswith("apple") for name in names)
    man, woman, ox = found.queries
    for query, code in ((man, "1F468"), (woman, "1F468-200D-2640-FE0F"), (ox, "1F402")):
        assert query.image.endswith(f"apple_{code}.png") and query.box == (0, 0, 64, 64)
        assert {names[place] for place in query.easy} == {f"{v}_{code}" for v in ("google", "twitter", "facebook")}
    assert {names[place].split("_")[1] for place in man.hard} == {"1F468-1F3FB", "1F468-1F3FF"} and len(man.hard) == 6
    assert {names[place].split("_")[1] for place in man.junk} == {"1F468-200D-2640-FE0F"} and len(man.junk) == 3
    assert ox.hard.size == 0 and [names[place] for place in ox.junk] == ["google_1F403"]  # the exact copy
    with Image.open(ox.image) as image:
        assert image.mode == "RGB" and (np.asarray(image)[0] == 255).all()
    assert main(arguments) == 0 and "nothing to do" in capsys.readouterr().out
