"""BatchNorm over processes equals BatchNorm on the joined batch: output, gradients, statistics."""

import pytest
import torch
from processes import run_in_processes
from torch import nn

from vissl_like.models.batch_norm import AllReduceBatchNorm, synchronise_batch_norm

DATA = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1


def make(momentum):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(3, momentum=momentum)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return norm


def work(norm, x):
    x = x.clone().requires_grad_()
    for _ in range(2):
        out = norm(x)
    (out.sin().sum()).backward()
    return [out.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def _part(rank, world_size, momentum):
    norm = synchronise_batch_norm(make(momentum), "cpu")
    assert isinstance(norm, AllReduceBatchNorm)
    rows = DATA[:2] if rank == 0 else DATA[2:]  # uneven shares
    return work(norm, rows)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_two_processes_equal_one(momentum):
    parts = run_in_processes(_part, 2, momentum)
    expected = work(make(momentum), DATA)
    joined = [torch.cat([parts[0][0], parts[1][0]]), torch.cat([parts[0][1], parts[1][1]])]
    joined += [parts[0][2] + parts[1][2], parts[0][3] + parts[1][3], parts[0][4], parts[1][5]]
    for mine, reference in zip(joined, expected):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_alone_and_in_evaluation_it_is_plain_batch_norm():
    plain, ours = nn.BatchNorm1d(5), synchronise_batch_norm(nn.BatchNorm1d(5), "cpu")
    x = torch.randn(6, 5)
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


def test_keys_and_mode_are_kept():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    network[1].running_mean.fill_(3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    converted = synchronise_batch_norm(network, "cpu")
    assert list(converted.state_dict()) == list(before) and not converted[1].training
    assert converted[1].running_mean.eq(3).all()
