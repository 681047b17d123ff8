"""The grouped form against the double loop of the paper, value and gradient."""

import pytest
import torch

from vissl_like.losses.functional import swapped
from vissl_like.losses.functional.swapped import swapped_cross_entropy


def double_loop(logits, targets, target_views, num_views, temperature):
    """Listing of the SwAV paper for V views: mean over targets of mean over the other views."""
    views = logits.chunk(num_views)
    loss = 0
    for target, view in zip(targets, target_views):
        sub = 0
        for other in [v for v in range(num_views) if v != view]:
            sub = sub - (target * torch.log_softmax(views[other] / temperature, dim=1)).sum(1).mean()
        loss = loss + sub / (num_views - 1)
    return loss / len(targets)


def test_hand_worked():
    # Two views, one image, two prototypes; target 0 = (1, 0) predicts view 1, target 1 = (0, 1) predicts view 0.
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    targets = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    log = torch.log
    expected = -(log(torch.e ** torch.tensor(1.0) / (torch.e + torch.tensor(1.0))) + log(torch.tensor(0.5))) / 2
    torch.testing.assert_close(swapped_cross_entropy(logits, targets, [0, 1], 2, 1.0), expected)


def test_equals_the_double_loop_in_value_and_gradient():
    torch.manual_seed(0)
    for num_views, target_views in [(2, [0, 1]), (6, [0, 1]), (5, [3]), (4, [2, 0, 1])]:
        logits = torch.randn(num_views * 3, 7, requires_grad=True)
        targets = [torch.softmax(torch.randn(3, 7), 1) for _ in target_views]
        ours = swapped_cross_entropy(logits, targets, target_views, num_views, 0.1)
        (gradient,) = torch.autograd.grad(ours, logits)
        reference = double_loop(logits, targets, target_views, num_views, 0.1)
        (expected,) = torch.autograd.grad(reference, logits)
        torch.testing.assert_close(ours, reference)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def case(num_views=4, rows=5, columns=7, target_views=(0, 1), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_views * rows, columns, generator=generator, dtype=torch.float64).to(dtype)
    targets = [torch.rand(rows, columns, generator=generator, dtype=torch.float64).to(dtype) for _ in target_views]
    return logits.requires_grad_(), targets, list(target_views), num_views, 0.2


@pytest.mark.parametrize("target_views", [(0, 1), (2,), (3, 0, 1, 2)])
def test_gradient_by_finite_differences_also_for_targets_that_do_not_sum_to_one(target_views):
    logits, *rest = case(target_views=target_views, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: swapped_cross_entropy(x, *rest), [logits])
    torch.testing.assert_close(swapped_cross_entropy(logits, *rest), double_loop(logits, *rest))


def test_blocks_change_nothing_but_rounding(monkeypatch):
    logits, *rest = case(rows=23)
    whole = torch.autograd.grad(swapped_cross_entropy(logits, *rest), logits)[0]
    monkeypatch.setattr(swapped, "_BLOCK", 5 * 7)  # five rows at a time, three at the end
    torch.testing.assert_close(torch.autograd.grad(swapped_cross_entropy(logits, *rest), logits)[0], whole)


def test_scores_of_half_precision_are_summed_in_single():
    logits, targets, *rest = case(columns=4000, dtype=torch.float64)
    low = logits.detach().bfloat16().requires_grad_()
    loss = swapped_cross_entropy(low, targets, *rest)
    (gradient,) = torch.autograd.grad(loss, low)
    exact = low.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(double_loop(exact, targets, *rest), exact)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), expected, rtol=2**-8, atol=1e-9)


def test_small_gradients_of_fp16_scores_survive_until_they_are_scaled():
    logits, targets, *rest = case(columns=20_000, dtype=torch.float64)
    targets = [q / q.sum(1, keepdim=True) for q in targets]
    low = (logits.detach() * 0.01).half().requires_grad_()
    (gradient,) = torch.autograd.grad(swapped_cross_entropy(low, targets, *rest) * 2.0**12, low)
    exact = low.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(double_loop(exact, targets, *rest) * 2.0**12, exact)
    assert expected.abs().median() / 2**12 < 2**-16  # where fp16 has 8 bits left of its 11
    torch.testing.assert_close(gradient.double(), expected, rtol=2**-10, atol=2**-24)


def test_scores_far_from_zero_do_not_overflow():
    logits, *rest = case()
    far = (logits.detach() * 1e4 + 1e6).requires_grad_()
    loss = swapped_cross_entropy(far, *rest)
    loss.backward()
    assert loss.isfinite() and far.grad.isfinite().all()
    torch.testing.assert_close(loss, double_loop(far, *rest), rtol=1e-4, atol=0)


def test_the_gradient_is_scaled_and_can_be_asked_for_again():
    logits, *rest = case()
    loss = swapped_cross_entropy(logits, *rest)
    once, thrice = (torch.autograd.grad(loss * f, logits, retain_graph=True)[0] for f in (1.0, 3.0))
    torch.testing.assert_close(thrice, 3 * once)


def test_views_of_other_memory_and_no_gradient():
    logits, *rest = case()
    wide = torch.cat([logits.detach(), logits.detach()], dim=1)[:, :7].requires_grad_()
    assert not wide.is_contiguous()
    torch.testing.assert_close(swapped_cross_entropy(wide, *rest), swapped_cross_entropy(logits, *rest))
    with torch.no_grad():
        assert not swapped_cross_entropy(logits, *rest).requires_grad
    assert not swapped_cross_entropy(logits.detach(), *rest).requires_grad


def test_there_is_no_second_derivative():
    logits, *rest = case()
    (gradient,) = torch.autograd.grad(swapped_cross_entropy(logits, *rest), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_what_is_not_finite_stays_so():
    logits, *rest = case()
    with torch.no_grad():
        logits[3, 2] = torch.nan
    assert swapped_cross_entropy(logits, *rest).isnan()
