"""Fine-tuning: by hand, stopped and resumed, in two processes as in one, and on images whose classes can be learnt."""

import json
import math

import pytest
import torch
from processes import run_in_processes
from tiny_training import Tiny, bench_of, images_of, normalised, trunk
from torch import nn

from vissl_like.data.transforms.multi_crop import MultiCrop
from vissl_like.evaluation import finetune
from vissl_like.evaluation.finetune import FinetuneEvaluation, Labelled, build_optimizer, rate_at, set_drop_path
from vissl_like.evaluation.supervised import Keeper
from vissl_like.models.drop_path import DropPath
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.utils.errors import UserError

WHOLE = {"scale": [1.0, 1.0], "flip": 0.0}


def kept_models(monkeypatch):
    """Models that were trained, in order."""
    found = []
    original = finetune.extract_features
    monkeypatch.setattr(
        finetune, "extract_features", lambda model, *a, **o: found.append(model) or original(model, *a, **o)
    )
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_two_steps_are_those_of_torch(monkeypatch, smoothing):
    train, network = images_of(12), trunk(norm=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    models = kept_models(monkeypatch)
    evaluation = FinetuneEvaluation(
        epochs=2, batch_size=12, trunk_lr=0.05, head_lr=0.5, weight_decay=0.01, head_deviation=0.1, smoothing=smoothing,
        **WHOLE,
    )  # fmt: skip
    result = evaluation.run(bench_of(network, train, images_of(9, seed=1)))
    reference = Labelled(trunk(norm=True), 3, 0.1, 0).double().train()
    parts = [{"params": reference.trunk.parameters(), "lr": 0.05}, {"params": reference.head.parameters(), "lr": 0.5}]
    optimizer = torch.optim.SGD(parts, lr=0.1, momentum=0.9, weight_decay=0.01)
    rows, labels = normalised(train), torch.tensor(train.labels)
    for share in (1.0, (1 + math.cos(math.pi / 2)) / 2):
        for group, first in zip(optimizer.param_groups, (0.05, 0.5), strict=True):
            group["lr"] = share * first
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(rows), labels, label_smoothing=smoothing).backward()
        optimizer.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(models[0].state_dict()[name].to(value.dtype), value, rtol=1e-4, atol=1e-5)
    scores = reference.eval()(normalised(images_of(9, seed=1)))
    assert result.predictions.tolist() == scores.argmax(dim=1).tolist()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_first_weights():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    model = Labelled(trunk(), 40, 0.05, 3)
    assert float(model.head.weight.detach().std()) == pytest.approx(0.044, abs=0.008)  # cut off at two deviations
    assert float(model.head.weight.detach().abs().max()) <= 0.1 and not model.head.bias.any()
    assert torch.equal(model.head.weight, Labelled(trunk(), 40, 0.05, 3).head.weight)
    torch.random.set_rng_state(state)
    assert float(Labelled(trunk(), 40, None, 3).head.weight.detach().abs().max()) <= 1 / math.sqrt(6)


def rates(steps_per_epoch=1, **options):
    made = FinetuneEvaluation(**options).options
    return [rate_at(step / steps_per_epoch, made) for step in range(options["epochs"] * steps_per_epoch)]


def test_schedules_by_hand():
    found = rates(epochs=20, schedule="milestones", milestones=[12, 16])
    assert found == pytest.approx([1.0] * 12 + [0.2] * 4 + [0.04] * 4)
    assert rates(3, epochs=2, schedule="milestones", milestones=[1]) == pytest.approx([1, 1, 1, 0.2, 0.2, 0.2])
    assert rates(epochs=4) == pytest.approx([1, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2)])
    assert rates(2, epochs=2) == pytest.approx(rates(epochs=4))
    assert rates(2, epochs=2, schedule="cosine_epoch", final=0.1) == pytest.approx([1, 1, 0.55, 0.55])
    found = rates(2, epochs=4, warmup_epochs=2, warmup_start=0.2)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.5])
    found = rates(3, epochs=4, warmup_epochs=2, warmup_start=0.2, schedule="cosine_epoch")
    assert found[:6] == pytest.approx([0.2] * 3 + [0.6] * 3)
    assert rates(7, epochs=30, schedule="cosine_epoch")[7 * 29] < 0.01


def test_what_is_decayed():
    vit = VisionTransformer(3, size="tiny", depth=1, patch_size=8, image_size=16)
    model = Labelled(vit, 3, None, 0)
    options = FinetuneEvaluation(optimizer="adamw", trunk_lr=0.1, head_lr=0.2, weight_decay=0.05).options
    names = {id(value): name for name, value in model.named_parameters()}
    groups = build_optimizer(model, options).param_groups
    found = {names[id(value)]: (group["lr"], group["weight_decay"]) for group in groups for value in group["params"]}
    assert len(found) == len(names)
    assert found["trunk.cls_token"] == found["trunk.pos_embed"] == found["trunk.norm.weight"] == (0.1, 0.0)
    assert found["trunk.blocks.0.attn.qkv.weight"] == found["trunk.patch_embed.proj.weight"] == (0.1, 0.05)
    assert found["head.weight"] == (0.2, 0.05) and found["head.bias"] == (0.2, 0.0)
    options = FinetuneEvaluation(weight_decay=0.05, momentum=0.8).options
    groups = build_optimizer(model, options).param_groups
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in groups] == [(0.01, 0.05, 0.8), (0.1, 0.05, 0.8)]


def test_branches_that_drop():
    vit = VisionTransformer(3, size="tiny", depth=3, patch_size=8, image_size=16)
    set_drop_path(vit, 0.2)
    assert [block.drop_path.drop_prob for block in vit.blocks] == pytest.approx([0, 0.1, 0.2])
    set_drop_path(vit, 0.1)  # the pattern is there now, and is scaled
    assert [block.drop_path.drop_prob for block in vit.blocks] == pytest.approx([0, 0.05, 0.1])
    other = nn.Sequential(DropPath(0.3), nn.Sequential(DropPath(0.6)))
    set_drop_path(other, 0.1)
    assert other[0].drop_prob == pytest.approx(0.05) and other[1][0].drop_prob == pytest.approx(0.1)
    set_drop_path(trunk(), 0.0)
    with pytest.raises(UserError, match="no branches to drop"):
        FinetuneEvaluation(epochs=1, drop_path=0.1).run(bench_of(trunk(), images_of(9), None))


def test_a_share_of_the_labels():
    labels = [0] * 30 + [1] * 10 + [2]
    train, test = images_of(41, labels=labels), images_of(9, seed=1)
    result = FinetuneEvaluation(epochs=1, share=0.2).run(bench_of(trunk(), train, test))
    assert result.train_images == 9 and result.test_images == 9  # 6 + 2 + 1
    assert result.details["notices"] == ["the share 0.2 rounds to no image of 1 class(es), which keep one each"]
    assert result.details["batch_size"] == 9 and result.chance.metrics["top1"] == pytest.approx(100 / 3)
    result = FinetuneEvaluation(epochs=1, shots=3).run(bench_of(trunk(), images_of(12, classes=2), test))
    assert result.train_images == 6
    assert result.details["notices"] == ["1 class(es) of the test images have no training image: numbers [2]"]


def test_classes_are_learnt_and_items_are_those_of_the_images():
    train, test = images_of(36, broken={3}), images_of(21, seed=1, broken={0})
    result = FinetuneEvaluation(epochs=12, batch_size=12, trunk_lr=0.1).run(bench_of(trunk(norm=True), train, test))
    assert result.metrics["top1"] > 90 and result.chance.metrics["top1"] < 40
    assert result.items.mean() == pytest.approx(result.metrics["top1"]) and len(result.items) == 20
    assert result.item_ids.tolist() == list(range(1, 21)) and result.labels.tolist() == test.labels[1:].tolist()
    assert {item.path for item in result.skipped} == {"memory[3]", "memory[0]"} and result.train_images == 35
    assert result.details["last_loss"] < result.details["first_loss"] and result.details["steps"] == 36
    json.dumps(result.details)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "mixup": 0.8, "erasing": 0.5, "trunk_lr": 0.001}])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch, options):
    if options:
        pytest.importorskip("timm")
    models = kept_models(monkeypatch)
    keep = finetune.keeper_of

    def often(*arguments):
        keeper = keep(*arguments)
        return None if keeper is None else Keeper(keeper.path, every=0.0)

    monkeypatch.setattr(finetune, "keeper_of", often)

    def attempt(folder):
        made = FinetuneEvaluation(epochs=3, batch_size=6, **options)
        return made, bench_of(trunk(norm=True, dropout=0.2), images_of(36), images_of(9, seed=1), folder)

    evaluation, bench = attempt(None)
    straight = evaluation.run(bench)
    evaluation, bench = attempt(tmp_path)
    original, calls = evaluation._objective, []

    def stop(model, batch):
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return original(model, batch)

    evaluation._objective = stop
    with pytest.raises(KeyboardInterrupt):
        evaluation.run(bench)
    assert len(list((tmp_path / "training").iterdir())) == 1
    evaluation, bench = attempt(tmp_path)
    resumed = evaluation.run(bench)
    assert resumed.details["resumed_from"] == 10 and straight.details["resumed_from"] is None
    assert torch.equal(resumed.predictions, straight.predictions)
    for name, value in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], value)
    assert len(list((tmp_path / "training").iterdir())) == 1  # until the result is on disk


def _in_a_process(rank, world):
    found = []
    original = finetune.extract_features
    finetune.extract_features = lambda model, *a, **o: found.append(model) or original(model, *a, **o)
    made = FinetuneEvaluation(epochs=2, batch_size=8, trunk_lr=0.05, weight_decay=0.01)
    network = trunk(norm=True)
    result = made.run(bench_of(network, images_of(24, broken={5}), images_of(9, seed=1, broken={2})))
    finetune.extract_features = original
    assert type(network.norm) is nn.BatchNorm2d
    answers = None if result is None else [result.predictions, [item.path for item in result.skipped]]
    return {"model": found[0].state_dict(), "answers": answers}


def test_two_processes_train_as_one():
    alone = _in_a_process(0, 1)
    first, second = run_in_processes(_in_a_process, 2)
    assert second["answers"] is None and torch.equal(first["answers"][0], alone["answers"][0])
    assert sorted(first["answers"][1]) == sorted(alone["answers"][1]) == ["memory[2]", "memory[5]"]
    for name, value in alone["model"].items():
        torch.testing.assert_close(first["model"][name], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(first["model"][name], second["model"][name])


def test_augmentation_as_in_deit(monkeypatch):
    pytest.importorskip("timm")
    seen = []
    original = FinetuneEvaluation._objective
    monkeypatch.setattr(FinetuneEvaluation, "_objective", lambda s, m, b: seen.append(b) or original(s, m, b))
    made = FinetuneEvaluation(
        epochs=1, batch_size=6, optimizer="adamw", smoothing=0.1, mixup=0.8, cutmix=1.0, erasing=0.25, repeats=3,
        rand_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", drop_last=True,
    )  # fmt: skip
    result = made.run(bench_of(trunk(), images_of(21), images_of(9, seed=1)))
    assert result.details["steps"] == 3 and [len(batch[0]) for batch in seen] == [6, 6, 6]
    for _, targets, numbers in seen:
        assert numbers.tolist() == [n for n in numbers[::3].tolist() for _ in range(3)]
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
        assert float(targets.min()) >= 0.1 / 3 - 1e-6  # smooth once, not twice
        assert float(targets.max()) <= 0.9 + 0.1 / 3 + 1e-6


def test_options_that_do_not_fit():
    for options, message in (
        ({"share": 1.5}, "EVALUATION.share is 1.5"),
        ({"share": 0.1, "shots": 3}, "not both"),
        ({"schedule": "milestones"}, "goes with a list of epochs"),
        ({"milestones": [3]}, "goes with a list of epochs"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs is 3"),
        ({"smoothing": 1.0}, "leaves nothing"),
    ):
        with pytest.raises(UserError, match=message):
            FinetuneEvaluation(**options)


def test_trainings_that_cannot_be():
    with pytest.raises(UserError, match="of one class only"):
        FinetuneEvaluation(epochs=1).run(bench_of(trunk(), images_of(9, labels=[0] * 9), images_of(9)))
    broken = trunk()
    broken.conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"fine-tuning, net: training diverged"):
        FinetuneEvaluation(epochs=1).run(bench_of(broken, images_of(9), images_of(9)))
    unlabelled = images_of(9)
    unlabelled.labels = None
    with pytest.raises(UserError, match="training needs labels"):
        FinetuneEvaluation(epochs=1).run(bench_of(Tiny(), unlabelled, images_of(9)))


def test_training_crops_are_those_of_the_options(monkeypatch):
    made = []
    original = MultiCrop.__init__
    monkeypatch.setattr(MultiCrop, "__init__", lambda self, *a, **o: made.append(o) or original(self, *a, **o))
    FinetuneEvaluation(epochs=1, scale=[0.2, 0.9], flip=0.1).run(bench_of(trunk(), images_of(9), None))
    assert made[0]["views"] == [{"count": 1, "size": 8, "scale": [0.2, 0.9]}] and made[0]["flip"] == 0.1
    assert made[0]["jitter"] is None and made[0]["blur"] is None and made[0]["grayscale"] == 0
