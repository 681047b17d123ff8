"""LARS against hand-worked steps and a transcription of DINO's rule in plain Python numbers."""

import copy
import math

import pytest
import torch
from torch import nn

from vissl_like.optimizers.larc import LARC
from vissl_like.optimizers.lars import LARS


def parameter(values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_two_hand_worked_steps_of_a_matrix_with_changing_rate():
    # w = (3, 4), gradient (2, -1), decay 0.5: d = (3.5, 1), |w| = 5, |d|^2 = 13.25; trust 0.1.
    weight = parameter([[3.0, 4.0]])
    optimizer = LARS([("w", weight)], 10.0, momentum=0.9, weight_decay=0.5, trust=0.1)
    weight.grad = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    optimizer.step()
    scale = 0.1 * 5 / math.sqrt(13.25)
    moved = [3 - 10 * scale * 3.5, 4 - 10 * scale * 1.0]
    torch.testing.assert_close(weight.detach(), torch.tensor([moved], dtype=torch.float64), rtol=1e-12, atol=0)
    # Second step at a tenth of the rate and no decay: the buffer holds updates, not updates times the old rate.
    optimizer.param_groups[0].update(lr=1.0, weight_decay=0.0)
    weight.grad = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    optimizer.step()
    length = 0.1 * math.hypot(*moved)  # |d| = 2 cancels: the update is (0, 1) * trust * |w|
    expected = [moved[0] - 0.9 * scale * 3.5, moved[1] - (0.9 * scale * 1.0 + length)]
    torch.testing.assert_close(weight.detach(), torch.tensor([expected], dtype=torch.float64), rtol=1e-12, atol=0)


def test_vectors_take_the_plain_gradient_without_decay():
    bias = parameter([2.0, -4.0])
    optimizer = LARS([("b", bias)], 0.5, weight_decay=100.0)
    for group in optimizer.param_groups:  # whatever a schedule writes there
        group["weight_decay"] = 100.0
    bias.grad = torch.tensor([1.0, 3.0], dtype=torch.float64)
    optimizer.step()
    assert bias.tolist() == [1.5, -5.5]
    optimizer.step()
    assert bias.tolist() == pytest.approx([1.5 - 0.5 * 1.9, -5.5 - 0.5 * 5.7], rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "gradient", "decay", "expected"),
    [
        ([[0.0, 0.0]], [[1.0, -2.0]], 0.5, [[-0.1, 0.2]]),  # |w| = 0: factor 1
        ([[3.0, 4.0]], [[0.0, 0.0]], 0.0, [[3.0, 4.0]]),  # |d| = 0: nothing to scale, and no 0 / 0
        ([[3.0, 4.0]], [[-1.5, -2.0]], 0.5, [[3.0, 4.0]]),  # gradient and decay cancel: the norm is of their sum
        ([[3.0, 4.0]], [[0.0, 0.0]], 0.5, [[3.0 - 3e-4, 4.0 - 4e-4]]),  # only decay: 0.1 * 0.001 * 5 along w / |w|
    ],
)
def test_zero_norms(weights, gradient, decay, expected):
    weight = parameter(weights)
    optimizer = LARS([("w", weight)], 0.1, weight_decay=decay)
    weight.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_norm_is_of_the_sum_where_larc_adds_two_norms():
    """On orthogonal gradient and weight the two rules part: sqrt(2^2 + 2.5^2) against 2 + 2.5."""
    steps = {}
    for name, rule in (("lars", LARS), ("larc", LARC)):
        weight = parameter([[3.0, 4.0]])
        optimizer = rule([("w", weight)], 1.0, weight_decay=0.5)
        weight.grad = torch.tensor([[1.6, -1.2]], dtype=torch.float64)  # length 2, at a right angle to w
        optimizer.step()
        steps[name] = (weight.detach() - torch.tensor([[3.0, 4.0]], dtype=torch.float64)).norm().item()
    assert steps["lars"] == pytest.approx(0.001 * 5, rel=1e-9)
    assert steps["larc"] == pytest.approx(0.001 * 5 * math.sqrt(10.25) / 4.5, rel=1e-6)


def transcribed(tensors, gradients, buffers, lr, decay):
    """One step on lists of numbers: ``tensors`` maps a name to (flat values, number of dimensions)."""
    for name, (values, ndim) in tensors.items():
        update = list(gradients[name])
        if ndim != 1:
            update = [g + decay * w for g, w in zip(update, values)]
            weight_norm = math.sqrt(sum(w * w for w in values))
            update_norm = math.sqrt(sum(d * d for d in update))
            if weight_norm > 0 and update_norm > 0:
                update = [0.001 * weight_norm / update_norm * d for d in update]
        buffers[name] = [0.9 * m + d for m, d in zip(buffers[name], update)]
        tensors[name] = ([w - lr * m for w, m in zip(values, buffers[name])], ndim)


def test_several_steps_of_a_network_with_scheduled_rate_and_decay():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).double()
    nn.init.zeros_(network[3].weight)  # a zero-norm matrix in the first step
    optimizer = LARS(list(network.named_parameters()), 1.0, weight_decay=0.1)
    reference = {name: (p.detach().flatten().tolist(), p.ndim) for name, p in network.named_parameters()}
    buffers = {name: [0.0] * len(values) for name, (values, _) in reference.items()}
    for step in range(5):
        lr, decay = 0.3 * step, 0.1 + 0.2 * step
        for group in optimizer.param_groups:
            group["lr"] = lr
            if group["decayed"]:
                group["weight_decay"] = decay
        optimizer.zero_grad()
        out = network(torch.randn(8, 2, 4, 4, dtype=torch.float64))
        nn.functional.cross_entropy(out, torch.arange(8) % 2).backward()
        gradients = {name: p.grad.flatten().tolist() for name, p in network.named_parameters()}
        optimizer.step()
        transcribed(reference, gradients, buffers, lr, decay)
        for name, p in network.named_parameters():
            assert p.detach().flatten().tolist() == pytest.approx(reference[name][0], rel=1e-12, abs=1e-15), name


def test_groups_name_what_a_schedule_of_the_decay_may_touch():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = LARS(list(network.named_parameters()), 0.1, weight_decay=0.5)
    found = [(len(group["params"]), group["weight_decay"], group["decayed"]) for group in optimizer.param_groups]
    assert found == [(1, 0.5, True), (3, 0.0, False)]


def test_a_frozen_parameter_rests_and_joins_with_a_fresh_buffer():
    frozen, moving = parameter([[3.0, 4.0]]), parameter([[1.0, 2.0]])
    optimizer = LARS([("a", frozen), ("b", moving)], 1.0, weight_decay=0.5)
    moving.grad = torch.ones_like(moving)
    optimizer.step()
    assert frozen.tolist() == [[3.0, 4.0]] and frozen not in optimizer.state
    frozen.grad, moving.grad = torch.tensor([[0.0, 2.0]], dtype=torch.float64), None
    rested = moving.tolist()
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert moving.tolist() == rested
    torch.testing.assert_close(frozen.detach(), torch.tensor([[3.0, 4.0 - 0.005]], dtype=torch.float64))


def test_gradients_are_left_as_they_are():
    weight, bias = parameter([[3.0, 4.0]]), parameter([1.0])
    weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
    LARS([("w", weight), ("b", bias)], 1.0, weight_decay=0.5).step()
    assert weight.grad.tolist() == [[1.0, 1.0]] and bias.grad.tolist() == [1.0]


def test_state_survives_a_restart():
    torch.manual_seed(0)
    layer, twin = nn.Linear(3, 3), nn.Linear(3, 3)
    first = LARS(list(layer.named_parameters()), 0.1)
    layer(torch.ones(2, 3)).square().sum().backward()
    first.step()
    twin.load_state_dict(layer.state_dict())
    second = LARS(list(twin.named_parameters()), 0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, module in ((first, layer), (second, twin)):
        module.zero_grad()
        module(torch.full((2, 3), 2.0)).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight, twin.weight) and torch.equal(layer.bias, twin.bias)


def test_no_value_is_read_on_the_host():
    """Tensors of the meta device have no values: any ``.item()`` or ``if`` on one raises."""
    layer = nn.Linear(3, 3, device="meta")
    optimizer = LARS(list(layer.named_parameters()), 0.1, weight_decay=0.1)
    layer(torch.ones(2, 3, device="meta")).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError):
        bool(layer.weight.norm() > 0)


def test_closure_is_evaluated_with_gradients():
    weight = parameter([[3.0, 4.0]])
    optimizer = LARS([("w", weight)], 1.0, weight_decay=0.0)

    def closure():
        loss = weight[0, 1] * 2
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 8.0
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 4.0 - 0.005]], dtype=torch.float64))
