from types import SimpleNamespace

import pytest

from vissl_like.config import make_plan
from vissl_like.config.resolve import split_batch
from vissl_like.utils.errors import SettingsError


def settings(**changes):
    train = {"length": "10 epochs", "global_batch": 256, "accumulation": "auto", "max_per_rank_batch": None}
    train |= {"precision": "auto", "channels_last": "auto", "threads": None}
    optimizer = {"base_lr": 0.3, "base_batch": 256}
    checkpoint = {"every": "10%", "keep_every": None}
    for group in (train, optimizer, checkpoint):
        group.update({key: value for key, value in changes.items() if key in group})
    return SimpleNamespace(
        TRAIN=SimpleNamespace(**train),
        OPTIMIZER=SimpleNamespace(**optimizer),
        CHECKPOINT=SimpleNamespace(**checkpoint),
    )


def plan(dataset_size=2624, world_size=1, device="cpu", bf16=False, cores=2, **changes):
    return make_plan(settings(**changes), dataset_size, world_size, device, bf16, cores)


def test_numbers_by_hand():
    found = plan(dataset_size=2624, world_size=2, global_batch=64, accumulation=2, length="49 epochs", base_lr=0.4)
    assert (found.per_rank_batch, found.accumulation, found.world_size) == (16, 2, 2)
    assert (found.steps_per_epoch, found.total_steps) == (41, 2009)  # 2624 = 41 * 64
    assert found.epochs == 49 and found.images_total == 2009 * 64
    assert found.peak_lr == pytest.approx(0.1) and found.base_lr == 0.4 and found.lr_rule == "* 64 / 256"
    assert found.checkpoint_every_steps == 201 and found.keep_every_steps is None
    assert found.threads == 1


def test_the_last_incomplete_batch_is_dropped():
    found = plan(dataset_size=1000, global_batch=256, length="2 epochs")
    assert found.steps_per_epoch == 3 and found.total_steps == 6
    assert "232 left over in each epoch" in found.format_table()


def test_lengths():
    assert plan(length="500 steps").total_steps == 500
    assert plan(length="500 steps").epochs == 50
    assert plan(length="0.5 epochs").total_steps == 5
    assert plan(length="100 steps", every="1 epochs", keep_every="25%").checkpoint_every_steps == 10
    assert plan(length="100 steps", keep_every="25%").keep_every_steps == 25
    assert plan(length="3 steps", every="1%").checkpoint_every_steps == 1


def test_no_scaling_without_a_base_batch():
    found = plan(base_batch=None, global_batch=64)
    assert found.peak_lr == 0.3 and found.lr_rule == "as given"


@pytest.mark.parametrize(
    ("wanted", "device", "bf16", "expected"),
    [
        ("auto", "cpu", False, "fp32"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("fp16", "cuda", True, "fp16"),
        ("fp32", "cuda", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_precision(wanted, device, bf16, expected):
    assert plan(precision=wanted, device=device, bf16=bf16).precision == expected


def test_channels_last_and_threads():
    assert plan(channels_last="auto").channels_last is True
    assert plan(channels_last=False).channels_last is False
    assert plan(cores=16, world_size=4).threads == 4
    assert plan(cores=2, world_size=4).threads == 1
    assert plan(threads=3, cores=16).threads == 3


@pytest.mark.parametrize(
    ("batch", "world", "accumulation", "limit", "expected"),
    [
        (256, 1, "auto", None, (256, 1)),
        (256, 4, "auto", None, (64, 1)),
        (256, 4, "auto", 64, (64, 1)),
        (256, 4, "auto", 63, (32, 2)),
        (256, 1, "auto", 100, (64, 4)),
        (100, 1, "auto", 32, (25, 4)),
        (96, 1, "auto", 40, (32, 3)),
        (256, 2, 4, None, (32, 4)),
        (256, 2, 4, 32, (32, 4)),
    ],
)
def test_split(batch, world, accumulation, limit, expected):
    per_rank, forwards = split_batch(batch, world, accumulation, limit)
    assert (per_rank, forwards) == expected and per_rank * forwards * world == batch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 3, "auto", None), "cannot be divided equally into 3 processes. Nearest that can: 99 or 102."),
        ((2, 4, "auto", None), "Nearest that can: 4."),
        ((100, 2, 3, None), "2 process(es) x 3 forward(s). Nearest that can: 96 or 102."),
        ((61, 1, "auto", 32), "2 forwards of at most 32. Nearest that can: 60 or 62."),
        ((256, 1, 2, 64), "128 images per process and forward are more than max_per_rank_batch, 64"),
    ],
)
def test_batches_that_cannot_be_split(arguments, message):
    with pytest.raises(SettingsError) as caught:
        split_batch(*arguments)
    assert message in str(caught.value)


def test_runs_without_a_step():
    with pytest.raises(SettingsError, match="more than the 40 training images"):
        plan(dataset_size=40, global_batch=64)
    with pytest.raises(SettingsError, match="less than one step"):
        plan(length="0.01 epochs")
    with pytest.raises(SettingsError, match="needs a run length"):
        plan(length="5%")


def test_every_number_is_printed_with_its_rule():
    found = plan(world_size=2, accumulation=2, keep_every="50%", length="100 epochs")
    table = found.format_table()
    assert len(table.splitlines()) == len(found.rows) == 8
    rows = {given: (rule, result) for given, rule, result in found.rows}
    assert rows["global batch 256"] == ("/ 2 processes / 2 forwards", "64 images per process and forward")
    assert rows["base lr 0.3"] == ("* 256 / 256", "peak lr 0.3")
    assert rows["precision auto"][1] == "fp32"
    assert rows["keep every 50%"][1] == "every 500 steps"


def test_with_loaded_settings(load):
    found = make_plan(load("TRAIN.max_per_rank_batch=32").resolved, 1000, 1, "cpu", False, 2)
    assert (found.per_rank_batch, found.accumulation, found.steps_per_epoch) == (32, 2, 15)
    assert found.peak_lr == pytest.approx(0.3 / 4)
