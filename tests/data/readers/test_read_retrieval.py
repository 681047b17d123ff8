import copy

import pytest

from vissl_like.data.readers.retrieval import read_retrieval
from vissl_like.utils.errors import UserError

TRUTH = {
    "imlist": ["d0", "d1", "d2", "d3"],
    "qimlist": ["q0", "q1"],
    "gnd": [
        {"bbx": [1.5, 0, 5, 4], "easy": [2], "hard": [0, 3], "junk": [1]},
        {"easy": [], "hard": [], "junk": []},
    ],
}


@pytest.fixture
def tree(tmp_path, put):
    put("set/gnd.json", TRUTH)
    for name in TRUTH["imlist"] + TRUTH["qimlist"]:
        put(f"set/jpg/{name}.jpg")
    return tmp_path / "set"


def test_reads(tree):
    for path in (tree, tree / "gnd.json"):
        found = read_retrieval(path)
        assert found.database == [str(tree / "jpg" / f"d{number}.jpg") for number in range(4)]
        first, second = found.queries
        assert first.image == str(tree / "jpg/q0.jpg") and first.box == (1.5, 0.0, 5.0, 4.0)
        assert [group.tolist() for group in (first.easy, first.hard, first.junk)] == [[2], [0, 3], [1]]
        assert second.box is None and second.hard.shape == (0,) and second.hard.dtype == "int64"


def test_images_elsewhere(tree, tmp_path):
    (tree / "jpg").rename(tmp_path / "photos")
    with pytest.raises(UserError, match="no 'jpg' in"):
        read_retrieval(tree)
    assert len(read_retrieval(tree, tmp_path / "photos").database) == 4


def test_missing_images_are_named(tree):
    (tree / "jpg/d1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 4 images do not exist in .*jpg':\n  d1\n"):
        read_retrieval(tree)
    (tree / "jpg/d1.png").write_bytes((tree / "jpg/d0.jpg").read_bytes())
    (tree / "jpg/q1.jpg").unlink()
    with pytest.raises(UserError, match="1 of 2 images"):
        read_retrieval(tree)


@pytest.mark.parametrize("place", ["gnd_roxford5k.pkl", "."])
def test_pickles_are_not_read(tmp_path, place):
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(b"cos\nsystem\n(S'touch bad'\ntR.")
    with pytest.raises(UserError, match=r"is a pickle.*\n  python extra_scripts/convert_revisited_ground_truth.py"):
        read_retrieval(tmp_path / place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("gnd"), "has no 'gnd'"),
        (lambda t: t["gnd"].pop(), "'gnd' of .* is 1 entries, and 'qimlist' names 2 queries"),
        (lambda t: t.update(gnd={}), "'gnd' of .* is dict"),
        (lambda t: t.update(imlist="d0"), "'imlist' of .* is not a list of names"),
        (lambda t: t["imlist"].append("d0"), "names 'd0' twice"),
        (lambda t: t["imlist"].append("../x"), "'../x' is not named relative to"),
        (lambda t: t["gnd"][0]["hard"].append(4), r"'hard' of query 0 .* has 4; .* from 0 to 3"),
        (lambda t: t["gnd"][0]["easy"].append(-1), "has -1"),
        (lambda t: t["gnd"][0]["easy"].append(0.0), r"has 0\.0"),
        (lambda t: t["gnd"][0]["easy"].append(True), "has True"),
        (lambda t: t["gnd"][0]["junk"].append(2), "the image 2 in 'easy' and in 'junk'"),
        (lambda t: t["gnd"][0]["hard"].append(3), "the image 3 in 'hard' and in 'hard'"),
        (lambda t: t["gnd"][1].pop("junk"), "query 1 .* has no 'junk'"),
        (lambda t: t["gnd"][1].update(junk=None), "'junk' of query 1 .* is not a list"),
        (lambda t: t["gnd"][0].update(bbx=[5, 0, 1, 4]), "'bbx' of query 0"),
        (lambda t: t["gnd"][0].update(bbx=[1, 2, 3]), "'bbx' of query 0"),
    ],
)
def test_wrong_ground_truth(tree, put, change, message):
    truth = copy.deepcopy(TRUTH)
    change(truth)
    put("set/gnd.json", truth)
    with pytest.raises(UserError, match=message):
        read_retrieval(tree)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"gnd\.json' does not exist\. Expected: <root>/gnd\.json"):
        read_retrieval(tmp_path)
