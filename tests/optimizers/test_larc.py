"""LARC against hand-worked numbers, the published formula, and torch's SGD where it must agree."""

import math

import pytest
import torch
from torch import nn

from vissl_like.optimizers.larc import LARC


def test_hand_worked_step():
    # |w| = 5, gradient (0, 2): |g| = 2. ratio = 0.001 * 5 / (2 + 0.1 * 5 + 1e-8) = 0.002.
    # gradient -> 0.002 * ((0, 2) + 0.1 (3, 4)) = (0.0006, 0.0048); step with lr 10: w - (0.006, 0.048).
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARC([("w", weight)], 10.0, momentum=0.9, weight_decay=0.1)
    weight.grad = torch.tensor([0.0, 2.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0 - 0.006, 4.0 - 0.048]))


def test_clip_never_exceeds_the_plain_rate():
    # ratio = 1 * 5 / 2 = 2.5; with lr 0.1, min(2.5 / 0.1, 1) = 1: plain SGD.
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARC([("w", weight)], 0.1, momentum=0.0, weight_decay=0.0, trust=1.0, clip=True)
    weight.grad = torch.tensor([0.0, 2.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0, 3.8]))


def test_zero_tensor_takes_the_raw_gradient_without_decay():
    bias = nn.Parameter(torch.zeros(2))
    optimizer = LARC([("b", bias)], 0.5, momentum=0.9, weight_decay=10.0)
    bias.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    torch.testing.assert_close(bias.detach(), torch.tensor([-0.5, 1.0]))


def published(parameters, gradients, buffers, lr, decay):
    """Plain float64 transcription: rescale, then SGD with momentum 0.9."""
    for number, (w, g) in enumerate(zip(parameters, gradients)):
        p, n = math.sqrt(float((w * w).sum())), math.sqrt(float((g * g).sum()))
        if p != 0 and n != 0:
            g = 0.001 * p / (n + decay * p + 1e-8) * (g + decay * w)
        buffers[number] = g if buffers[number] is None else 0.9 * buffers[number] + g
        parameters[number] = w - lr * buffers[number]


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_several_steps_of_a_network(decay):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = LARC(list(network.named_parameters()), 2.0, weight_decay=decay)
    reference = [p.detach().double().clone() for p in network.parameters()]
    buffers = [None] * len(reference)
    for step in range(6):
        lr = 2.0 / (step + 1)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        network(torch.randn(16, 4)).square().mean().backward()
        gradients = [p.grad.double().clone() for p in network.parameters()]
        optimizer.step()
        published(reference, gradients, buffers, lr, decay)
        for mine, expected in zip(network.parameters(), reference):
            torch.testing.assert_close(mine.detach().double(), expected, rtol=1e-5, atol=1e-6)
            expected.copy_(mine.detach())


def test_warm_up_at_rate_zero_changes_nothing():
    weight = nn.Parameter(torch.ones(3))
    optimizer = LARC([("w", weight)], 0.0, clip=True)
    weight.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.ones(3))
