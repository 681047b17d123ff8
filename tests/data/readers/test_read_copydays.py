import pytest

from vissl_like.data.readers.copydays import read_copydays
from vissl_like.utils.errors import UserError


@pytest.fixture
def tree(tmp_path, put):
    for name in ("200200", "200000", "200100"):
        put(f"original/{name}.jpg")
    for name in ("200101", "200002", "200001"):  # two copies of 2000, one of 2001, none of 2002
        put(f"strong/{name}.jpg")
    for quality in ("5", "15", "100"):
        put(f"jpegqual/{quality}/200100.jpg")
    put("crops/80/200200.jpg")
    return tmp_path


def test_blocks(tree):
    found = read_copydays(tree)
    assert found.originals == [str(tree / "original" / f"200{number}00.jpg") for number in range(3)]
    assert found.distractors == [] and found.database == found.originals
    assert list(found.blocks) == ["strong", "jpegqual/5", "jpegqual/15", "jpegqual/100", "crops/80"]
    strong = found.blocks["strong"]
    assert strong.queries == [str(tree / "strong" / f"{name}.jpg") for name in ("200001", "200002", "200101")]
    assert [positions.tolist() for positions in strong.positives] == [[0], [0], [1]]
    assert [positions.tolist() for positions in found.blocks["crops/80"].positives] == [[2]]


def test_choice_and_other_name_of_a_folder(tree):
    (tree / "jpegqual").rename(tree / "jpeg")
    assert list(read_copydays(tree, blocks=["jpegqual/15", "strong"]).blocks) == ["jpegqual/15", "strong"]
    with pytest.raises(UserError, match=r"no block 'stong'\. Did you mean 'strong'\? It has: strong, jpegqual/5"):
        read_copydays(tree, blocks=["stong"])


def test_distractors(tree, put, tmp_path):
    put("distractors/200000.jpg")  # a name like an original's makes it no positive
    found = read_copydays(tree)
    assert found.database == [*found.originals, str(tree / "distractors/200000.jpg")]
    assert found.blocks["strong"].positives[0].tolist() == [0]
    put("elsewhere/x.png")
    assert read_copydays(tree, distractors=tmp_path / "elsewhere").distractors == [str(tmp_path / "elsewhere/x.png")]
    with pytest.raises(UserError, match=r"distractors: the folder .* does not exist"):
        read_copydays(tree, distractors=tmp_path / "elswhere")


def test_two_originals_of_one_key(tree, put):
    put("original/200001.jpg")
    assert read_copydays(tree).blocks["strong"].positives[0].tolist() == [0, 1]


def test_errors(tree, put):
    put("strong/999900.jpg")
    with pytest.raises(UserError, match=r"1 of 4 images of 'strong' have no original .* 'strong/999900.jpg'"):
        read_copydays(tree)
    (tree / "crops/80/200200.jpg").unlink()
    with pytest.raises(UserError, match=r"no images in .*crops/80'\. Expected: <root>/original"):
        read_copydays(tree, blocks=["crops/80"])
    (tree / "original").rename(tree / "origin")
    with pytest.raises(UserError, match="no 'original' in"):
        read_copydays(tree)


def test_no_blocks(tmp_path, put):
    put("original/200000.jpg")
    with pytest.raises(UserError, match="holds no block of copies"):
        read_copydays(tmp_path)
