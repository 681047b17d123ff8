"""Swapped prediction: each view predicts the assignments of the other views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def swapped_cross_entropy(
    logits: Tensor, targets: Sequence[Tensor], target_views: Sequence[int], num_views: int, temperature: float
) -> Tensor:
    """Mean cross-entropy over all pairs (target view t, other view v != t) and images.

    ``-1 / (T (V - 1) b) sum_t sum_{v != t} sum_i <q_t[i], log_softmax(logits_v[i] / temperature)>``, computed with one
    log-softmax per view: the targets that view v must predict are summed first (SwAV, arXiv:2006.09882, eq. 2 extended
    to V views as in section 3.4).

    Args:
        logits: ``[V * b, K]`` scores, view-major.
        targets: T assignments ``[b, K]`` without gradient, rows sum to 1.
        target_views: the view each target comes from; distinct.
        num_views: V >= 2.
        temperature: > 0.
    """
    log_p = torch.log_softmax(logits.float() / temperature, dim=1).view(num_views, -1, logits.shape[1])
    total = torch.stack(list(targets)).sum(0)
    loss = log_p.new_zeros(())
    for view in range(num_views):
        wanted = total
        if view in target_views:
            wanted = total - targets[list(target_views).index(view)]
        loss = loss - (wanted * log_p[view]).sum()
    return loss / (len(targets) * (num_views - 1) * log_p.shape[1])
