"""BatchNorm over processes equals BatchNorm on the joined batch: output, gradients, statistics, and what follows it."""

import copy

import pytest
import torch
from processes import run_in_processes
from torch import nn
from torch.nn import functional as F

from vissl_like.distributed import comm
from vissl_like.models.batch_norm import AllReduceBatchNorm, synchronise_batch_norm
from vissl_like.utils.errors import UserError

DATA = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1


class HalfInTraining(nn.Module):
    """A drop without chance, so that processes can be compared."""

    def forward(self, x):
        return x * 0.5 if self.training else x


class NormAct(nn.BatchNorm2d):
    """Laid out as timm's BatchNormAct2d, written by its rule: norm, drop, act (in place)."""

    def __init__(self, channels, momentum=0.1):
        super().__init__(channels, momentum=momentum)
        self.drop, self.act = HalfInTraining(), nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def make(kind, momentum, dtype):
    torch.manual_seed(1)
    norm = (NormAct if kind == "act" else nn.BatchNorm2d)(3, momentum=momentum).to(dtype)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return norm


def work(norm, x):
    x = x.to(norm.weight.dtype, copy=True).requires_grad_()
    for _ in range(2):
        out = norm(x)
    (out.sin().sum()).backward()
    return [out.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def _part(rank, world_size, cases):
    rows = DATA[:2] if rank == 0 else DATA[2:]  # uneven shares
    norms = [synchronise_batch_norm(make(*case), "cpu") for case in cases]
    assert all(isinstance(norm, AllReduceBatchNorm) for norm in norms)
    return [work(norm, rows) for norm in norms]


def test_two_processes_equal_one():
    single, double = torch.float32, torch.float64
    cases = [("plain", 0.1, single), ("plain", None, single), ("plain", None, double)]
    cases += [("act", 0.1, single), ("act", 0.1, double)]
    first, second = run_in_processes(_part, 2, cases)
    for case, a, b in zip(cases, first, second):
        expected = work(make(*case), DATA)
        joined = [torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]), a[2] + b[2], a[3] + b[3], a[4], b[5]]
        close = {"rtol": 1e-4, "atol": 1e-5} if case[2] == single else {"rtol": 1e-10, "atol": 1e-12}
        for mine, reference in zip(joined, expected):
            torch.testing.assert_close(mine, reference, msg=lambda text, case=case: f"{case}: {text}", **close)


def test_alone_and_in_evaluation_it_is_plain_batch_norm():
    plain = nn.BatchNorm1d(5)
    ours = synchronise_batch_norm(copy.deepcopy(plain), "cpu")
    x = torch.randn(6, 5)
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_keys_mode_dtype_and_frozen_parameters_are_kept(device_type):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), NormAct(2)).double().eval()
    network[1].running_mean.fill_(3)
    network[1].bias.requires_grad_(False)
    network[2].drop.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    converted = synchronise_batch_norm(network, device_type)
    after = converted.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert all(after[key].dtype == before[key].dtype for key in before)
    assert [key for key, value in converted.named_parameters() if not value.requires_grad] == ["1.bias"]
    assert not converted[1].training and not converted[2].training and converted[2].drop.training
    spanning = (AllReduceBatchNorm, nn.SyncBatchNorm)
    assert isinstance(converted[1], spanning) and isinstance(converted[2], spanning)
    assert all(new is old for new, old in zip(synchronise_batch_norm(converted, device_type), list(converted)))


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_options_are_kept(device_type, options):
    plain = nn.BatchNorm2d(3, eps=0.5, **options)
    ours = synchronise_batch_norm(copy.deepcopy(plain), device_type)
    for _ in range(2):
        torch.testing.assert_close(ours(DATA), plain(DATA))
        assert list(ours.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(ours.eval()(DATA), plain.eval()(DATA))


@pytest.mark.parametrize("device_type, kind", [("cpu", AllReduceBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_drop_and_activation_stay(device_type, kind):
    norm = make("act", 0.1, torch.float32)
    weight, bias = norm.weight, norm.bias
    ours = synchronise_batch_norm(norm, device_type)
    assert isinstance(ours, kind) and ours.act is norm.act and ours.drop is norm.drop
    expected = F.silu(0.5 * F.batch_norm(DATA, None, None, weight, bias, training=True))
    torch.testing.assert_close(ours(DATA), expected)  # one process: torch's needs no GPU
    mean, var = ours.running_mean, ours.running_var
    torch.testing.assert_close(ours.eval()(DATA), F.silu(F.batch_norm(DATA, mean, var, weight, bias)))


@pytest.mark.parametrize("device_type, kind", [("cpu", AllReduceBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_timm_networks_give_the_same_features(device_type, kind):
    timm = pytest.importorskip("timm", reason="needs timm: pip install vissl_like[timm]")
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=0)
    images = torch.randn(4, 3, 32, 32)
    network(images)  # running statistics that are not 0 and 1
    expected = network.eval()(images)
    acts = [type(m.act) for m in network.modules() if isinstance(m, timm.layers.BatchNormAct2d)]
    keys = list(network.state_dict())
    converted = synchronise_batch_norm(network, device_type)
    torch.testing.assert_close(converted(images), expected)
    assert list(converted.state_dict()) == keys
    assert [type(m.act) for m in converted.modules() if isinstance(m, kind)] == acts and nn.SiLU in acts
    fresh = timm.create_model("test_efficientnet", num_classes=0).eval()
    fresh.load_state_dict(converted.state_dict())
    torch.testing.assert_close(fresh(images), expected)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_layer_in_two_places_stays_one_layer(device_type):
    norm = nn.BatchNorm2d(2)
    network = synchronise_batch_norm(nn.Sequential(norm, nn.Sequential(norm), norm), device_type)
    assert network[0] is network[2] is network[1][0] is not norm


class Squared(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).square()


class OnlyAct(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return super().forward(self.act(x))


class Scaled(NormAct):
    def __init__(self, channels):
        super().__init__(channels)
        self.scale = nn.Parameter(torch.ones(1))


class ActedElsewhere(NormAct):
    forward = nn.BatchNorm2d.forward


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", [Squared, OnlyAct, Scaled, ActedElsewhere])
def test_other_computations_are_refused_and_nothing_is_changed(device_type, kind):
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(kind(2)))
    with pytest.raises(UserError, match=rf"'1\.0' is a .*{kind.__name__}.*Allowed are.*drop.*act.*SYNC_BATCH_NORM"):
        synchronise_batch_norm(network, device_type)
    assert type(network[0]) is nn.BatchNorm2d


def test_a_layer_whose_method_was_replaced_is_refused():
    norm = nn.BatchNorm2d(2)
    norm.forward = lambda x: x
    with pytest.raises(UserError, match="computation"):
        synchronise_batch_norm(nn.Sequential(norm), "cpu")


def test_a_subclass_with_the_forward_of_torch_is_taken():
    class Named(nn.BatchNorm2d):
        pass

    assert isinstance(synchronise_batch_norm(Named(2), "cpu"), AllReduceBatchNorm)


def _grouped(rank, world_size, size):
    """Rows of the data divided evenly, in the order of the processes."""
    part = len(DATA) // world_size
    norm = copy.deepcopy(synchronise_batch_norm(make("plain", 0.1, torch.float32), "cpu", size))  # as a teacher's copy
    return work(norm, DATA[rank * part : (rank + 1) * part])


def check_groups(results, size):
    """Each group against plain BatchNorm on its joined rows."""
    part = len(DATA) // len(results)
    for first in range(0, len(results), size):
        group = results[first : first + size]
        expected = work(make("plain", 0.1, torch.float32), DATA[first * part : (first + size) * part])
        joined = [torch.cat([r[i] for r in group]) for i in (0, 1)] + [sum(r[i] for r in group) for i in (2, 3)]
        for mine, reference in zip([*joined, *group[-1][4:]], expected, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def _one_and_two(rank, world_size):
    return [_grouped(rank, world_size, size) for size in (1, 2)]


def test_two_processes_in_groups_of_one_and_of_two():
    found = run_in_processes(_one_and_two, 2)
    for position, size in enumerate((1, 2)):
        check_groups([result[position] for result in found], size)
    assert not torch.equal(found[0][0][4], found[1][0][4])  # statistics of their own


@pytest.mark.slow
def test_four_processes_in_groups_of_two():
    found = run_in_processes(_grouped, 4, 2)
    check_groups(found, 2)
    assert torch.equal(found[0][4], found[1][4]) and not torch.equal(found[1][4], found[2][4])


@pytest.mark.parametrize("act", [False, True])
def test_on_a_gpu_torch_gets_the_group(monkeypatch, act):
    monkeypatch.setattr(comm, "active", lambda: True)
    monkeypatch.setattr(comm, "subgroup", lambda size: f"group of {size}")
    norms = [synchronise_batch_norm(NormAct(2) if act else nn.BatchNorm2d(2), "cuda", size) for size in (None, 8)]
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert [copy.deepcopy(norm).process_group for norm in norms] == [None, "group of 8"]
