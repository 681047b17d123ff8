"""Grouping of views by resolution."""

import pytest
import torch
from torch import nn

from vissl_like.models.heads.swav import SwAVHead
from vissl_like.models.ssl_model import SSLModel, group_views


def sizes(groups):
    return [[view.shape[-1] for view in group] for group in groups]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([224, 224, 96, 96, 96], [[224, 224], [96, 96, 96]]),
        ([96, 224, 224, 96], [[96], [224, 224], [96]]),
        ([64], [[64]]),
    ],
)
def test_consecutive_equal_sizes_are_joined(given, expected):
    assert sizes(group_views([torch.zeros(2, 1, size, size) for size in given])) == expected


def test_same_width_other_height_is_another_group():
    assert len(group_views([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 8)])) == 2


class Counting(nn.Module):
    """Records the batch of each call; features tell which row they come from."""

    feature_dim = 1

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, images):
        self.calls.append(tuple(images.shape))
        return images.mean((2, 3))


@pytest.mark.parametrize(("grouped", "calls"), [(True, 2), (False, 4)])
def test_rows_are_view_major_and_the_head_runs_once(grouped, calls):
    trunk, head = Counting(), SwAVHead(1, hidden_dim=4, output_dim=3, num_prototypes=5, batch_norm=True)
    heads_called = []
    head.register_forward_hook(lambda module, inputs, output: heads_called.append(inputs[0].shape))
    model = SSLModel(trunk, head, grouped)
    views = [torch.full((2, 1, size, size), float(v)) for v, size in enumerate([8, 8, 4, 4])]
    for view in views:
        view[1] += 0.5
    output = model(views)
    assert len(trunk.calls) == calls and heads_called == [(8, 1)]
    assert output.features[:, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert output.view(output.features, 2)[:, 0].tolist() == [2, 2.5]


def test_grouping_does_not_change_outputs_without_batch_statistics():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = SwAVHead(4, hidden_dim=4, output_dim=3, num_prototypes=5)
    views = [torch.randn(2, 1, size, size) for size in (8, 8, 6, 6)]
    together = SSLModel(trunk, head, True)(views).head.logits[0]
    apart = SSLModel(trunk, head, False)(views).head.logits[0]
    torch.testing.assert_close(together, apart)
