"""Which tensors are decayed, through the registered optimizers."""

import pytest
import torch
from torch import nn

from vissl_like.registry import OPTIMIZERS

NETWORK = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_norms_can_be_left_undecayed(name):
    optimizer = OPTIMIZERS.get(name)(list(NETWORK.named_parameters()), 0.1, weight_decay=0.5, decay_vectors=False)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, 0.5), (3, 0.0)]


def test_parameters_without_gradient_are_dropped():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = OPTIMIZERS.get("sgd")(list(layer.named_parameters()), 0.1)
    assert len(optimizer.param_groups[0]["params"]) == 1


@pytest.mark.parametrize("name", ["sgd", "adamw", "larc"])
def test_a_step_moves_weights_and_its_state_survives(name):
    torch.manual_seed(0)
    layer, twin = nn.Linear(3, 3), nn.Linear(3, 3)
    twin.load_state_dict(layer.state_dict())
    first = OPTIMIZERS.get(name)(list(layer.named_parameters()), 0.1)
    second = OPTIMIZERS.get(name)(list(twin.named_parameters()), 0.1)
    for optimizer, module in ((first, layer), (second, twin)):
        module(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    third = OPTIMIZERS.get(name)(list(twin.named_parameters()), 0.1)
    third.load_state_dict(second.state_dict())
    before = layer.weight.clone()
    first.step(), third.step()
    assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize(("name", "nesterov"), [("sgd", False), ("sgd", True), ("larc", False)])
def test_a_parameter_frozen_at_first_joins_later_as_in_plain_sgd(name, nesterov):
    """torch's fused SGD alone fails here; the plain one is the reference."""
    torch.manual_seed(0)
    ours, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    options = {"weight_decay": 0.0, **({"nesterov": True} if nesterov else {})}
    if name == "larc":
        options["trust"] = 1e9  # with clip, the factor is 1: LARC becomes SGD
        options["clip"] = True
    mine = OPTIMIZERS.get(name)(list(ours.named_parameters()), 0.1, **options)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)
    for step in range(5):
        for module, optimizer in ((ours, mine), (plain, reference)):
            optimizer.zero_grad()
            module(torch.full((2, 3), float(step + 1))).square().sum().mul(1e-2).backward()
            if step < 2:
                module.weight.grad = None
            optimizer.step()
        torch.testing.assert_close(ours.weight, plain.weight)
        torch.testing.assert_close(ours.bias, plain.bias)
