"""A trunk and a head over a list of views."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from vissl_like.models.heads.base import Head
from vissl_like.records import ModelOutput


class SSLModel(nn.Module):
    """Runs the trunk once per stretch of equally sized views, then the head once on all rows.

    BatchNorm in the trunk therefore sees each resolution apart, BatchNorm in the head all views together, as in SwAV's
    and DINO's official code. Equal sizes that are not neighbours stay separate ([96, 224, 224, 96] -> 3 trunk calls).

    A trunk with ``packs_sizes`` (none with BatchNorm) takes the images of all resolutions in one call, as a list.

    Args:
        trunk: ``[n, C, H, W] -> [n, F]``.
        head: ``[n, F] -> HeadOutput``.
        grouped: False runs the trunk view by view (each view has its own batch statistics).
    """

    def __init__(self, trunk: nn.Module, head: Head, grouped: bool = True):
        super().__init__()
        self.trunk, self.head, self.grouped = trunk, head, grouped

    def forward(self, views: list[Tensor]) -> ModelOutput:
        """V views ``[b, C, H_v, W_v]`` -> outputs of V * b rows, view-major."""
        groups = group_views(views) if self.grouped else [[view] for view in views]
        sizes = [torch.cat(group) if len(group) > 1 else group[0] for group in groups]
        if self.grouped and len(sizes) > 1 and getattr(self.trunk, "packs_sizes", False):
            joined = self.trunk(sizes)
        else:
            features = [self.trunk(images) for images in sizes]
            joined = torch.cat(features) if len(features) > 1 else features[0]
        return ModelOutput(num_views=len(views), features=joined, head=self.head(joined))


def group_views(views: list[Tensor]) -> list[list[Tensor]]:
    """Stretches of consecutive views of the same height and width."""
    return [list(group) for _, group in groupby(views, key=lambda view: view.shape[-2:])]
