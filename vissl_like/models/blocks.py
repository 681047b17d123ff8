"""The blocks of a trunk: what a network repeats, the unit in which it is sharded and computed a second time."""

from __future__ import annotations

from torch import nn


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network, in order; empty if it has none.

    One rule for all trunks, read off the structure: blocks are the members of a ``Sequential`` or ``ModuleList`` whose
    members with parameters are all of one class, which is not one of torch's own. Where such lists are nested (stages
    of blocks) the innermost ones count. These are the residual blocks of ResNets and RegNets, the transformer blocks of
    ViTs and XCiTs (class attention included), and the same in most of timm's networks; AlexNet and VGG have none.
    """
    found = [block for _, child in trunk.named_children() for block in blocks_of(child)]
    return found or _members(trunk)


def _members(container: nn.Module) -> list[nn.Module]:
    if not isinstance(container, (nn.Sequential, nn.ModuleList)):
        return []
    members = [module for module in container if any(True for _ in module.parameters())]
    kinds = {type(module) for module in members}
    if len(kinds) != 1 or next(iter(kinds)).__module__.startswith("torch.nn."):
        return []
    return members
