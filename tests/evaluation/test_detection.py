"""The training of a detector: its schedule, its stops, its processes, and what it leaves."""

import dataclasses
import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_in_processes
from tiny_objects import coco_tree, voc_tree
from torch import nn

from vissl_like.data.samplers.shuffled import ShuffledSampler
from vissl_like.evaluation import detection, detection_pictures, supervised
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.detection import DetectionEvaluation
from vissl_like.evaluation.detection_data import Samples, read_objects
from vissl_like.evaluation.detection_training import Recipe, detect, losses_of, settle_norms, training_draw
from vissl_like.evaluation.subjects import Look, Protocol, network_subject
from vissl_like.evaluation.supervised import Training
from vissl_like.models.detectors.base import DetectorPlan
from vissl_like.models.detectors.build import build_detector
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.utils.errors import UserError

OPTIONS = {
    **{"train": ["train"], "test": "val", "train_sizes": [32, 40], "test_size": 32, "longest": 80, "steps": 12},
    **{"batch_size": 2, "optimizer": "adamw", "lr": 0.002, "schedule": "one_cycle", "batch_norm": "trained"},
    **{"anchors": [8, 16, 32, 48, 64], "rois": 16, "train_proposals": 40, "test_proposals": 10, "width": 8},
    **{"hidden": 16, "head_batch_norm": False, "score_threshold": 0.0, "pictures": 2},
}
RECIPE = Recipe(100, 4, "sgd", 0.1, 0.5, 1e-4, "steps", (60, 80), 10, 0.1, None)


def trunk():
    torch.manual_seed(0)
    return ResNet(3, depth=10, width=0.125)


def bench(folder=None, **changes):
    protocol = Protocol(32, **changes)
    return Bench(
        network_subject("trained", "tiny", trunk(), protocol), protocol, Look(3, (0.5,) * 3, (0.25,) * 3), folder=folder
    )


def evaluation(root, **changes):
    return DetectionEvaluation(path=str(root), **{**OPTIONS, **changes})


def test_rates_by_hand():
    assert [RECIPE.rate(step) for step in (0, 5, 10, 59, 60, 79, 80, 99)] == pytest.approx(
        [0.1, 0.55, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    cosine = dataclasses.replace(RECIPE, schedule="cosine", warmup_steps=0)
    assert [cosine.rate(step) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    cycle = dataclasses.replace(RECIPE, schedule="one_cycle")
    value = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([value], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100, cycle_momentum=False)
    for step in range(100):
        assert 0.1 * cycle.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12), step
        optimizer.step()
        if step < 99:
            schedule.step()


def test_groups_of_the_optimizer():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model = nn.Sequential(net, nn.Linear(4, 2), nn.BatchNorm1d(2))
    model[1].bias.requires_grad_(False)
    optimizer = RECIPE.make_optimizer(model, set(net.parameters()))
    found = {
        id(value): (group["lr"], group["weight_decay"], group["momentum"])
        for group in optimizer.param_groups
        for value in group["params"]
    }
    assert found == {
        **{id(value): (0.05, 1e-4, 0.9) for value in net[0].parameters()},
        **{id(value): (0.05, 0.0, 0.9) for value in net[1].parameters()},
        id(model[1].weight): (0.1, 1e-4, 0.9),
        **{id(value): (0.1, 0.0, 0.9) for value in model[2].parameters()},
    }
    assert isinstance(dataclasses.replace(RECIPE, optimizer="adamw").make_optimizer(model, set()), torch.optim.AdamW)


def test_statistics_become_the_means_over_batches():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.still = nn.BatchNorm1d(2).eval()

        def forward(self, images, _targets):
            return {"loss": self.still(self.norm(torch.stack(images).flatten(1))).sum()}

    class Row:
        def __init__(self, values):
            self.values = values

        def to(self, _device):
            return self.values, {}

    model = Model()
    rows = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1
    asked = []

    def draw(first):
        asked.append(first)
        yield from ([Row(row) for row in batch] for batch in rows)

    settle_norms(model, draw, 7, 2, 0)
    assert asked == [7] and model.norm.momentum == 0.1
    torch.testing.assert_close(model.norm.running_mean, rows[:2].mean((0, 1)))
    torch.testing.assert_close(model.norm.running_var, torch.stack([row.var(0) for row in rows[:2]]).mean(0))
    assert torch.equal(model.still.running_mean, torch.zeros(2))
    settle_norms(model, draw, 7, 0, 0)
    torch.testing.assert_close(model.norm.running_mean, rows[:2].mean((0, 1)))


def test_a_mask_rcnn_is_trained_scored_and_drawn(tmp_path):
    root = coco_tree(tmp_path / "data")
    place = bench(tmp_path / "out")
    states = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in place.subject.network().state_dict().items()}
    result = evaluation(root, detector="mask_rcnn_fpn", precise_batch_norm=2).run(place)
    assert torch.equal(states, torch.random.get_rng_state())
    after = place.subject.network().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert set(result.metrics) == {"AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75"} and result.main == "AP"
    assert result.item_ids.tolist() == [0, 1] and result.items.mean() == pytest.approx(result.metrics["AP"])
    assert (result.train_images, result.test_images) == (3, 3)  # an image without objects teaches nothing
    training = result.details["training"]
    assert training["steps"] == 12 and training["last_loss"] < training["first_loss"]
    assert len(list((tmp_path / "out/detection/trained").glob("*.png"))) == 2
    assert [keeper.path for keeper in place.kept] == list((tmp_path / "out").glob("training/*.pt"))
    again = evaluation(root, detector="mask_rcnn_fpn", precise_batch_norm=2).run(bench())
    assert again.metrics == result.metrics and again.details["training"] == training


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    root = coco_tree(tmp_path / "data")
    straight = evaluation(root).run(bench(tmp_path / "a"))

    class Stopped(Training):
        def _step(self, batches, step, device):
            if step == 11:
                raise KeyboardInterrupt
            return super()._step(batches, step, device)

    monkeypatch.setattr(supervised.Keeper, "every", 0.0)
    monkeypatch.setattr(supervised.Keeper.__init__, "__defaults__", (0.0,))
    monkeypatch.setattr(detection, "Training", Stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluation(root).run(bench(tmp_path / "b"))
    assert len(list((tmp_path / "b").glob("training/*.pt"))) == 1
    monkeypatch.setattr(detection, "Training", Training)
    resumed = evaluation(root).run(bench(tmp_path / "b"))
    assert resumed.details["training"]["resumed_from"] == 10
    assert resumed.metrics == straight.metrics and (resumed.items == straight.items).all()
    assert resumed.details["detections"] == straight.details["detections"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_objects_without_masks_are_refused_before_anything_is_trained(tmp_path, monkeypatch, split):
    root = coco_tree(tmp_path)
    file = root / f"annotations/instances_{split}.json"
    content = json.loads(file.read_text())
    first = evaluation(root, detector="mask_rcnn_fpn").identity(bench())
    content["annotations"][-1]["segmentation"][0][:2] = [3, 5]
    file.write_text(json.dumps(content))
    assert evaluation(root, detector="mask_rcnn_fpn").identity(bench()) != first
    del content["annotations"][-1]["segmentation"]
    file.write_text(json.dumps(content))
    monkeypatch.setattr(detection, "build_detector", None)  # would raise another error
    asked = evaluation(root, detector="mask_rcnn_fpn")
    for ask in (asked.run, asked.identity):
        with pytest.raises(UserError, match=r"has no 'segmentation'.*faster_rcnn_fpn, which needs boxes only"):
            ask(bench())
    assert evaluation(root).identity(bench())  # boxes are all that it needs


def test_pictures_that_cannot_be_written_do_not_lose_the_result(tmp_path, monkeypatch):
    root = coco_tree(tmp_path / "data")

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(detection_pictures, "write_atomic", full)
    result = evaluation(root, steps=2).run(bench(tmp_path / "out"))
    assert "AP" in result.metrics
    (notice,) = result.details["notices"]
    assert notice.startswith("not all pictures are drawn: ") and "No space left on device" in notice


def _with_an_unreadable_image(rank, world, root):
    result = evaluation(root, steps=6, pictures=0).run(bench())
    return None if result is None else [result.train_images, [Path(item.path).name for item in result.skipped]]


@pytest.mark.slow
def test_unreadable_training_images_are_told_by_all_processes(tmp_path):
    root = coco_tree(tmp_path)
    for name in ("0.png", "2.png"):
        (root / "train" / name).write_bytes(b"no image")
    alone = _with_an_unreadable_image(0, 1, str(root))
    assert alone[0] == 1 and sorted(alone[1]) == ["0.png", "2.png"]
    both, _ = run_in_processes(_with_an_unreadable_image, 2, str(root))
    assert both[0] == 1 and sorted(both[1]) == sorted(alone[1])


def test_schedules_that_cannot_take_place_are_refused(tmp_path):
    plain = {"schedule": "steps", "steps": 12, "milestones": [8], "warmup_steps": 11}
    assert evaluation(tmp_path, **plain).unused == []
    assert evaluation(tmp_path, **plain | {"milestones": []}).recipe.milestones == ()
    with pytest.raises(UserError, match=r"milestones=\[8, 12\]: the training has 12 steps, .* never falls at 12"):
        evaluation(tmp_path, **plain | {"milestones": [12, 8]})
    for schedule in ("steps", "cosine"):
        with pytest.raises(UserError, match="warmup_steps=12 leaves none of the 12 steps"):
            evaluation(tmp_path, **plain | {"schedule": schedule, "warmup_steps": 12})
    assert evaluation(tmp_path, schedule="cosine", warmup_steps=3).recipe.milestones == (60000, 80000)


def test_options_without_effect_are_told(tmp_path):
    asked = {"schedule": "one_cycle", "milestones": [5], "warmup_factor": 0.5}
    effect = "is given and has no effect with"
    assert evaluation(tmp_path, detector="faster_rcnn_c4", **asked).unused == [
        f"EVALUATION.width {effect} faster_rcnn_c4",
        f"EVALUATION.hidden {effect} faster_rcnn_c4",
        f"EVALUATION.milestones {effect} one_cycle",
        f"EVALUATION.warmup_factor {effect} one_cycle",
    ]
    found = DetectionEvaluation(path=str(tmp_path), detector="detr", anchors=[32], roi_size=7).unused
    assert found == [f"EVALUATION.anchors {effect} detr"]
    assert DetectionEvaluation(path=str(tmp_path), layers=3).unused == [f"EVALUATION.layers {effect} faster_rcnn_fpn"]


def test_voc_has_its_own_measure_and_other_data_another_identity(tmp_path):
    root = voc_tree(tmp_path)
    options = {"layout": "voc", "train": ["2007/trainval"], "test": "2007/test", "steps": 3}
    asked = evaluation(root, **options)
    result = asked.run(bench(max_images=4))
    assert set(result.metrics) == {"AP", "AP50", "AP75", "AP50_voc07"} and result.details["layout"] == "voc"
    assert result.details["notices"] == ["no object to find of: dog; they do not count"]  # all are difficult
    assert (result.train_images, result.test_images) == (4, 3) and result.details["objects"] == 3
    assert len(asked.typical_images()) == 6
    first = asked.identity(bench())
    file = root / "VOC2007/Annotations/000007.xml"
    file.write_text(file.read_text().replace("<xmin>4<", "<xmin>5<"))
    assert evaluation(root, **options).identity(bench()) != first


def _two(rank, world, root):
    """Losses, weights and detections of a training in which nothing is drawn but the order."""
    torch.randperm = lambda count, **options: torch.arange(count)  # torchvision's choice among regions
    images = read_objects("coco", root, "train").with_objects()
    images = images.select([0, 1, 2, 0])
    plan = DetectorPlan(
        "faster_rcnn_fpn", 2, (0.5,) * 3, (0.25,) * 3, True, (8, 16, 32, 48, 64), 7, 16, 40, 10, 0.0, 8, 16
    )
    model = build_detector(trunk(), plan, batch_norm="synced", freeze_at=0, device_type="cpu")
    protocol = Protocol(32)
    samples = Samples(images, [64], 128, 3, masks=False, learn=True, seed=0)
    sampler = ShuffledSampler(4, 4 // world, 1, rank, world, 0)
    draw = training_draw(samples, lambda first: sampler.batches(first, 3), protocol, {})
    recipe = dataclasses.replace(RECIPE, steps=3, lr=0.02, warmup_steps=0, milestones=())
    training = Training(model, recipe.make_optimizer(model, set()), draw, losses_of, 3, recipe.rate, 0, "test")
    facts = training.run()
    settle_norms(model, draw, 3, 0, 0)
    seen = Samples(images, [64], 128, 3, masks=False, learn=False, seed=0)
    found = detect(model, seen, protocol)
    boxes = torch.from_numpy(np.concatenate([one.boxes[:3] for one in found]))
    return {"state": model.state_dict(), "boxes": boxes, "loss": facts["last_loss"], "images": len(found)}


@pytest.mark.slow
def test_two_processes_train_and_detect_as_one(tmp_path):
    root = str(coco_tree(tmp_path))
    chosen = torch.randperm
    try:
        alone = _two(0, 1, root)
    finally:
        torch.randperm = chosen
    first, second = run_in_processes(_two, 2, root)
    assert math.isfinite(alone["loss"]) and first["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    for name, value in alone["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=2e-3, atol=2e-4, msg=name)
        assert torch.equal(first["state"][name], second["state"][name]), name
    assert first["images"] == 4 and torch.equal(first["boxes"], second["boxes"])
    torch.testing.assert_close(first["boxes"], alone["boxes"], rtol=0.05, atol=0.5)


def test_mistakes_are_told(tmp_path, monkeypatch):
    root = coco_tree(tmp_path)
    with pytest.raises(UserError, match="mask_rcnn_fpn learns from masks"):
        evaluation(root, detector="mask_rcnn_fpn", layout="voc")
    with pytest.raises(UserError, match="train_sizes is empty"):
        evaluation(root, train_sizes=[])
    monkeypatch.setattr(detection.comm, "world_size", lambda: 4)
    with pytest.raises(UserError, match="batch_size=2 cannot be shared among 4 processes"):
        evaluation(root).run(bench())
    monkeypatch.undo()
    with pytest.raises(UserError, match="diverged"):
        evaluation(root, lr=1e9, optimizer="sgd").run(bench())
    monkeypatch.setattr(detection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pycocotools, which is not installed"):
        evaluation(root).typical_images()
