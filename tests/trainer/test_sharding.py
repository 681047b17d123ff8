"""Two sharded processes compute what two data-parallel ones do, and so do their optimizers, guards and checkpoints."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import run_in_processes
from torch import nn

from vissl_like.data.normalise import Normalise
from vissl_like.distributed.sharding import whole
from vissl_like.losses.base import LossContext
from vissl_like.losses.dino import DINOLoss
from vissl_like.losses.swav import SwAVLoss
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.models.heads.dino import DINOHead
from vissl_like.models.heads.swav import SwAVHead
from vissl_like.models.recompute import recompute_blocks
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.ema import EMATeacher
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.optimizers.adamw import adamw
from vissl_like.optimizers.larc import LARC
from vissl_like.optimizers.lars import LARS
from vissl_like.optimizers.sgd import sgd
from vissl_like.records import Batch, Progress
from vissl_like.trainer.build import check_optimizer
from vissl_like.trainer.checkpoint import Checkpoint, CheckpointStore, inspect_checkpoint
from vissl_like.trainer.clipping import Clipping
from vissl_like.trainer.network import wrap
from vissl_like.trainer.precision import Precision
from vissl_like.trainer.sharded_state import load_into, put_together, take_out
from vissl_like.trainer.step import TrainStep
from vissl_like.utils.errors import UserError

OPTIMIZERS = {
    "adamw": functools.partial(adamw, weight_decay=0.1, eps=1e-2),
    "sgd": functools.partial(sgd, weight_decay=1e-3),
    "larc": functools.partial(LARC, trust=0.05),
    "lars": functools.partial(LARS, trust=0.05),
}
CPU = torch.device("cpu")


def context(views, prototypes, dim, world_size):
    return LossContext(views, dim, (prototypes,), 8, 8 * world_size, world_size, 64, 4, 8)


def make(method, optimizer, sharding, world_size, each_tensor=False, saving=False, kind="fp32"):
    """A model, its teacher and its step, on two processes the same."""
    torch.manual_seed(3)
    if method == "swav":
        trunk = ResNet(3, depth=10, width=0.125, stem="small")
        head = SwAVHead(trunk.feature_dim, hidden_dim=9, output_dim=6, num_prototypes=5, freeze_prototypes="2 steps")
        loss = SwAVLoss(context(3, 5, 6, world_size), queue_length=0)
    else:
        trunk = VisionTransformer(3, size="tiny", patch_size=8, image_size=16, depth=2)
        options = {"hidden_dim": 16, "bottleneck_dim": 7, "num_prototypes": 9}
        head = DINOHead(trunk.feature_dim, **options, norm_last_layer=False, freeze_last_layer="1 steps")
        loss = DINOLoss(context(3, 9, 7, world_size))
    model = synchronise_batch_norm(SSLModel(trunk, head), "cpu")
    if saving:
        recompute_blocks(model.trunk)
    teacher = EMATeacher(model, momentum=0.7) if method == "dino" else None
    model.to(memory_format=torch.channels_last)
    wrapped = wrap(model, teacher, CPU, sharding, kind)
    named = wrapped.own_parameters() if sharding == "full" else list(model.named_parameters())
    built = OPTIMIZERS[optimizer](named, 0.1)
    clip = Clipping(0.05 if each_tensor else 0.3, each_tensor)
    rates = {"lr": lambda progress: 0.02 if optimizer == "adamw" else 0.05}
    normalise = Normalise([0.5] * 3, [0.25] * 3, CPU)
    step = TrainStep(
        model,
        wrapped,
        loss,
        built,
        rates,
        Precision(kind, "cpu", keep_casts=sharding == "none"),
        normalise,
        clip,
        teacher,
    )
    return model, teacher, built, step


def micro_batches(rank, step, count=2):
    generator = torch.Generator().manual_seed(100 * step + rank)
    draw = lambda side: torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=generator)  # noqa: E731
    return [Batch([draw(16), draw(16), draw(8)], torch.arange(4)) for _ in range(count)]


def weights(module):
    """Every tensor whole."""
    state = module.state_dict()
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for name, t in state.items()}


def train(step, rank, first, last):
    reports = [step(micro_batches(rank, number), Progress(number, 8, 4)) for number in range(first, last)]
    return torch.tensor([[report.loss, report.grad_norm] for report in reports])


CASES = {
    "larc": ("swav", "larc", False, False),
    "sgd": ("swav", "sgd", True, False),
    "lars": ("swav", "lars", False, True),
    "adamw with a teacher": ("dino", "adamw", True, True),
    "lars with a teacher": ("dino", "lars", False, False),
    "bf16": ("dino", "lars", False, True, "bf16"),
}


def _both_ways(rank, world_size, method, optimizer, each_tensor, saving, kind="fp32"):
    found = []
    for sharding in ("none", "full"):
        recompute = saving and sharding == "full"
        model, teacher, _, step = make(method, optimizer, sharding, world_size, each_tensor, recompute, kind)
        numbers = train(step, rank, 0, 4)
        found.append([numbers, weights(model), {} if teacher is None else weights(teacher)])
    divided = [name for name, tensor in model.named_parameters() if hasattr(tensor, "to_local")]
    return {"found": found, "divided": divided, "kinds": sorted({type(module).__name__ for module in model.modules()})}


def states(model, teacher, optimizer):
    common = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return {**common, "teacher": {} if teacher is None else teacher.state_dict()}


def take_up(folder, count, model, teacher, optimizer):
    """As a run does it."""
    checkpoint = Checkpoint(folder, 2, {"shards": count, "world_size": count})
    common = torch.load(folder / "state.pt", weights_only=True)
    common = put_together(common, checkpoint, model, teacher, optimizer)
    load_into(model, common["model"])
    load_into(teacher, common["teacher"])
    optimizer.load_state_dict(common["optimizer"])


def _stopped(rank, world_size, folder):
    """Four steps straight; two, a checkpoint, and two in a new network; the same checkpoint taken up unsharded."""
    straight = make("dino", "adamw", "full", world_size)
    train(straight[3], rank, 0, 4)
    first = make("dino", "adamw", "full", world_size)
    train(first[3], rank, 0, 2)
    kept = {name: tensor.clone() for name, tensor in first[3].loss.state_dict().items()}
    common, shards = take_out(states(*first[:3]), first[2])
    kept_rows = {name: tensor.clone() for name, tensor in shards.items()}
    store = CheckpointStore(Path(folder), 1, None, None, lambda *_: None)
    path = store.save(2, common, {"rng": torch.zeros(1)}, {}, {}, {}, shards)
    second, plain = (make("dino", "adamw", sharding, world_size) for sharding in ("full", "none"))
    with torch.no_grad():
        for parameter in second[0].parameters():
            parameter.zero_()
    take_up(path, world_size, *second[:3])
    second[3].loss.load_state_dict(kept)
    train(second[3], rank, 2, 4)
    take_up(path, world_size, *plain[:3])
    common, none = take_out(states(*plain[:3]), plain[2])
    assert none is None
    third = make("dino", "adamw", "full", world_size)
    with torch.no_grad():
        for parameter in third[0].parameters():
            parameter.zero_()
    common = put_together(common, Checkpoint(path, 2, {}), *third[:3])
    load_into(third[0], common["model"])
    load_into(third[1], common["teacher"])
    third[2].load_state_dict(common["optimizer"])
    _, rows = take_out(states(*third[:3]), third[2])
    moments = [first[2].state_dict()["state"][index]["exp_avg"].shape for index in range(3)]
    return {
        "straight": [weights(straight[0]), weights(straight[1])],
        "second": [weights(second[0]), weights(second[1])],
        "first": [weights(first[0]), weights(first[1])],
        "third": [weights(third[0]), weights(third[1])],
        "rows": rows.keys() == shards.keys() and all(torch.equal(rows[name], kept_rows[name]) for name in rows),
        "plain": [weights(plain[0]), weights(plain[1])],
        "moments": [list(shape) for shape in moments],
        "path": str(path),
    }


def _guarded(rank, world_size):
    """An infinity in one process's rows stops all; a whole network needs no other process."""
    model, _, _, step = make("swav", "sgd", "full", world_size)
    train(step, rank, 0, 1)
    model.eval()
    images = torch.rand(2, 3, 16, 16)
    with whole(model.trunk), torch.no_grad():
        features = [model.trunk(images) for _ in range(3 if rank == 0 else 1)]
    reference = ResNet(3, depth=10, width=0.125, stem="small")
    reference.load_state_dict(weights(model.trunk))
    apart = all(hasattr(parameter, "to_local") for parameter in model.trunk.parameters())
    same = torch.allclose(features[-1], reference.eval()(images), atol=1e-5)
    model.train()
    train(step, rank, 1, 2)
    if rank == 1:
        model.trunk.layer4[0].conv2.weight.to_local().detach().view(-1)[0] = float("inf")
    before = weights(model)
    report = step(micro_batches(rank, 2), Progress(2, 8, 4))
    kept = all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items() if "num" not in name)
    return [same, apart, report.skipped_update, kept, "weight trunk.layer4.0.conv2.weight" in report.non_finite]


def _everything(rank, world_size, folder):
    found = {name: _both_ways(rank, world_size, *case) for name, case in CASES.items()}
    return {**found, "stopped": _stopped(rank, world_size, folder), "guarded": _guarded(rank, world_size)}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return run_in_processes(_everything, 2, str(tmp_path_factory.mktemp("stopped")))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_sharded_equals_data_parallel(processes, case):
    """Losses, gradient norms, weights, running statistics and the teacher, with accumulation, clipping and freezing."""
    method, close = CASES[case][0], {"rtol": 1e-3, "atol": 1e-4}
    if case == "bf16":  # the order of sums over processes decides about the last of its 8 bits
        close = {"rtol": 2e-2, "atol": 2e-3}
    for result in processes:
        (numbers, model, teacher), (sharded_numbers, sharded_model, sharded_teacher) = result[case]["found"]
        torch.testing.assert_close(sharded_numbers, numbers, **close)
        for expected, got in ((model, sharded_model), (teacher, sharded_teacher)):
            assert expected.keys() == got.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(got[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **close)
        assert bool(teacher) == (method == "dino")
        divided = set(result[case]["divided"])
        read_directly = {n for n in model if n.startswith(("head.prototypes", "head.last_layer"))}
        assert read_directly and not read_directly & divided
        assert any(name.startswith("head.") for name in divided)
        block = "BasicBlock" if method == "swav" else "Block"
        assert f"FSDP{'Recomputing' if CASES[case][3] else ''}{block}" in result[case]["kinds"]


@pytest.mark.slow
def test_the_steps_change_something(processes):
    """So that equality says something: weights after four steps are not those before."""
    model, _, _, _ = make("swav", "larc", "none", 1)
    trained = processes[0]["larc"]["found"][1][1]
    moved = [name for name, tensor in model.named_parameters() if not torch.allclose(tensor, trained[name], atol=1e-3)]
    assert len(moved) > 10 and "head.prototypes.weight" in moved


@pytest.mark.slow
def test_a_resumed_run_is_the_same_bit_for_bit(processes):
    for result in processes:
        for one, other in zip(result["stopped"]["straight"], result["stopped"]["second"], strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_an_unsharded_checkpoint_serves_sharded_processes(processes):
    """Each gets its rows of weights, teacher and moments."""
    for result in processes:
        for one, other in zip(result["stopped"]["first"], result["stopped"]["third"], strict=True):
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        assert result["stopped"]["rows"]


@pytest.mark.slow
def test_a_sharded_checkpoint_serves_unsharded_processes_of_any_number(processes):
    stopped = processes[0]["stopped"]
    alone = make("dino", "adamw", "none", 1)
    take_up(Path(stopped["path"]), 2, *alone[:3])
    for found in (stopped["plain"], [weights(alone[0]), weights(alone[1])]):
        for one, other in zip(stopped["first"], found, strict=True):
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    shapes = [parameter.shape for group in alone[2].param_groups for parameter in group["params"]]
    own = stopped["moments"]
    assert own != [list(shape) for shape in shapes[:3]]  # each process had its rows only
    for index, values in alone[2].state_dict()["state"].items():
        assert values["exp_avg"].shape == shapes[index]


@pytest.mark.slow
def test_shards_are_part_of_the_checkpoint(processes, tmp_path):
    """Damage is found, and nothing that is read is a pickle of weights."""
    folder = tmp_path / "step_00000002"
    shutil.copytree(processes[0]["stopped"]["path"], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert inspect_checkpoint(folder)[0] is None and manifest["shards"] == 2
    assert {"shard_00000.safetensors", "shard_00001.safetensors"} <= manifest["files"].keys()
    common = torch.load(folder / "state.pt", weights_only=True)
    assert {name.split(".")[0] for name in common["model"]} == {"head"}  # prototypes; a ViT has no buffers
    shard = folder / "shard_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 255
    shard.write_bytes(content)
    assert "shard_00001.safetensors does not match its digest" in inspect_checkpoint(folder)[0]
    shard.unlink()
    assert "is missing" in inspect_checkpoint(folder)[0]
    del manifest["files"][shard.name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "does not name shard_00001" in inspect_checkpoint(folder)[0]


@pytest.mark.slow
def test_guard_and_whole_networks(processes):
    for rank, result in enumerate(processes):
        same, apart, skipped, kept, named = result["guarded"]
        assert same and apart and skipped and kept and named == (rank == 1)


def test_an_optimizer_that_says_nothing_is_refused():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(UserError, match=r"'adagrad' does not say.*Allowed are adamw, sgd, larc, lars"):
        check_optimizer(torch.optim.Adagrad([weight]), "adagrad")
    for built in (torch.optim.AdamW([weight]), sgd([("w", weight)], 0.1), LARC([("w", weight)], 0.1)):
        check_optimizer(built, "known")
