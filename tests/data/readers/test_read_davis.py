import numpy as np
import pytest
from PIL import Image

from vissl_like.data.readers.davis import read_davis
from vissl_like.utils.errors import UserError


@pytest.fixture
def tree(tmp_path, put):
    for video, objects in (("bear", 1), ("two dogs", 3)):
        for frame in range(3):
            put(f"JPEGImages/480p/{video}/{frame:05d}.jpg")
            mask = np.zeros((4, 6), dtype=np.uint8)
            mask[0, : objects if frame == 0 else 6] = np.arange(1, 7)[: objects if frame == 0 else 6]
            mask[3, 3] = 255
            place = tmp_path / f"Annotations/480p/{video}/{frame:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(mask)
            image.putpalette(list(range(256)) * 3)
            image.save(place)
    put("ImageSets/2017/val.txt", "two dogs\nbear\n")
    put("ImageSets/2016/val.txt", "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n")
    return tmp_path


def test_videos(tree):
    dogs, bear = read_davis(tree)
    assert (dogs.name, dogs.num_objects, bear.name, bear.num_objects) == ("two dogs", 3, "bear", 1)
    assert bear.frames == [str(tree / f"JPEGImages/480p/bear/{frame:05d}.jpg") for frame in range(3)]
    assert bear.masks == [str(tree / f"Annotations/480p/bear/{frame:05d}.png") for frame in range(3)]


def test_folder_above(tree, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    (above / "DAVIS").symlink_to(tree)
    assert [video.name for video in read_davis(above)] == ["two dogs", "bear"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: (tree / "ImageSets/2017/val.txt").unlink(), r"val\.txt' does not exist"),
        (lambda tree: (tree / "ImageSets/2017/val.txt").write_text("beer\n"), r"no 'beer' in .* Did you mean 'bear'\?"),
        (lambda tree: (tree / "ImageSets/2017/val.txt").write_text("../x\n"), r"the line '\.\./x'"),
        (lambda tree: (tree / "Annotations/480p/bear/00001.png").unlink(), "1 of 3 frames of 'bear' .*: 00001.png"),
        (lambda tree: (tree / "Annotations").rename(tree / "Masks"), "no 'Annotations' in"),
        (lambda tree: [(tree / f"JPEGImages/480p/bear/0000{n}.jpg").unlink() for n in (1, 2)], "holds 1 frames"),
        (
            lambda tree: Image.new("L", (6, 4), 255).save(tree / "Annotations/480p/bear/00000.png"),
            "first mask of 'bear', .* shows no object",
        ),
        (
            lambda tree: Image.new("RGB", (6, 4)).save(tree / "Annotations/480p/bear/00000.png"),
            "mode 'RGB'",
        ),
    ],
)
def test_errors(tree, change, message):
    change(tree)
    with pytest.raises(UserError, match=message):
        read_davis(tree)


def test_lists_of_files_are_told_apart(tree):
    with pytest.raises(UserError, match="names of videos are expected"):
        read_davis(tree, year="2016")
