"""Which images make up training batches, and what becomes of them."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import MEAN, STD, bench_of, images_of, normalised, trunk

from vissl_like.evaluation.augmentation import Mixing, RandAugmentCrop, random_crop, seeded
from vissl_like.evaluation.labelled_batches import LabelledBatches, LabelledOrder
from vissl_like.evaluation.labelled_images import ChosenImages, draw_share, split_of
from vissl_like.evaluation.subjects import Look, Protocol
from vissl_like.utils.errors import UserError


def batches(dataset, order, *, epochs=2, crop=None, finish=None, **protocol):
    crop = random_crop(3, 8, [0.3, 1.0], 0.5, "bilinear") if crop is None else crop
    how = Protocol(image_size=8, **protocol)
    return LabelledBatches(dataset, crop, Look(3, MEAN, STD), how, order, epochs=epochs, seed=1, finish=finish)


def same(found, other):
    found, other = list(found), list(other)
    assert len(found) == len(other)
    return all(torch.equal(a, b) for one, two in zip(found, other, strict=True) for a, b in zip(one, two, strict=True))


def test_an_epoch_has_every_image_once():
    order = LabelledOrder(10, 4, 0, 1, 3)
    assert (order.steps_per_epoch, order.global_batch) == (3, 4)
    found = list(order.batches(0, 6))
    assert [len(keys) for keys in found] == [4, 4, 2, 4, 4, 2]
    for epoch in (0, 1):
        keys = [key for share in found[3 * epoch : 3 * epoch + 3] for key in share]
        assert {key[0] for key in keys} == {epoch} and sorted(key[1] for key in keys) == list(range(10))
    assert found[:3] != found[3:] and list(order.batches(4, 6)) == found[4:]
    assert list(LabelledOrder(10, 4, 0, 1, 4).batches(0, 6)) != found


@pytest.mark.parametrize(
    ("size", "batch", "world", "options", "lengths"),
    [
        (10, 4, 2, {}, [4, 4]),  # two left: one each, too few
        (13, 4, 1, {}, [4, 4, 4]),  # one left
        (15, 8, 2, {}, [8, 6]),  # seven left, of which one is left out
        (15, 8, 2, {"multiple": 2}, [8, 4]),
        (15, 8, 1, {"drop_last": True}, [8]),
        (7, 64, 2, {}, [6]),  # fewer than a batch
    ],
)
def test_the_last_batch(size, batch, world, options, lengths):
    orders = [LabelledOrder(size, batch, rank, world, 0, **options) for rank in range(world)]
    steps = orders[0].steps_per_epoch
    shares = [list(order.batches(0, steps)) for order in orders]
    assert [sum(len(share[step]) for share in shares) for step in range(steps)] == lengths
    assert all(len(share[step]) * world == lengths[step] for share in shares for step in range(steps))
    assert len({key for share in shares for keys in share for key in keys}) == sum(lengths)


def test_processes_share_every_batch():
    whole = list(LabelledOrder(12, 4, 0, 1, 3).batches(0, 6))
    for rank in range(2):
        assert list(LabelledOrder(12, 4, rank, 2, 3).batches(0, 6)) == [keys[rank::2] for keys in whole]


def test_repeated_augmentation():
    order = LabelledOrder(12, 6, 0, 1, 3, repeats=3)
    plain = [key[1] for keys in LabelledOrder(12, 6, 0, 1, 3).batches(2, 4) for key in keys]  # epoch 1
    found = [key for keys in order.batches(2, 4) for key in keys]
    assert [index for _, index in found] == [index for index in plain[:4] for _ in range(3)]
    assert [key for key, _ in found] == 4 * [3, 4, 5]
    every = [key for keys in order.batches(0, 8) for key in keys]
    assert len(set(every)) == len(every) == 48


def test_images_are_normalised_and_keep_their_labels():
    dataset = images_of(9)
    crop = random_crop(3, 8, [1.0, 1.0], 0.0, "bilinear")
    found = list(batches(dataset, LabelledOrder(9, 4, 0, 1, 3), crop=crop)(0))
    assert len(found) == 4  # a last batch of one is left out, in both epochs
    for images, labels, numbers in found:
        torch.testing.assert_close(images.double(), normalised(dataset)[numbers], rtol=1e-5, atol=1e-5)
        assert labels.tolist() == dataset.labels[numbers].tolist()


def test_views_depend_on_seed_epoch_and_image_alone():
    dataset, order = images_of(12), LabelledOrder(12, 4, 0, 1, 3)
    whole = list(batches(dataset, order)(0))
    torch.manual_seed(9)
    random.seed(9)
    assert same(batches(dataset, order)(0), whole)
    assert same(batches(dataset, order)(4), whole[4:])
    assert same(batches(dataset, order, workers=2, start_method="fork")(0), whole)
    for rank in range(2):
        part = batches(dataset, LabelledOrder(12, 4, rank, 2, 3))(0)
        assert same(part, [[value[rank::2] for value in batch] for batch in whole])
    first = {int(number): image for images, _, numbers in whole[:3] for number, image in zip(numbers, images)}
    later = {int(number): image for images, _, numbers in whole[3:] for number, image in zip(numbers, images)}
    assert sum(torch.equal(first[number], later[number]) for number in range(12)) <= 2


def test_unreadable_images_are_replaced_and_told():
    dataset = images_of(8, broken={2, 3})
    made = batches(dataset, LabelledOrder(8, 8, 0, 1, 3), epochs=1)
    ((_, labels, numbers),) = made(0)
    assert sorted(numbers.tolist()) == [0, 1, 4, 4, 4, 5, 6, 7]
    assert labels.tolist() == dataset.labels[numbers].tolist()
    assert sorted(item.path for item in made.skipped()) == ["memory[2]", "memory[3]"]
    broken = images_of(4, broken=range(4))
    with pytest.raises(UserError, match="none of the 4 images can be read"):
        list(batches(broken, LabelledOrder(4, 4, 0, 1, 3))(0))


def test_batches_that_cannot_be():
    with pytest.raises(UserError, match=r"batch_size is 6, which 4 process\(es\) cannot share .* multiple of 4"):
        LabelledOrder(20, 6, 0, 4, 0)
    with pytest.raises(UserError, match="of a multiple of 2 images; make it a multiple of 4"):
        LabelledOrder(20, 6, 0, 2, 0, multiple=2)
    with pytest.raises(UserError, match=r"1 labelled image\(s\) are too few"):
        LabelledOrder(1, 6, 0, 1, 0)
    with pytest.raises(UserError, match="fewer than one global batch"):
        LabelledOrder(5, 6, 0, 1, 0, drop_last=True)


def test_a_share_keeps_every_class():
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 4 + [3])
    rows, notices = draw_share(labels, share=0.1, shots=None, seed=0)
    assert labels[rows].bincount().tolist() == [4, 2, 1, 1]  # 4, 1.5, 0.4 and 0.1 by rule
    assert notices == ["the share 0.1 rounds to no image of 2 class(es), which keep one each"]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(rows, draw_share(labels, share=0.1, shots=None, seed=0)[0])
    assert not torch.equal(rows, draw_share(labels, share=0.1, shots=None, seed=1)[0])
    rows, notices = draw_share(labels, share=None, shots=5, seed=0)
    assert labels[rows].bincount().tolist() == [5, 5, 4, 1]
    assert notices == ["2 class(es) have fewer than 5 images, all of which are taken"]
    assert len(draw_share(labels, share=None, shots=None, seed=0)[0]) == 60


def test_the_hold_out_is_that_of_other_evaluations():
    bench = bench_of(trunk(), images_of(24), None)
    train, test = bench.probe_features()
    found = split_of(bench)
    assert found.test_ids.tolist() == test.indices.tolist()
    assert found.train.rows.tolist() == train.indices.tolist()
    assert found.train.targets.tolist() == train.labels.tolist()
    limited = split_of(bench_of(trunk(), images_of(24), images_of(9), max_images=6))
    assert (len(limited.train), len(limited.test)) == (6, 6)
    unlabelled = images_of(6)
    unlabelled.labels = None
    with pytest.raises(UserError, match="training needs labels"):
        split_of(bench_of(trunk(), unlabelled, None))
    with pytest.raises(UserError, match="a single image, so none can be held out"):
        split_of(bench_of(trunk(), images_of(3), None))


def test_chosen_images():
    dataset = images_of(6)
    some = ChosenImages(dataset, torch.tensor([5, 1, 2])).select(torch.tensor([0, 2]))
    assert len(some) == 2 and some.path(1) == "memory[2]" and some.labels.tolist() == [2, 2]
    assert np.array_equal(np.asarray(some.read(0)), dataset.pixels[5]) and some.mean == dataset.mean


def test_seeding_leaves_generators_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(3, 4):
        inside = random.random(), np.random.rand(), float(torch.rand(1))
    assert (random.random(), np.random.rand(), torch.rand(1)) == before
    with seeded(3, 4):
        assert (random.random(), np.random.rand(), float(torch.rand(1))) == inside
    with seeded(3, 5):
        assert (random.random(), np.random.rand()) != inside[:2]


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment(channels):
    pytest.importorskip("timm")
    mean = (0.4,) * channels
    made = RandAugmentCrop(channels, 20, [0.5, 1.0], 0.5, "bicubic", "rand-m9-mstd0.5-inc1", mean)
    assert len(made.augment.ops) == 15 and made.augment.num_layers == 2
    assert {(op.magnitude, op.magnitude_std) for op in made.augment.ops} == {(9, 0.5)}
    hints = made.augment.ops[0].hparams
    assert hints["translate_const"] == 9 and hints["img_mean"] == (102, 102, 102)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30) if channels == 1 else (30, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain = random_crop(channels, 20, [0.5, 1.0], 0.5, "bicubic")
    changed = 0
    for seed in range(12):
        (found,) = made(image, random.Random(seed))
        random.seed(seed), np.random.seed(seed)
        (again,) = pickle.loads(pickle.dumps(made))(image, random.Random(seed))
        assert found.shape == (channels, 20, 20) and found.dtype == np.uint8 and np.array_equal(found, again)
        changed += not np.array_equal(found, plain(image, random.Random(seed))[0])
    assert changed >= 8
    made.augment = lambda picture: picture
    assert np.array_equal(made(image, random.Random(1))[0], plain(image, random.Random(1))[0])
    with pytest.raises(UserError, match="timm does not understand"):
        RandAugmentCrop(3, 20, [0.5, 1.0], 0.5, "bicubic", "nonsense-m9", (0.4,) * 3)


def mixing(**options):
    values = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "erasing": 0.0, "seed": 1, "rank": 0}
    return Mixing(3, **{**values, **options})


def test_mixup_is_the_formula():
    pytest.importorskip("timm")
    labels, keys = torch.tensor([0, 1, 2, 0]), [(0, index) for index in range(4)]
    shares = []
    for step in range(8):
        images = torch.tensor([0.0, 1.0, 2.0, 7.0]).view(4, 1, 1, 1).repeat(1, 3, 6, 6)
        mixed, targets = mixing(mixup=0.8, smoothing=0.1)(images, labels, step, keys)
        share = 1 - float(mixed[0, 0, 0, 0]) / 7  # image 0 is 0, its partner is the last one, 7
        expected = share * torch.tensor([0.0, 1, 2, 7]) + (1 - share) * torch.tensor([7.0, 2, 1, 0])
        torch.testing.assert_close(mixed[:, 1, 3, 3], expected)
        smooth = 0.9 * torch.eye(3)[labels] + 0.1 / 3
        torch.testing.assert_close(targets, share * smooth + (1 - share) * smooth.flip(0), rtol=1e-4, atol=1e-5)
        shares.append(share)
    assert len({round(share, 4) for share in shares}) == 8


def test_cutmix_gives_labels_by_area():
    pytest.importorskip("timm")
    labels, keys = torch.tensor([0, 1]), [(0, 0), (0, 1)]
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).repeat(1, 3, 12, 12)
    for step in range(4):
        mixed, targets = mixing(cutmix=1.0)(images.clone(), labels, step, keys)
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}
        assert float(targets[0, 1]) == pytest.approx(float(mixed[0, 0].mean()), abs=1e-6)
        again, _ = mixing(cutmix=1.0)(images.clone(), labels, step, keys)
        assert torch.equal(mixed, again)


def test_erasing_belongs_to_the_image():
    pytest.importorskip("timm")
    labels, keys = torch.zeros(60, dtype=torch.int64), [(0, index) for index in range(60)]
    images, targets = mixing(erasing=0.25)(torch.full((60, 3, 24, 24), 9.0), labels, 0, keys)
    assert targets is labels
    erased = (images != 9).flatten(1).any(dim=1)
    assert 5 <= int(erased.sum()) <= 27
    noise = images[images != 9]
    assert abs(float(noise.mean())) < 0.1 and float(noise.std()) == pytest.approx(1, abs=0.1)
    alone, _ = mixing(erasing=0.25, rank=1)(torch.full((30, 3, 24, 24), 9.0), labels[::2], 7, keys[::2])
    assert torch.equal(alone, images[::2])


def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.data", None)
    with pytest.raises(UserError, match=r"need the timm package .*pip install \"vissl_like\[timm\]\""):
        mixing(mixup=0.8)
