"""Segmentation on a tiny devkit whose colours tell the classes: training by hand, restarts, processes, maps, errors."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_in_processes
from torch import nn
from torch.nn import functional

from vissl_like.config import load_settings
from vissl_like.data.masked import CropBatches, Crops, MaskedImages, WholeImages
from vissl_like.data.processes import iterate_workers
from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.evaluation import segmentation
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.fcn import Fcn
from vissl_like.evaluation.segmentation import SegmentationEvaluation
from vissl_like.evaluation.subjects import Look, Protocol, network_subject, pixel_subject
from vissl_like.evaluation.supervised import Keeper
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.trainer.checkpoint import CheckpointStore
from vissl_like.utils.errors import UserError

CLASSES = ["cat", "dog"]
COLOURS = np.array([[40, 60, 200], [210, 60, 40], [40, 200, 70]])
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIDE = 16
PLAIN = {"image_size": SIDE, "scale": [1.0, 1.0], "flip": 0.0, "year": 2007, "classes": CLASSES}


class Pooled(nn.Module):
    """Colours averaged over 2 x 2 and 4 x 4 pixels, times a weight."""

    strides = (2, 4)
    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

    def stage_map(self, images, stages):
        return functional.avg_pool2d(images, 2**stages) * self.gain.view(1, 3, 1, 1)


def devkit(root, train=5, test=4, sizes=((SIDE, SIDE),), seed=0):
    """Writes it: rectangles of two classes, a frame of void pixels around some of them."""
    generator = np.random.default_rng(seed)
    place = root / "VOCdevkit/VOC2007"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation", "ImageSets/Main"):
        (place / folder).mkdir(parents=True)
    for split, count in (("train", train), ("val", test)):
        names = [f"{split}{number}" for number in range(count)]
        (place / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for label in CLASSES:
            (place / f"ImageSets/Main/{label}_{split}.txt").write_text("".join(f"{name} 1\n" for name in names))
        for number, name in enumerate(names):
            height, width = sizes[number % len(sizes)]
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[: height // 2, : 4 * (1 + number % 3)] = 1
            mask[height // 2 :, 8:] = 2
            pixels = (COLOURS[mask] + generator.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)
            mask[: number % 4] = 255
            Image.fromarray(pixels).save(place / f"JPEGImages/{name}.png")
            for kind in ("Class", "Object"):
                Image.fromarray(mask).save(place / f"Segmentation{kind}/{name}.png")
    return root / "VOCdevkit"


def bench(trunk, folder=None, **changes):
    protocol = Protocol(image_size=SIDE, **changes)
    return Bench(network_subject("net", "net", trunk, protocol), protocol, Look(3, MEAN, STD), folder=folder)


def files(root, split, count):
    """Images ``[n, 3, S, S]`` normalised, and masks ``[n, S, S]``, read by hand."""
    place = root / "VOC2007"
    images = [np.asarray(Image.open(place / f"JPEGImages/{split}{n}.png"), dtype=np.float64) for n in range(count)]
    masks = [np.asarray(Image.open(place / f"SegmentationClass/{split}{n}.png"), dtype=np.int64) for n in range(count)]
    pixels = (np.stack(images) / 255 - MEAN) / STD
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float(), torch.from_numpy(np.stack(masks))


def cross_entropy(scores, masks):
    """Mean over the pixels that are not 255, from the definition."""
    rows, truth = scores.permute(0, 2, 3, 1)[masks != 255], masks[masks != 255]
    return -(rows - rows.logsumexp(dim=1, keepdim=True)).gather(1, truth[:, None]).mean()


@pytest.mark.parametrize("trunk_lr", [0.0, 0.05])
def test_updates_are_those_of_a_plain_loop(tmp_path, trunk_lr):
    """Two maps whose scores are added, momentum, decay and the falling rate; all images in every batch."""
    root, trunk = devkit(tmp_path), Pooled()
    options = {"steps": 4, "batch_size": 5, "lr": 0.3, "trunk_lr": trunk_lr, "weight_decay": 0.01, "power": 0.9}
    evaluation = SegmentationEvaluation(path=str(root), **PLAIN, **options, stages=[1, 2], batch_norm=False)
    bed = bench(trunk)
    model = evaluation._model(bed, 3)
    images = evaluation._images("train", bed)
    evaluation._training(bed, model, images, list(range(5)), None, {}).run()

    views, masks = files(root, "train", 5)
    gain = trunk.gain.detach().clone().requires_grad_()
    weights = [torch.zeros(3, 3, requires_grad=True), torch.zeros(3, 3, requires_grad=True)]
    biases = [torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)]
    values = [*weights, *biases, gain]
    rates = [0.3] * 4 + [trunk_lr]
    speeds = [torch.zeros_like(value) for value in values]
    for step in range(4):
        maps = [functional.avg_pool2d(views, size) * gain.view(1, 3, 1, 1) for size in (2, 4)]
        fine, coarse = (
            torch.einsum("nchw,kc->nkhw", found, weight) + bias.view(1, 3, 1, 1)
            for found, weight, bias in zip(maps, weights, biases, strict=True)
        )
        fine = fine + functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        loss = cross_entropy(functional.interpolate(fine, (SIDE, SIDE), mode="bilinear", align_corners=False), masks)
        gradients = torch.autograd.grad(loss, values)
        for value, gradient, speed, rate in zip(values, gradients, speeds, rates, strict=True):
            speed.mul_(0.9).add_(gradient + 0.01 * value.detach())
            value.data -= rate * (1 - step / 4) ** 0.9 * speed
    for number in (0, 1):
        conv = model.classifiers[number][1]
        assert conv.weight.abs().max() > 0.05
        torch.testing.assert_close(conv.weight[:, :, 0, 0], weights[number], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(conv.bias, biases[number], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.trunk.gain, gain, rtol=1e-4, atol=1e-5)
    assert torch.equal(trunk.gain, torch.tensor([0.5, 1.0, 2.0])), "the subject's network was touched"
    assert bool(trunk_lr) != torch.equal(model.trunk.gain, trunk.gain)


def test_scores_are_those_of_the_pixels(tmp_path):
    """Images of other sizes, enlarged by a first resizing, are scored in their own size."""
    root = devkit(tmp_path, sizes=((SIDE, SIDE), (19, 27)))
    evaluation = SegmentationEvaluation(path=str(root), **PLAIN, resize=24, steps=60, lr=1.0, stages=[1], batch_size=4)
    bed = bench(Pooled())
    result = evaluation.run(bed)
    assert result.metrics["mIoU"] > 75 and result.main == "mIoU"
    assert result.items.mean() == pytest.approx(result.metrics["mIoU"]) and result.item_ids.tolist() == [0, 1, 2]
    assert result.details["iou_by_class"].keys() == {"background", "cat", "dog"}
    counts = np.zeros(3)
    for number in range(4):
        mask = np.asarray(Image.open(root / f"VOC2007/SegmentationClass/val{number}.png"))
        counts += np.bincount(mask.ravel(), minlength=256)[:3]
    share = counts[0] / counts.sum()
    assert result.chance.metrics == pytest.approx(
        {"mIoU": 100 * share / 3, "pixel_accuracy": 100 * share, "mean_accuracy": 100 / 3}
    )
    assert (result.train_images, result.test_images, result.skipped) == (5, 4, [])


def test_crops_keep_image_and_mask_together():
    """The colour of every pixel tells its class, wherever the crop lies and however it is flipped; the rest is void."""
    mask = np.arange(7 * 30, dtype=np.uint8).reshape(7, 30)
    image = Image.fromarray(np.stack([mask, mask // 2, 255 - mask], axis=2))
    crops = Crops(20, None, (1.0, 1.0), 0.5, (1, 2, 3))
    columns, flipped = set(), set()
    for seed in range(40):
        view, numbers = crops(image, mask, random.Random(seed))
        assert view.shape == (3, 20, 20) and numbers.shape == (20, 20)
        assert (numbers[:7] == view[0][:7]).all() and (view[2][:7] == 255 - numbers[:7]).all()
        assert (numbers[7:] == 255).all() and (view[:, 7:] == np.array([1, 2, 3])[:, None, None]).all()
        columns.add(int(numbers[0].min()))
        flipped.add(bool(numbers[0, 0] > numbers[0, 1]))
    assert columns == set(range(11)) and flipped == {False, True}
    view, numbers = Crops(20, 14, (0.5, 0.5), 0.0, (0, 0, 0))(image, mask, random.Random(0))
    assert (numbers[:7] == view[0][:7]).all()  # 14 / 7 * 0.5 = 1


def test_batches_cover_every_image_once_an_epoch_in_any_number_of_processes(tmp_path):
    root = devkit(tmp_path, train=7)
    place = root / "VOC2007"
    names = [f"train{n}.png" for n in range(7)]
    images = MaskedImages(
        [str(place / "JPEGImages" / n) for n in names], [str(place / "SegmentationClass" / n) for n in names], 3
    )
    crops = Crops(SIDE, None, (0.5, 2.0), 0.5, (0, 0, 0))
    whole = [CropBatches(images, tuple(range(7)), crops, 3, 5, 0, 1)[step] for step in range(7)]
    for step in (0, 2, 6):
        parts = [CropBatches(images, tuple(range(7)), crops, 3, 5, rank, 2)[step] for rank in (0, 1)]
        assert torch.equal(parts[0].images, whole[step].images[0::2])
        assert torch.equal(parts[1].masks, whole[step].masks[1::2])
    plain = Crops(SIDE, None, (1.0, 1.0), 0.0, (0, 0, 0))
    batches = CropBatches(images, tuple(range(7)), plain, 7, 5, 0, 1)
    wanted = sorted(images.read(number)[0].tobytes() for number in range(7))
    orders = []
    for found in (batches[0], batches[1]):
        orders.append([view.numpy().transpose(1, 2, 0).tobytes() for view in found.images])
        assert sorted(orders[-1]) == wanted
    assert orders[0] != orders[1]
    again = CropBatches(images, tuple(range(7)), crops, 3, 5, 0, 1)
    ahead = iterate_workers(again.__getitem__, range(2, 5), 1, start_method="spawn")
    for step, found in zip(range(2, 5), ahead, strict=True):
        assert torch.equal(found.images, whole[step].images) and torch.equal(found.masks, whole[step].masks)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    root = devkit(tmp_path)
    options = {**PLAIN, "scale": [0.7, 1.4], "flip": 0.5, "steps": 20, "batch_size": 2, "trunk_lr": 0.01}
    straight = SegmentationEvaluation(path=str(root), **options).run(bench(Pooled()))
    kept = Keeper(tmp_path / "kept.pt", every=0.0)
    monkeypatch.setattr(segmentation, "keeper_of", lambda bench, options, identity: kept)
    measured, seen = segmentation.pixel_cross_entropy, []

    def stop(*arguments, **options):
        seen.append(1)
        if len(seen) == 14:
            raise KeyboardInterrupt
        return measured(*arguments, **options)

    monkeypatch.setattr(segmentation, "pixel_cross_entropy", stop)
    with pytest.raises(KeyboardInterrupt):
        SegmentationEvaluation(path=str(root), **options).run(bench(Pooled()))
    assert kept.path.is_file()
    monkeypatch.setattr(segmentation, "pixel_cross_entropy", measured)
    resumed = SegmentationEvaluation(path=str(root), **options).run(bench(Pooled()))
    assert resumed.details["resumed_from"] == 10 and kept.path.is_file()
    assert resumed.metrics == straight.metrics and resumed.details["last_loss"] == straight.details["last_loss"]


def _in_a_process(rank, world, root):
    options = {**PLAIN, "scale": [0.7, 1.4], "flip": 0.5, "steps": 12, "batch_size": 3, "trunk_lr": 0.01, "lr": 0.5}
    result = SegmentationEvaluation(path=root, **options).run(bench(Pooled()))
    return None if result is None else [result.metrics, result.details["last_loss"], result.test_images]


def test_two_processes_are_one(tmp_path):
    """Batches of three, whose parts differ in size and in void pixels; the norm spans both."""
    root = str(devkit(tmp_path))
    alone = _in_a_process(0, 1, root)
    both = run_in_processes(_in_a_process, 2, root)
    assert both[1] is None and both[0][2] == alone[2] == 4
    assert both[0][0] == pytest.approx(alone[0], abs=0.5) and both[0][1] == pytest.approx(alone[1], rel=1e-4)


def test_patch_tokens_of_a_vision_transformer():
    torch.manual_seed(0)
    trunk = VisionTransformer(3, size="tiny", patch_size=8, image_size=32, depth=2)
    model = Fcn(trunk, None, 4, torch.zeros(1, 3, 32, 32), trained=True, batch_norm=False)
    conv = model.classifiers[0][1]
    nn.init.normal_(conv.weight)
    images = torch.randn(2, 3, 20, 30)
    padded = functional.pad(images, (0, 2, 0, 4))
    tokens = trunk.intermediate_layers(padded, 1)[0][:, 1:]
    scores = (tokens @ conv.weight[:, :, 0, 0].T).transpose(1, 2).reshape(2, 4, 3, 4)
    expected = functional.interpolate(scores, (24, 32), mode="bilinear", align_corners=False)[:, :, :20, :30]
    found = model(images)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert trunk.blocks[0].mlp.fc1.weight.grad.any()
    with pytest.raises(UserError, match="one map, that of its patch tokens"):
        Fcn(trunk, [3], 4, torch.zeros(1, 3, 32, 32), trained=False, batch_norm=True)


def test_a_frozen_trunk_stays_and_its_norms_keep_their_statistics():
    torch.manual_seed(0)
    for trained in (False, True):
        trunk = ResNet(3, depth=10, width=0.125)
        before = {name: value.clone() for name, value in trunk.state_dict().items()}
        model = Fcn(trunk, [2, 3, 4], 3, torch.zeros(1, 3, 64, 64), trained=trained, batch_norm=True).train()
        nn.init.normal_(model.classifiers[2][1].weight)
        model(torch.randn(2, 3, 70, 50)).square().sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
        assert {value.grad is not None for value in trunk.parameters()} == {trained}
        assert model.classifiers[0][0].num_batches_tracked == 1


@pytest.fixture
def place(tmp_path):
    """A run with a checkpoint of a small ResNet whose first map is as large as the image."""
    torch.manual_seed(0)
    options = {"depth": 10, "width": 0.125, "stem": "small"}
    store = CheckpointStore(tmp_path / "run/checkpoints", 5, None, None, say=lambda text, level: None)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    record = {"arch": "resnet", "arch_options": options, "channels": 3, "step": 40, "mean": MEAN, "std": STD}
    assert store.save(40, {}, {}, ResNet(3, **options).state_dict(), record, {"metrics": {}}) is not None
    return tmp_path


def settings(place, *more):
    layers = ["config=quick/synthetic", "config=benchmark/segmentation", f"config.OUTPUT_DIR={place / 'run'}"]
    options = ["train_split=train", "test_split=val", "image_size=16", "stages=[1]", "steps=60", "batch_size=4"]
    return load_settings(
        [*layers, "config.DISTRIBUTED.device=cpu", *(f"config.EVALUATION.{one}" for one in options), *more]
    )


def test_from_the_command_line_to_the_record(place, capsys):
    root = devkit(place, sizes=((SIDE, SIDE), (20, 26)))
    assert EvaluateEngine(settings(place, f"config.EVALUATION.path={root}")).run() == 0
    record = json.loads((place / "run/evaluation_segmentation.json").read_text())
    assert list(record["subjects"]) == ["trained", "random init", segmentation.FLOOR]
    assert record["main"] == "mIoU" and record["data"]["test_images"] == 4 and record["data"]["train_images"] == 5
    found = {name: facts["metrics"]["mIoU"] for name, facts in record["subjects"].items()}
    assert found["trained"] > 80 > 2 * found[segmentation.FLOOR]
    with np.load(place / "run/evaluation_segmentation.npz", allow_pickle=False) as arrays:
        assert arrays["items_trained"].mean() == pytest.approx(found["trained"])
        assert arrays["indices_trained"].tolist() == [0, 1, 2]
    assert record["subjects"]["trained"]["details"]["trunk"] == "frozen"
    assert not list((place / "run").glob("training/*")) and "mIoU" in capsys.readouterr().out


def test_workers_load_the_plugins(tmp_path, monkeypatch):
    root, seen = devkit(tmp_path), []

    def iterate(*arguments, plugins, **options):
        seen.append(plugins)
        return iterate_workers(*arguments, **options)

    monkeypatch.setattr(segmentation, "iterate_workers", iterate)
    SegmentationEvaluation(path=str(root), **PLAIN, steps=1, batch_size=2).run(bench(Pooled(), plugins=("one",)))
    assert seen == [("one",), ("one",)]  # to learn and to be scored


def test_the_next_readable_image_takes_the_place(tmp_path):
    """With the mask that belongs to it, and cut as was drawn for the image asked for."""
    root = devkit(tmp_path, train=4)
    place = root / "VOC2007"
    names = [f"train{n}.png" for n in range(4)]
    images = MaskedImages(
        [str(place / "JPEGImages" / n) for n in names], [str(place / "SegmentationClass" / n) for n in names], 3
    )
    crops = Crops(SIDE, None, (1.0, 1.0), 0.0, (0, 0, 0))
    views = [images.read(number) for number in range(4)]
    for name in ("train3.png", "train0.png"):  # the next after 3 is the first of those used, 1
        (place / "JPEGImages" / name).write_bytes(b"no image")
    batch = CropBatches(images, (1, 2, 3), crops, 3, 0, 0, 1)[0]
    assert batch.problem is None and [item.path[-10:] for item in batch.skipped] == ["train3.png"]
    pixels = batch.images.numpy().transpose(0, 2, 3, 1)
    found = [(view.tobytes(), mask.tobytes()) for view, mask in zip(pixels, batch.masks.numpy(), strict=True)]
    wanted = [(np.asarray(views[row][0]).tobytes(), views[row][1].tobytes()) for row in (1, 1, 2)]
    assert sorted(found) == sorted(wanted)
    assert "in a row cannot be read" in CropBatches(images, (0, 3), crops, 2, 0, 0, 1)[0].problem


def _with_an_unreadable_image(rank, world, root):
    options = {**PLAIN, "steps": 6, "batch_size": 2}
    result = SegmentationEvaluation(path=root, **options).run(bench(Pooled()))
    return None if result is None else [result.train_images, [item.path[-10:] for item in result.skipped]]


def test_an_unreadable_training_image_is_told_by_all_processes(tmp_path):
    root = devkit(tmp_path)
    for name in ("train2.png", "train4.png"):
        (root / "VOC2007/JPEGImages" / name).write_bytes(b"no image")
    alone = _with_an_unreadable_image(0, 1, str(root))
    assert alone[0] == 3 and sorted(alone[1]) == ["train2.png", "train4.png"]
    both, _ = run_in_processes(_with_an_unreadable_image, 2, str(root))
    assert both[0] == 3 and sorted(both[1]) == sorted(alone[1])


def test_a_class_that_is_only_predicted_is_no_item(tmp_path):
    """Items of two networks are over the same classes, so that their differences are those of the means."""
    root = devkit(tmp_path)
    tables = [torch.tensor([[6, 1, 1], [2, 4, 0], [0, 0, 0]]), torch.tensor([[8, 0, 0], [3, 3, 0], [0, 0, 0]])]
    asked = SegmentationEvaluation(path=str(root), **PLAIN)
    first, second = (asked._result(table, CLASSES) for table in tables)
    assert first.item_ids.tolist() == second.item_ids.tolist() == first.chance.item_ids.tolist() == [0, 1]
    assert first.items.tolist() == pytest.approx([60, 400 / 7]) and second.items.tolist() == pytest.approx(
        [800 / 11, 50]
    )
    difference = (first.items - second.items).mean()
    assert difference == pytest.approx(first.metrics["mIoU"] - second.metrics["mIoU"])
    assert first.details["notices"] == ["classes that no test image shows do not count: dog"]


def test_an_unreadable_test_image_is_left_out_and_named(tmp_path):
    root = devkit(tmp_path)
    (root / "VOC2007/JPEGImages/val2.png").write_bytes(b"no image")
    result = SegmentationEvaluation(path=str(root), **PLAIN, steps=2, batch_size=2).run(bench(Pooled()))
    assert result.test_images == 3 and [item.path[-8:] for item in result.skipped] == ["val2.png"]
    for number in range(5):
        (root / f"VOC2007/JPEGImages/train{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"5 training images in a row cannot be read, the last is .*train\d\.png"):
        SegmentationEvaluation(path=str(root), **PLAIN, steps=4, batch_size=2).run(bench(Pooled()))


def test_an_absent_class_is_told_and_does_not_count(tmp_path):
    root = devkit(tmp_path)
    options = {**PLAIN, "classes": ["cat", "dog", "owl"]}
    result = SegmentationEvaluation(path=str(root), **options, steps=40, batch_size=5, lr=1.0).run(bench(Pooled()))
    assert result.item_ids.tolist() == [0, 1, 2] and result.metrics["mIoU"] == pytest.approx(result.items.mean())
    assert any("owl" in text for text in result.details["notices"])
    assert result.details["iou_by_class"].keys() == {"background", "cat", "dog"}


def test_mistakes_are_told(tmp_path):
    root = devkit(tmp_path)
    masks = root / "VOC2007/SegmentationClass"

    def run(trunk=None, **changes):
        options = {**PLAIN, "steps": 2, "batch_size": 2, **changes}
        return SegmentationEvaluation(path=str(root), **options).run(bench(trunk or Pooled()))

    with pytest.raises(UserError, match=r"val1\.png.* has the class 2, and there are only 1 besides"):
        for name in masks.glob("train*.png"):
            Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint8)).save(name)
        for name in ("val0.png", "val2.png", "val3.png"):
            Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint8)).save(masks / name)
        run(classes=["cat"])
    with pytest.raises(UserError, match="stage 5; this network has 2"):
        run(stages=[5])
    with pytest.raises(UserError, match="Identity gives no maps"):
        run(nn.Identity())
    with pytest.raises(UserError, match="raw pixels have no maps"):
        protocol = Protocol(image_size=8)
        SegmentationEvaluation(path=str(root), **PLAIN).run(Bench(pixel_subject(), protocol, Look(3, MEAN, STD)))
    with pytest.raises(UserError, match="smallest and the largest factor"):
        SegmentationEvaluation(path=str(root), scale=[2.0, 1.0])
    with pytest.raises(UserError, match="stages is empty"):
        SegmentationEvaluation(path=str(root), stages=[])
    for name in masks.glob("val*.png"):
        Image.fromarray(np.full((SIDE, SIDE), 255, dtype=np.uint8)).save(name)
    with pytest.raises(UserError, match="no pixel of the split 'val' counts"):
        run()
    Image.fromarray(np.zeros((SIDE, SIDE + 1), dtype=np.uint8)).save(masks / "val1.png")
    with pytest.raises(UserError, match=r"val1\.png' has 17 x 16 pixels and its image 16 x 16"):
        run()
    whole = WholeImages(MaskedImages([str(root / "VOC2007/JPEGImages/val1.png")], [str(masks / "val1.png")], 3), None)
    assert "17 x 16" in whole[0].problem
    for name in masks.iterdir():
        name.unlink()
    masks.rmdir()
    with pytest.raises(UserError, match="SegmentationClass"):
        run()
