"""What each process of a run holds before its first batch: weights, gradients, optimizer state, teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vissl_like.losses.base import Loss
from vissl_like.models.blocks import blocks_of
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher
from vissl_like.registry import OPTIMIZERS
from vissl_like.trainer.components import build
from vissl_like.trainer.sharding import divided_parameters, roots_of

Rule = Callable[[int], int]
"""Elements of a parameter -> bytes that the optimizer keeps for it."""


@dataclass(frozen=True)
class Row:
    """One kind of memory of a process in bytes: with the whole network in each, and sharded over all."""

    label: str
    whole: int
    sharded: int


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors on any device."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_of(loss: Loss) -> int:
    """Bytes that a loss keeps between steps."""
    return bytes_of([*loss.parameters(), *loss.buffers()])


def optimizer_rules(section: Any, lr: float, parameters: list[tuple[str, Parameter]]) -> dict[int, Rule]:
    """How many bytes an optimizer keeps for a parameter, found by one real step on tiny ones.

    Args:
        section: OPTIMIZER of the settings.
        lr: learning rate.
        parameters: trainable, of any device.

    Returns:
        a rule for every number of dimensions among the parameters. State of the parameter's shape counts per element,
        any other (a count of steps) once per parameter.
    """
    first: dict[int, tuple[str, Parameter]] = {}
    for name, parameter in parameters:
        first.setdefault(parameter.ndim, (name, parameter))
    tiny = [(name, Parameter(torch.ones([2] * ndim, dtype=p.dtype))) for ndim, (name, p) in first.items()]
    optimizer = build(OPTIMIZERS, section, tiny, lr)
    for _, parameter in tiny:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {parameter.ndim: _rule(parameter, optimizer.state[parameter]) for _, parameter in tiny}


def _rule(parameter: Parameter, state: dict[str, Any]) -> Rule:
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    alike = [tensor for tensor in tensors if tensor.ndim and tensor.shape == parameter.shape]
    each = sum(tensor.element_size() for tensor in alike)
    once = bytes_of(tensors) - bytes_of(alike)
    return lambda elements: elements * each + once


class Held:
    """A built network, and what its processes hold of it.

    Args:
        model, teacher: on the meta device.
        processes: that share it.
        accumulation: micro-batches of a step.
        rules: of the optimizer.
    """

    def __init__(
        self,
        model: SSLModel,
        teacher: Teacher | None,
        processes: int,
        accumulation: int,
        rules: dict[int, Rule],
    ):
        self.model, self.teacher, self.processes = model, teacher, processes
        self.accumulation, self.rules = accumulation, rules
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        networks = [model, *(teacher.children() if teacher is not None else ())]
        self.divided = {id(p) for network in networks for p in divided_parameters(network)}  # type: ignore[arg-type]
        self.momenta = sum(rules[p.ndim](p.numel()) for p in self.trainable)

    def share(self, parameter: Tensor) -> int:
        """Elements on the process that has most: whole rows of the first dimension are dealt out."""
        if id(parameter) not in self.divided:
            return parameter.numel()
        rows = parameter.shape[0]
        return -(-rows // self.processes) * (parameter.numel() // max(1, rows))

    def rows(self, optimizer: str) -> list[Row]:
        """Memory by kind.

        Args:
            optimizer: its name.
        """
        momenta_sharded = sum(self.rules[p.ndim](self.share(p)) for p in self.trainable)
        times = self.momenta / max(1, bytes_of(self.trainable))
        taught = [] if self.teacher is None else list(self.teacher.parameters())
        buffers = bytes_of([*self.model.buffers(), *([] if self.teacher is None else self.teacher.buffers())])
        rows = [
            self._row("weights", list(self.model.parameters())),
            self._row("gradients", self.trainable),
            Row(f"optimizer state ({optimizer}: {times:.3g} x weights)", self.momenta, momenta_sharded),
            self._row("teacher", taught),
            Row("buffers, and a copy for skipped updates", 2 * buffers, 2 * buffers),
        ]
        if self.processes > 1:
            rows.append(Row("largest block gathered: weights, gradients", 0, 2 * largest_group(self.model)))
            if self.accumulation > 1:
                divided = [parameter for parameter in self.trainable if id(parameter) in self.divided]
                rows.append(Row("gradients of micro-batches, not yet divided", 0, bytes_of(divided)))
        return [row for row in rows if row.whole or row.sharded]

    def at_the_start(self) -> int:
        """Bytes of a sharded process for a moment: it builds the whole network before it gives rows of it away."""
        networks = [self.model, *([] if self.teacher is None else [self.teacher])]
        return sum(bytes_of([*network.parameters(), *network.buffers()]) for network in networks)

    def _row(self, label: str, tensors: list[Parameter]) -> Row:
        return Row(label, bytes_of(tensors), sum(self.share(tensor) * tensor.element_size() for tensor in tensors))

    def files(self, loss: Loss) -> list[tuple[str, int]]:
        """Bytes of tensors in the files of a checkpoint; sharded or not, together they are as many."""
        state = loss.state_dict()
        own = bytes_of(value for key, value in state.items() if key in loss.per_rank_buffers)
        taught = 0 if self.teacher is None else bytes_of(self.teacher.state_dict().values())
        common = bytes_of(self.model.state_dict().values()) + self.momenta + taught + bytes_of(state.values()) - own
        rows = [
            ("backbone.safetensors", bytes_of(self.model.trunk.state_dict().values())),
            ("state.pt (and shards, where it is sharded)", common),
            (f"loss state in {self.processes} x rank_*.pt", own * self.processes),
        ]
        return [row for row in rows if row[1]]


def largest_group(network: SSLModel) -> int:
    """Bytes of the weights that are gathered at one time, where they are sharded.

    The trunk's blocks are gathered one by one, while what lies in no block is there already; parts of the head follow.
    """
    blocks = [bytes_of(block.parameters()) for block in blocks_of(network.trunk)]
    beside = bytes_of(network.trunk.parameters()) - sum(blocks)
    parts = [bytes_of(root.parameters()) for root in roots_of(network) if root is not network.trunk]
    return max([beside + max(blocks, default=0), *parts])
