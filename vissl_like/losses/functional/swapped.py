"""Swapped prediction: each view predicts the assignments of the other views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 1 << 18  # numbers that a CPU works on at a time: 1 MiB stays in its cache


def swapped_cross_entropy(
    logits: Tensor, targets: Sequence[Tensor], target_views: Sequence[int], num_views: int, temperature: float
) -> Tensor:
    """Mean cross-entropy over all pairs (target view t, other view v != t) and images.

    ``-1 / (T (V - 1) b) sum_t sum_{v != t} sum_i <q_t[i], log_softmax(logits_v[i] / temperature)>`` (SwAV,
    arXiv:2006.09882, eq. 2 extended to V views as in section 3.4). With W_v the sum of the targets that view v must
    predict and w_v that of its rows, this is ``sum_v <w_v, logsumexp> - <W_v, x>`` and its gradient
    ``w_v softmax - W_v``: both are made in one pass, and only the gradient is kept. Sums are in float32 (float64 for
    float64 scores).

    Args:
        logits: ``[V * b, K]`` scores, view-major.
        targets: T assignments ``[b, K]`` without gradient.
        target_views: the view each target comes from; distinct.
        num_views: V >= 2.
        temperature: > 0.
    """
    return _Swapped.apply(logits, [q.detach() for q in targets], tuple(target_views), num_views, temperature)


class _Swapped(torch.autograd.Function):
    """Value and gradient together; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: list[Tensor],
        target_views: tuple[int, ...],
        num_views: int,
        temperature: float,
    ) -> Tensor:
        rows, columns = targets[0].shape
        exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
        number = len(targets) * (num_views - 1) * rows
        # In fp16 much of it would vanish: it is scaled up only later, by the loss scale in the backward pass.
        kept = exact if logits.dtype == torch.float16 else logits.dtype
        wants = ctx.needs_input_grad[0]
        gradient = torch.empty(logits.shape, dtype=kept, device=logits.device) if wants else None
        step = max(1, _BLOCK // columns) if logits.device.type == "cpu" else rows
        loss = torch.zeros((), dtype=exact, device=logits.device)
        for begin in range(0, rows, step):
            part = [target[begin : begin + step].to(exact) for target in targets]
            total = torch.stack(part).sum(0)
            for view in range(num_views):
                wanted = total - part[target_views.index(view)] if view in target_views else total
                place = slice(view * rows + begin, view * rows + min(begin + step, rows))
                x = logits[place].to(exact) * (1 / temperature)
                weight = wanted.sum(1, keepdim=True)
                loss -= torch.dot(wanted.reshape(-1), x.reshape(-1))
                highest = x.amax(1, keepdim=True)
                x.sub_(highest).exp_()
                mass = x.sum(1, keepdim=True)
                loss += (weight * (mass.log() + highest)).sum()
                if gradient is not None:
                    x.mul_(weight / mass).sub_(wanted)
                    torch.mul(x, 1 / (temperature * number), out=x)
                    gradient[place] = x
        ctx.dtype = logits.dtype
        ctx.save_for_backward(*([gradient] if gradient is not None else []))
        return loss / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_output.to(gradient.dtype)).to(ctx.dtype), None, None, None, None
