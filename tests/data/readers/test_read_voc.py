import numpy as np
import pytest

from vissl_like.data.readers.voc import VOC_CLASSES, discover_classes, read_voc_boxes, read_voc_labels, read_voc_masks
from vissl_like.utils.errors import UserError

MAIN = "VOCdevkit/VOC2007/ImageSets/Main"


def xml(*objects, size=(6, 4)):
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        f"{''.join(objects)}</annotation>"
    )


def thing(name, box, difficult="0", more=""):
    left, top, right, bottom = box
    return (
        f"<object><name>{name}</name><truncated>1</truncated><difficult>{difficult}</difficult><bndbox><xmax>{right}"
        f"</xmax><xmin>{left}</xmin><ymin>{top}</ymin><ymax>{bottom}</ymax></bndbox>{more}</object>"
    )


PART = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"


@pytest.fixture
def tree(tmp_path, put):
    for name in ("000005", "000007", "000012"):
        put(f"VOCdevkit/VOC2007/JPEGImages/{name}.jpg")
    put(f"{MAIN}/trainval.txt", "000005\n000007\n000012\n")
    put(f"{MAIN}/dog_trainval.txt", "000007  1\n000005 -1\n000012  0\n")  # another order than the split's
    put(f"{MAIN}/cat_trainval.txt", "000005 -1\n000007 -1\n000012  1\n")
    put(f"{MAIN}/val.txt", "000012\n")
    put(f"{MAIN}/bird_val.txt", "000012 1\n")
    put("VOCdevkit/VOC2007/Annotations/000005.xml", xml())
    put("VOCdevkit/VOC2007/Annotations/000007.xml", xml(thing("dog", (1, 1, 6, 4), more=PART)))
    put(
        "VOCdevkit/VOC2007/Annotations/000012.xml",
        xml(thing("cat", (2, 2, 2, 3)), thing("dog", ("3.5", 1, 5, 2), "1")),
    )
    return tmp_path


def test_labels(tree):
    for root in (tree, tree / "VOCdevkit", tree / "VOCdevkit/VOC2007"):
        found = read_voc_labels(root, "trainval")
        assert found.classes == ["cat", "dog"] and found.ids == ["000005", "000007", "000012"]
        assert found.labels.tolist() == [[-1, -1], [-1, 1], [1, 0]] and found.labels.dtype == np.int8
        assert found.images[0] == str(tree / "VOCdevkit/VOC2007/JPEGImages/000005.jpg")
    assert read_voc_labels(tree, "trainval", classes=["dog"]).labels.tolist() == [[-1], [1], [0]]
    assert discover_classes(tree, "val") == ["bird"]


def test_the_twenty_classes():
    assert len(VOC_CLASSES) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_boxes(tree):
    found = read_voc_boxes(tree, "trainval")
    none, dog, both = found.images
    assert found.classes == ["cat", "dog"]
    assert none.boxes.shape == (0, 4) and none.labels.shape == (0,) and none.difficult.shape == (0,)
    # The whole image of 6 x 4 pixels is 1, 1, 6, 4 in the file; boxes of parts are left alone.
    assert dog.boxes.tolist() == [[0, 0, 6, 4]] and dog.labels.tolist() == [1] and (dog.width, dog.height) == (6, 4)
    assert both.boxes.tolist() == [[1, 1, 2, 3], [2.5, 0, 5, 2]] and both.labels.tolist() == [0, 1]
    assert both.difficult.tolist() == [False, True] and both.truncated.tolist() == [True, True]
    assert read_voc_boxes(tree, "trainval", classes=["dog", "cat"]).images[2].labels.tolist() == [1, 0]


def test_masks(tree, put):
    with pytest.raises(UserError, match=r"Segmentation/val\.txt' does not exist"):
        read_voc_masks(tree, "val", year="2007")
    put("VOCdevkit/VOC2007/ImageSets/Segmentation/val.txt", "000012\n")
    put("VOCdevkit/VOC2007/SegmentationClass/000012.png", "x")
    (tree / "VOCdevkit/VOC2007/SegmentationObject").mkdir()
    with pytest.raises(UserError, match=r"1 of 1 files do not exist in .*SegmentationObject':\n  000012\.png"):
        read_voc_masks(tree, "val", year="2007")
    put("VOCdevkit/VOC2007/SegmentationObject/000012.png", "x")
    (found,) = read_voc_masks(tree, "val", year="2007")
    base = tree / "VOCdevkit/VOC2007"
    assert (found.class_mask, found.object_mask, found.image) == tuple(
        str(base / name)
        for name in ("SegmentationClass/000012.png", "SegmentationObject/000012.png", "JPEGImages/000012.jpg")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000005 -1\n000007 1\n", "has no label for 1 of the 3 images of trainval.txt, first '000012'"),
        ("000005 -1\n000007 2\n", "line 2 of .* is '000007 2'; expected 'id label' with 1, 0 or -1"),
        ("000005\n", "line 1 of .* is '000005'"),
        ("000099 1\n", "line 1 of .* names '000099', which trainval.txt does not"),
        ("000005 1\n\n000005 1\n", "line 3 of .* names '000005' for the second time"),
        ("", "class 'dog': .* is empty"),
    ],
)
def test_wrong_labels(tree, put, text, message):
    put(f"{MAIN}/dog_trainval.txt", text)
    with pytest.raises(UserError, match=message):
        read_voc_labels(tree, "trainval")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml(thing("dgo", (1, 1, 2, 2))), r"an object 'dgo', which is none of the classes\. Did you mean 'dog'\?"),
        (xml(thing("dog", (4, 1, 2, 2))), "has the box 4, 1, 2, 2 in an image of 6 x 4"),
        (xml(thing("dog", (1, 1, 9, 2))), "has the box 1, 1, 9, 2"),
        (xml(thing("dog", (1, 1, "", 2))), "<bndbox/xmax> of .* is ''"),
        (xml(thing("dog", (1, 1, "nan", 2))), "<bndbox/xmax> of .* is 'nan'"),
        ("<annotation/>", "<size/width> of .* is None"),
        ("<annotation>", "is not XML"),
    ],
)
def test_wrong_annotations(tree, put, text, message):
    put("VOCdevkit/VOC2007/Annotations/000005.xml", text)
    with pytest.raises(UserError, match=message):
        read_voc_boxes(tree, "trainval")


def test_missing(tree, put):
    with pytest.raises(UserError, match=r"no file <class>_test\.txt|test\.txt' does not exist"):
        read_voc_labels(tree, "test")
    with pytest.raises(UserError, match=r"no 'VOC2012' in .* Did you mean|no 'VOC2012' in"):
        read_voc_labels(tree, "trainval", year="2012")
    with pytest.raises(UserError, match="horse_trainval"):
        read_voc_labels(tree, "trainval", classes=["horse"])
    (tree / "VOCdevkit/VOC2007/Annotations/000007.xml").unlink()
    with pytest.raises(UserError, match=r"1 of 3 files do not exist in .*Annotations':\n  000007\.xml"):
        read_voc_boxes(tree, "trainval")
    (tree / "VOCdevkit/VOC2007/JPEGImages/000012.jpg").unlink()
    with pytest.raises(UserError, match="1 of 3 images do not exist"):
        read_voc_labels(tree, "trainval")
    put(f"{MAIN}/trainval.txt", "000005 1\n")
    with pytest.raises(UserError, match="the line '000005 1', and an id a line is expected"):
        read_voc_labels(tree, "trainval")
    put(f"{MAIN}/trainval.txt", "000005\n000005\n")
    with pytest.raises(UserError, match="names 1 images more than once"):
        read_voc_labels(tree, "trainval")
