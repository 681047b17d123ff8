"""``--estimate`` against real runs on the CPU: what autograd keeps, what an optimizer and a teacher hold."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from vissl_like.config import load_settings, make_plan
from vissl_like.engines import cli, estimate
from vissl_like.engines.held_memory import largest_group
from vissl_like.records import Batch, Progress
from vissl_like.registry import OPTIMIZERS, TEACHERS
from vissl_like.trainer.build import build_loss
from vissl_like.trainer.components import build
from vissl_like.trainer.network import build_model
from vissl_like.utils.errors import UserError

SWAV = ["config=quick/synthetic", "config.DISTRIBUTED.device=cpu"]
DINO = [
    *SWAV,
    "config.MODEL.TRUNK={name: vit, size: tiny, depth: 2, patch_size: 8, drop_path: 0.1}",
    "config.MODEL.HEAD={name: dino, hidden_dim: 40, bottleneck_dim: 12, num_prototypes: 30}",
    "config.MODEL.TEACHER={name: ema}",
    "config.LOSS={name: dino}",
]
SIZES = [24, 24, 16, 16]


def real_run(arguments):
    """The same network with memory and numbers, and its micro-batch."""
    settings = load_settings(arguments).resolved
    plan = make_plan(settings, 64, 1, "cpu", False, 1)
    model, _ = build_model(settings, 3, torch.device("cpu"), plan, load=False)
    teacher = None if settings.MODEL.TEACHER is None else build(TEACHERS, settings.MODEL.TEACHER, model)
    loss = build_loss(settings, plan, model, len(SIZES), torch.device("cpu"))
    views = [torch.randn(plan.per_rank_batch, 3, s, s).to(memory_format=torch.channels_last) for s in SIZES]
    batch = Batch(views, torch.arange(plan.per_rank_batch))
    return SimpleNamespace(settings=settings, plan=plan, model=model, teacher=teacher, loss=loss, batch=batch)


def forward(run):
    run.model.head.before_forward(Progress(0, 12, 4))
    with torch.autocast("cpu", torch.bfloat16, enabled=run.plan.precision == "bf16"):
        taught = None if run.teacher is None else run.teacher([run.batch.views[v] for v in run.loss.teacher_views])
        output = run.model(run.batch.views)
    output.teacher = taught
    return run.loss(output, run.batch, Progress(0, 12, 4))["loss"]


def kept_for_backward(call, *without):
    """Bytes of all storages that autograd saves in ``call()``, each once, but those of ``without``."""
    apart, found = {tensor.untyped_storage().data_ptr() for tensor in without}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            found[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    assert result is not None
    return sum(size for size, _ in found.values())


def sizes(found, column="whole"):
    return {row.label: getattr(row, column) for row in found.rows}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arguments", [SWAV, DINO], ids=["resnet_swav", "vit_dino"])
def test_activations_are_those_that_autograd_keeps_in_a_real_pass(arguments, precision):
    arguments = [*arguments, f"config.TRAIN.precision={precision}"]
    run = real_run(arguments)
    measured = kept_for_backward(
        lambda: forward(run), *run.model.parameters(), *run.model.buffers(), *run.loss.buffers(), *run.batch.views
    )
    found = sizes(estimate.estimate(load_settings(arguments)))
    assert measured > 1e6
    expected = found["activations"] + found.get("weights in bf16, for the pass", 0)
    assert expected == pytest.approx(measured, rel=0.001)
    assert found["input batch"] == sum(16 * 3 * size * size * 4 for size in SIZES)
    if precision == "bf16":  # half of every weight that a matrix product or a convolution reads
        assert 0.3 < found["weights in bf16, for the pass"] / found["weights"] <= 0.5


@pytest.mark.parametrize("optimizer", ["adamw", "larc", "sgd", "lars"])
def test_weights_gradients_optimizer_and_teacher_are_exact(optimizer):
    arguments = [*DINO, f"config.OPTIMIZER={{name: {optimizer}, base_lr: 0.1}}"]
    run = real_run(arguments)
    trained = build(OPTIMIZERS, run.settings.OPTIMIZER, list(run.model.named_parameters()), 0.1)
    forward(run).backward()
    trained.step()
    state = [value for each in trained.state.values() for value in each.values() if torch.is_tensor(value)]
    found = sizes(estimate.estimate(load_settings(arguments)))
    total = lambda tensors: sum(tensor.nbytes for tensor in tensors)  # noqa: E731
    label = next(key for key in found if key.startswith(f"optimizer state ({optimizer}: "))
    assert found[label] == total(state) > 0
    assert found["weights"] == total(run.model.parameters())
    assert found["gradients"] == total(p.grad for p in run.model.parameters() if p.grad is not None)
    assert found["gradients"] < found["weights"]  # the last layer's lengths are not trained
    assert found["teacher"] == total(run.teacher.parameters())
    assert found["loss state"] == total(run.loss.buffers())


def test_blocks_that_are_computed_again_keep_their_inputs_only():
    arguments = [*SWAV, "config.MODEL.ACTIVATION_CHECKPOINTING=true", "config.TRAIN.precision=fp32"]
    plain, found = real_run(arguments[:-2]), sizes(estimate.estimate(load_settings(arguments)))
    inputs, inside = [], []

    def look(block, given, _result):
        inputs.append(given[0].nbytes)
        inside.append(kept_for_backward(lambda: type(block).forward(block, *given), given[0], *block.parameters()))

    blocks = [module for module in plain.model.trunk.modules() if type(module).__name__ == "BasicBlock"]
    hooks = [block.register_forward_hook(look) for block in blocks]
    forward(plain)
    for hook in hooks:
        hook.remove()
    everything = sizes(estimate.estimate(load_settings([*SWAV, "config.TRAIN.precision=fp32"])))["activations"]
    assert len(blocks) == 4 and sum(inputs) < found["activations"] < everything / 2
    assert found["one block's activations, computed again"] == pytest.approx(max(inside), rel=0.02)


def test_rows_of_the_first_dimension_are_dealt_out():
    several = [*SWAV, "config.DISTRIBUTED.processes=3", "config.TRAIN.global_batch=48", "config.LOSS.queue_length=48"]
    found = estimate.estimate(load_settings(several))
    alone = sizes(estimate.estimate(load_settings(SWAV)))
    run = real_run(SWAV)
    own = whole = 0
    for name, parameter in run.model.named_parameters():
        rows = parameter.shape[0]
        part = rows if name.startswith("head.prototypes") else math.ceil(rows / 3)
        own += part * parameter[0].numel() * 4
        whole += parameter.nbytes
    assert sizes(found)["weights"] == whole == sizes(found)["gradients"]
    assert sizes(found, "sharded")["weights"] == own == sizes(found, "sharded")["gradients"]
    start = whole + sum(buffer.nbytes for buffer in run.model.buffers())
    assert any(f"whole network ({estimate.readable(start)})" in text for text in found.remarks)
    assert sizes(found)["activations"] == sizes(found, "sharded")["activations"] == alone["activations"]
    largest = max(sum(p.nbytes for p in block.parameters()) for block in run.model.trunk.modules() if _is_block(block))
    stem = sum(p.nbytes for name, p in run.model.trunk.named_parameters() if "layer" not in name)
    label = "largest block gathered: weights, gradients"
    assert sizes(found, "sharded")[label] == 2 * (largest + stem) == 2 * largest_group(run.model)


def _is_block(module):
    return type(module).__name__ == "BasicBlock"


@pytest.mark.parametrize(("size", "trunk"), [("256GF", 1_272_156_138), ("10B", 9_323_934_872)])
def test_published_counts_of_networks_that_no_memory_here_holds(monkeypatch, size, trunk):
    monkeypatch.setattr(estimate, "_rows_of_pass", lambda *_: ([], []))
    arguments = ["config=pretrain/swav/rg256_uncurated", "config.DATA.TRAIN.path=nowhere"]
    more = [f"config.MODEL.TRUNK.size={size}", "config.DISTRIBUTED.processes=512"]
    found = estimate.estimate(load_settings([*arguments, *more]))
    assert found.parameters["trunk"] == trunk
    count = sum(found.parameters.values())
    assert sizes(found)["weights"] == sizes(found)["optimizer state (larc: 1 x weights)"] == 4 * count
    assert 4 * count / 512 < sizes(found, "sharded")["weights"] < 4 * count / 512 + 10e6 + 4 * 16000 * 256
    assert dict(found.files)["backbone.safetensors"] == pytest.approx(4 * trunk, rel=0.001)


def test_data_are_counted_only_where_something_is_kept_for_every_image():
    head = "config.MODEL.HEAD={name: mlp, hidden_dim: 32, output_dim: 16, normalize: true}"
    bank = ["config.LOSS={name: deepcluster_v2, num_prototypes: 8, heads: 1}", head]
    here = estimate.estimate(load_settings([*SWAV, *bank]))
    # 64 images, two views of 16 numbers and a position each; a label for every image; 8 centroids, a few scalars
    assert sizes(here)["loss state"] == pytest.approx(64 * (2 * 16 * 4 + 8 + 8) + 8 * 16 * 4, abs=40)
    assert "there are 64" in here.text()
    gone = estimate.estimate(load_settings([*SWAV, *bank, "config.DATA.TRAIN={name: auto, path: gone}"]))
    assert "1,281,167 are supposed" in gone.text() and "'gone'" in gone.text()
    assert sizes(gone)["loss state"] == pytest.approx(1_281_167 * 144, rel=0.001)


def test_the_job_and_its_gpus_are_taken_from_the_settings(monkeypatch):
    monkeypatch.setattr(estimate, "_rows_of_pass", lambda *_: ([], []))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    slurm = ["USE_SLURM=true", "nodes=2", "gpus_per_node=4"]
    found = estimate.estimate(load_settings(["config=quick/synthetic", *[f"config.SLURM.{text}" for text in slurm]]))
    assert found.processes == 8 and "2 images" in dict(found.facts)["micro-batch"]
    assert dict(found.facts)["device"].startswith("cuda (SLURM.gpus_per_node") and "bf16" in found.text()


def test_command_line(capsys, monkeypatch):
    monkeypatch.setattr(estimate, "_rows_of_pass", lambda *_: ([], []))
    assert cli.main(["config=pretrain/swav/rg256_uncurated", "--estimate", "config.DISTRIBUTED.processes=512"]) == 0
    said = capsys.readouterr().out
    assert "512 (DISTRIBUTED.processes)" in said and "1,272,156,138" in said and "5.72 GB" in said
    assert cli.main(["config=pretrain/swav/rg256_uncurated", "--estimate", "config.SEED=-1"]) == 2
    assert "SEED = -1" in capsys.readouterr().err
    assert cli.main(["config=benchmark/knn", "--estimate"]) == 2
    assert "--estimate is about training" in capsys.readouterr().err


def test_a_pass_that_needs_values_is_left_out_by_name(monkeypatch):
    def fails(*_):
        raise RuntimeError("no values here\nmore")

    monkeypatch.setattr(estimate._Pass, "_forward", fails)
    found = estimate.estimate(load_settings(SWAV))
    assert "activations" not in sizes(found) and "input batch" in sizes(found)
    assert "Left out: activations" in found.text() and "no values here" in found.text() and "more\n" not in found.text()


def test_a_network_that_reads_its_weights_while_it_is_built_is_told(monkeypatch):
    monkeypatch.setattr(estimate, "build_model", lambda *_, **__: (torch.zeros(1).item(), ""))
    with pytest.raises(UserError, match=r"--estimate cannot build MODEL.*meta"):
        estimate.estimate(load_settings(SWAV))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "-"), (999, "999 B"), (1000, "1.00 kB"), (5_724_128_168, "5.72 GB"), (38_500_000_000, "38.5 GB")],
)
def test_sizes_are_readable(count, text):
    assert estimate.readable(count) == text
