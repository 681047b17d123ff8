"""Weights, gradients and optimizer state divided over the processes, by torch's ``fully_shard`` (FSDP2).

A network's trunk is divided block by block (``models.blocks``), what is left of the trunk as one group, and those parts
of the head that it names in ``sharded_parts`` as one group each. A group is put together for its forward and its
backward and taken apart again. The rest (prototypes: a head and a loss read them by themselves) is whole on every
process, and its gradients are averaged as in data-parallel training. All of it computes what that computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vissl_like.distributed import comm
from vissl_like.distributed.sharding import is_divided, is_shard, local
from vissl_like.models.blocks import blocks_of
from vissl_like.models.ssl_model import SSLModel


def shard(network: SSLModel, device: torch.device) -> list[nn.Module]:
    """Divides trunk and head in place; every process starts from the main one's weights.

    Returns:
        the outermost divided modules.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.copy_(comm.broadcast(tensor))
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    options: Any = {"mesh": init_device_mesh(device.type, (comm.world_size(),)), "reshard_after_forward": True}
    roots = roots_of(network)
    for block in blocks_of(network.trunk):
        block.register_forward_hook(_no_view)
        fully_shard(block, ignored_params=_scalars(block), **options)
    for root in roots:
        root.register_forward_hook(_no_view)
        fully_shard(root, ignored_params=_scalars(root), **options)
    return roots


def roots_of(network: SSLModel) -> list[nn.Module]:
    """The outermost modules that are divided: the trunk, and the parts of the head that it names."""
    parts = [network.head.get_submodule(name) for name in network.head.sharded_parts]
    return [part for part in (network.trunk, *parts) if any(True for _ in part.parameters())]


def divided_parameters(network: SSLModel) -> list[Parameter]:
    """Parameters of which each process has, or will have, some rows."""
    return [p for root in roots_of(network) for p in root.parameters() if p.dim()]


def _no_view(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """What watches for the backward of a divided module is lost where a view that it gave is changed in place."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _scalars(module: nn.Module) -> set[Parameter]:
    """A single number cannot be divided."""
    return {parameter for parameter in module.parameters() if parameter.dim() == 0}


class FullySharded(nn.Module):
    """A network divided over the processes, in place of torch's data-parallel wrapper.

    Args:
        network: trunk and head on their device; divided in place.
        device: theirs.
        same_buffers: the main process's buffers go to all before each forward.
    """

    def __init__(self, network: SSLModel, device: torch.device, same_buffers: bool):
        super().__init__()
        self._roots = shard(network, device)
        self.network, self.same_buffers = network, same_buffers
        self._own: dict[str, Parameter] = {}
        for name, parameter in network.named_parameters():
            self._own[name] = _own_part(parameter) if is_divided(parameter) else parameter

    def forward(self, views: list[Tensor]) -> Any:
        """What the network gives."""
        if self.same_buffers:
            with torch.no_grad():
                for buffer in self.network.buffers():
                    buffer.copy_(comm.broadcast(buffer))
        return self.network(views)

    def own_parameters(self) -> list[tuple[str, Parameter]]:
        """What this process updates, by name, in the network's order: shards and whole parameters."""
        return list(self._own.items())

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of the backward inside stay on this process and add up there."""
        self._set_sync(False)
        try:
            yield
        finally:
            self._set_sync(True)

    def _set_sync(self, wanted: bool) -> None:
        for root in self._roots:
            root.set_requires_gradient_sync(wanted)  # type: ignore[operator]

    @torch.no_grad()
    def finish_backward(self) -> None:
        """After the last backward of an update: averages the gradients of whole parameters, hands shards theirs."""
        whole = [p.grad for p in self._own.values() if p.grad is not None and not is_shard(p)]
        if whole:
            joined = comm.all_reduce(torch.cat([gradient.flatten() for gradient in whole])) / comm.world_size()
            for gradient, mean in zip(whole, joined.split([gradient.numel() for gradient in whole]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        for name, parameter in self.network.named_parameters():
            if is_divided(parameter):
                own = self._own[name]
                own.data = local(parameter)
                own.grad = None if parameter.grad is None else local(parameter.grad)


def _own_part(parameter: Parameter) -> Parameter:
    own = Parameter(local(parameter), requires_grad=parameter.requires_grad)
    own.whole_shape = parameter.shape  # type: ignore[attr-defined]
    return own
