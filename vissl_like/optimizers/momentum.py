"""torch's fused SGD for parameters that may be frozen at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class FusedSGD(torch.optim.SGD):
    """``torch.optim.SGD(fused=True)`` whose parameters may have no gradient in some steps.

    torch's fused form takes a momentum buffer for every parameter or for none, and fails when a frozen parameter gets
    its first gradient after the others. A buffer of zeros in its place gives the same first step (0 * momentum +
    gradient).

    Attributes:
        works_on_shards: whether a step is right on some rows of a tensor, too.
    """

    works_on_shards = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return super().step(closure)
