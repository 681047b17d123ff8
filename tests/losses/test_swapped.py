"""The grouped form against the double loop of the paper, value and gradient."""

import torch

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
