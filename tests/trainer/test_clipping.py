"""Limits on gradients against torch's own and against DINO's rule by hand."""

import pytest
import torch
from torch.nn import Parameter

from vissl_like.trainer.clipping import Clipping

SIZES = [0.01, 0.5, 3.0, 40.0]


def parameters():
    """Gradients with norms of very different size, one of them missing."""
    generator = torch.Generator().manual_seed(0)
    made = [Parameter(torch.zeros(4, 3)) for _ in SIZES]
    for parameter, size in zip(made, SIZES):
        gradient = torch.randn(4, 3, generator=generator)
        parameter.grad = size * gradient / gradient.norm()
    return [*made, Parameter(torch.zeros(2))]


def norm_of(given):
    return torch.stack([p.grad.norm() for p in given if p.grad is not None]).norm()


@pytest.mark.parametrize("largest", [0.02, 1.0, 10.0, 100.0])
def test_the_whole_gradient_is_limited_as_torch_does(largest):
    ours, theirs = parameters(), parameters()
    Clipping(largest)(ours, norm_of(ours))
    torch.nn.utils.clip_grad_norm_(theirs, largest)
    for mine, other in zip(ours[:-1], theirs):
        torch.testing.assert_close(mine.grad, other.grad, rtol=2e-6, atol=0)
    assert ours[-1].grad is None
    assert float(norm_of(ours)) <= largest * (1 + 1e-6)


@pytest.mark.parametrize("largest", [0.001, 1.0, 3.0])
def test_each_tensor_is_limited_by_itself(largest):
    ours, before = parameters(), [p.grad.clone() for p in parameters()[:-1]]
    Clipping(largest, each_tensor=True)(ours, norm_of(ours))
    for parameter, gradient in zip(ours, before):
        factor = largest / (float(gradient.norm()) + 1e-6)
        expected = gradient * factor if factor < 1 else gradient
        torch.testing.assert_close(parameter.grad, expected, rtol=2e-6, atol=0)
    assert ours[-1].grad is None


@pytest.mark.parametrize("each_tensor", [False, True])
def test_small_gradients_are_left_alone_to_the_bit(each_tensor):
    ours, before = parameters(), [p.grad.clone() for p in parameters()[:-1]]
    Clipping(50.0, each_tensor)(ours, norm_of(ours))
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(ours, before))


def test_the_two_ways_differ():
    whole, single = parameters(), parameters()
    Clipping(1.0)(whole, norm_of(whole))
    Clipping(1.0, each_tensor=True)(single, norm_of(single))
    assert float(whole[0].grad.norm()) == pytest.approx(0.01 / 40.1, rel=1e-2)
    assert float(single[0].grad.norm()) == pytest.approx(0.01)


@pytest.mark.parametrize("each_tensor", [False, True])
def test_a_zero_gradient_stays_zero(each_tensor):
    parameter = Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    Clipping(1.0, each_tensor)([parameter], torch.tensor(0.0))
    assert torch.equal(parameter.grad, torch.zeros(3))


def test_a_generator_of_parameters_will_do():
    ours = parameters()
    Clipping(1.0, each_tensor=True)((p for p in ours), norm_of(ours))
    assert float(ours[3].grad.norm()) == pytest.approx(1.0, rel=1e-5)
