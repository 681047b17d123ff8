"""Images with objects: from the files' numbers to what a detector is given, by hand."""

import json

import numpy as np
import pytest
import torch
from tiny_objects import coco_tree, voc_tree

from vissl_like.data import processes as loading
from vissl_like.evaluation.detection_data import (
    Sample,
    Samples,
    digest_of,
    joined,
    load,
    mask_digest_of,
    mirrored_boxes,
    read_objects,
    resized_masks,
    seen_size,
)
from vissl_like.evaluation.subjects import Protocol
from vissl_like.plugins import announce_plugins
from vissl_like.records import Skipped
from vissl_like.utils.errors import UserError


def samples(images, sizes=(20,), **changes):
    options = {"masks": False, "learn": False, "seed": 0, **changes}
    return Samples(images, list(sizes), 60, 3, **options)


def test_voc_boxes_count_from_one_and_difficult_ones_are_known(tmp_path):
    images = read_objects("voc", str(voc_tree(tmp_path)), "2007/trainval")
    assert images.classes == ["cat", "dog"] and len(images.files) == 6
    first = images.truth[0]
    # <xmin>3 <ymin>5 <xmax>12 <ymax>14: columns 3 to 12 counted from 1 are 2 to 12 as continuous numbers.
    assert first.boxes[0].tolist() == [2, 4, 12, 14] and first.areas[0] == 100
    assert first.difficult.tolist() == [False, True] and not first.crowd.any()
    sample = samples(images)[0, 0]  # 20 x 40 pixels become 20 x 40
    assert sample.boxes.tolist() == [[2, 4, 12, 14], [20, 2, 36, 18]] and sample.pixels.shape == (3, 20, 40)


def test_sizes_boxes_masks_and_mirrors(tmp_path):
    images = read_objects("coco", str(coco_tree(tmp_path)), "train")
    made = samples(images, sizes=(30,), masks=True)[0, 0]
    # 20 x 40 pixels would become 30 x 60 with 1.5.
    assert made.pixels.shape == (3, 30, 60) and made.size == (20, 40)
    assert made.boxes[0].tolist() == [3, 6, 18, 21]
    assert made.masks is not None and made.masks[0].sum() == 15 * 15 and made.masks[0][6:21, 3:18].all()
    pixels, target = made.to(torch.device("cpu"))
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1
    assert target["labels"].tolist() == [1, 2, 1] and target["masks"].dtype == torch.uint8

    mirrored = {}
    for epoch in range(8):
        sample = samples(images, sizes=(20,), masks=True, learn=True)[epoch, 0]
        mirrored[bool(sample.boxes[0, 0] != 2)] = sample
    plain, seen = mirrored[False], mirrored[True]
    assert plain.boxes.tolist() == [[2, 4, 12, 14], [20, 2, 36, 18]]  # the crowd is left out
    assert seen.boxes.tolist() == [[28, 4, 38, 14], [4, 2, 20, 18]]
    assert (seen.pixels == plain.pixels[:, :, ::-1]).all() and (seen.masks == plain.masks[:, :, ::-1]).all()


def test_pieces_by_hand():
    assert seen_size(500, 375, 600, 1000) == (800, 600)
    assert seen_size(1000, 250, 600, 1000) == (1000, 250)  # the longer side limits
    assert mirrored_boxes(np.array([[1.0, 2, 4, 5]]), 10).tolist() == [[6, 2, 9, 5]]
    mask = np.array([[[1, 0], [0, 1]]], dtype=np.uint8)
    assert resized_masks(mask, 4, 2).tolist() == [[[1, 0], [1, 0], [0, 1], [0, 1]]]


def test_draws_depend_on_epoch_and_row_alone(tmp_path):
    images = read_objects("coco", str(coco_tree(tmp_path)), "train")
    options = {"sizes": (16, 20, 24, 28), "learn": True}
    keys = [(epoch, row) for epoch in range(4) for row in range(3)]
    one, other = samples(images, **options), samples(images, **options)
    first = {key: one[key] for key in keys}
    second = {key: other[key] for key in reversed(keys)}
    assert all((first[key].pixels.shape == second[key].pixels.shape) for key in keys)
    assert all((first[key].boxes == second[key].boxes).all() for key in keys)
    assert len({sample.pixels.shape for sample in first.values()}) == 4


def test_an_unreadable_image_is_replaced_or_named(tmp_path):
    root = coco_tree(tmp_path)
    images = read_objects("coco", str(root), "train")
    broken = images.files[1]
    with open(broken, "wb") as file:
        file.write(b"no image")
    learnt = samples(images, learn=True)[0, 1]
    assert isinstance(learnt, Sample) and (learnt.labels == images.truth[2].labels).all()
    assert [item.path for item in learnt.skipped] == [broken]
    batches = list(load(samples(images), iter([[(0, 0), (0, 1)]]), Protocol(16)))
    assert isinstance(batches[0][1], Skipped) and batches[0][1].path == broken
    for file in images.files:
        with open(file, "wb") as stream:
            stream.write(b"no image")
    with pytest.raises(UserError, match="4 images in a row cannot be read"):
        samples(images, learn=True)[0, 1]


def test_sets_are_joined_and_images_without_objects_left_out(tmp_path):
    root = coco_tree(tmp_path)
    train = read_objects("coco", str(root), "train")
    both = joined([train, read_objects("coco", str(root), "val", train.classes)])
    assert len(both.files) == 7 and len(both.with_objects().files) == 6  # the last of train shows nothing
    assert digest_of(train.truth) != digest_of(both.truth)
    moved = read_objects("coco", str(root), "train")
    assert digest_of(moved.truth) == digest_of(train.truth)
    moved.truth[0].boxes[0, 0] += 1
    assert digest_of(moved.truth) != digest_of(train.truth)


def rewritten(root, change):
    """The training set after a change to its first annotation."""
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    change(content["annotations"][0])
    file.write_text(json.dumps(content))
    return read_objects("coco", str(root), "train")


def test_masks_of_the_same_area_have_another_digest(tmp_path):
    root = coco_tree(tmp_path)
    plain = read_objects("coco", str(root), "train")
    assert mask_digest_of(plain) == mask_digest_of(read_objects("coco", str(root), "train"))
    found = {mask_digest_of(plain), mask_digest_of(joined([plain, plain]))}
    polygon = plain.outlined(0)[0]["segmentation"][0]
    # The square's corners in another order: the same box and area in the file, another shape.
    turned = rewritten(root, lambda entry: entry.update(segmentation=[[*polygon[2:4], *polygon[:2], *polygon[4:]]]))
    assert digest_of(turned.truth) == digest_of(plain.truth)
    found.add(mask_digest_of(turned))
    for counts in ([5, 795], [6, 794]):
        entry = {"size": [20, 40], "counts": counts}
        found.add(mask_digest_of(rewritten(root, lambda one, entry=entry: one.update(segmentation=entry))))
    assert len(found) == 5


def test_loading_workers_know_the_plugins_and_do_not_outlive_the_program(tmp_path):
    images = read_objects("coco", str(coco_tree(tmp_path)), "train")
    file = tmp_path / "told_plugin.py"
    file.write_text('import pathlib\npathlib.Path(__file__).with_suffix(".told").write_text("loaded")\n')
    protocol = Protocol(16, workers=1, plugins=tuple(announce_plugins([str(file)])), start_method="spawn")
    batches = load(samples(images), iter([[(0, 0)], [(0, 1)], [(0, 2)]]), protocol)
    assert [sample.row for sample in next(batches)] == [0]
    assert (tmp_path / "told_plugin.told").is_file()
    assert [worker for worker in loading._workers if worker.is_alive()]
    assert [batch[0].row for batch in batches] == [1, 2]


def test_mistakes_are_told(tmp_path):
    root = coco_tree(tmp_path)
    with pytest.raises(UserError, match="named by year and split, such as '2007/trainval'"):
        read_objects("voc", str(voc_tree(tmp_path / "voc")), "trainval")
    with pytest.raises(UserError, match=r"instances_tain.json' does not exist.*train"):
        read_objects("coco", str(root), "tain")
    with pytest.raises(UserError, match="has the classes cat, dog, and the first set has owl; they must be the same"):
        read_objects("coco", str(root), "val", ["owl"])
    lacking = rewritten(root, lambda entry: entry.pop("segmentation"))
    for ask in (lambda: lacking.run_lengths(0), lacking.require_masks, lambda: mask_digest_of(lacking)):
        with pytest.raises(UserError, match=r"0\.png: the annotation 1 has no 'segmentation'"):
            ask()
