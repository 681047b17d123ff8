"""BatchNorm whose statistics span processes: torch's on GPU, an all-reduce version of the same layout on CPU.

They span all processes, or each group of so many neighbours (``group_size``). A layer that does more than normalise
keeps what follows: timm's BatchNormAct2d drops and activates in the same module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vissl_like.distributed import comm
from vissl_like.utils.errors import UserError

_PARAMETERS = ("weight", "bias")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_AFTER_NORM = {"drop", "act"}


class AllReduceBatchNorm(_BatchNorm):
    """BatchNorm over the joined batch of processes, on any device and for inputs ``[n, C]`` or ``[n, C, ...]``.

    torch's SyncBatchNorm refuses CPU tensors in training; state-dict keys are the same. Mean first, then centred
    variance (two collectives), so that the result equals one process on the joined batch to rounding.

    Attributes:
        group_size: processes whose batches are joined; None for all.
    """

    group_size: int | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions [n, C, ...], got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalised input of the same shape and dtype; statistics in float32, or in float64 where the input is."""
        if not (self.training and comm.active()) or self.group_size == 1:
            return super().forward(input)
        self._check_input_dim(input)
        group = None if self.group_size is None else comm.subgroup(self.group_size)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        rows = x.new_tensor([float(x.numel() // x.shape[1])])
        joined = comm.all_reduce_with_gradient(torch.cat([x.sum(axes), rows]), group)
        count = joined[-1].detach()
        mean = joined[:-1] / count
        centred = x - mean.view(shape)
        variance = comm.all_reduce_with_gradient(centred.square().sum(axes), group) / count
        self._track(mean.detach(), variance.detach(), count)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats:
            return
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class TorchSyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, which asks for its group when it needs it: a layer that holds one cannot be copied.

    Attributes:
        group_size: processes whose batches are joined; None for all.
    """

    group_size: int | None = None

    @property
    def process_group(self) -> Any:
        """torch's name for the group; None for all processes."""
        return comm.subgroup(self.group_size) if self.group_size is not None and comm.active() else None

    @process_group.setter
    def process_group(self, given: Any) -> None:
        """torch's constructor sets None."""


class _DropAndAct(nn.Module):
    """Mixed in before a BatchNorm class: norm, then ``drop``, then ``act``, as timm's BatchNormAct2d does."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Input normalised, dropped and activated, of the same shape and dtype."""
        return self.act(self.drop(super().forward(input)))


class AllReduceBatchNormAct(_DropAndAct, AllReduceBatchNorm):
    """AllReduceBatchNorm followed by the modules ``drop`` and ``act``, which the conversion sets."""


class SyncBatchNormAct(_DropAndAct, TorchSyncBatchNorm):
    """torch's SyncBatchNorm followed by the modules ``drop`` and ``act``, which the conversion sets."""


def synchronise_batch_norm(module: nn.Module, device_type: str, group_size: int | None = None) -> nn.Module:
    """Replaces every BatchNorm of ``module`` by one that spans processes; layers that span them already stay.

    Parameters, buffers, state-dict keys, training mode, and a layer's ``drop`` and ``act`` are kept: the very same
    objects, so device, dtype and frozen parameters too. Hooks on a replaced layer are not.

    Args:
        module: changed in place; a BatchNorm itself is replaced by the result.
        device_type: where it will run: ``cuda`` takes torch's SyncBatchNorm, all else AllReduceBatchNorm.
        group_size: so many neighbouring processes join their batches, a divisor of their number; None for all.

    Raises:
        UserError: a BatchNorm class computes something else than norm, or norm, drop and act. Nothing is changed then.
    """
    spanning = (AllReduceBatchNorm, nn.SyncBatchNorm) if device_type == "cuda" else (AllReduceBatchNorm,)
    for name, child in module.named_modules():
        if isinstance(child, _BatchNorm) and not isinstance(child, spanning):
            _check_known(name, child)
    converted = _convert(module, device_type, spanning, {})
    for norm in converted.modules():
        if group_size is not None and isinstance(norm, (AllReduceBatchNorm, TorchSyncBatchNorm)):
            norm.group_size = group_size
    return converted


def _convert(
    module: nn.Module, device_type: str, spanning: tuple[type[nn.Module], ...], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """``done`` maps each module to its result, so that a layer used in two places stays one layer."""
    if module in done:
        return done[module]
    is_local = isinstance(module, _BatchNorm) and not isinstance(module, spanning)
    done[module] = result = _replacement(module, device_type) if is_local else module  # type: ignore[arg-type]
    for name, child in list(module._modules.items()):
        converted = child if child is None else _convert(child, device_type, spanning, done)
        if result._modules.get(name) is not converted:
            setattr(result, name, converted)
    return result


def _replacement(old: _BatchNorm, device_type: str) -> _BatchNorm:
    """The layer that spans processes, with the old one's parameters and buffers; its children are yet to be set."""
    kind: type[_BatchNorm] = AllReduceBatchNormAct if old._modules else AllReduceBatchNorm
    if device_type == "cuda":
        kind = SyncBatchNormAct if old._modules else TorchSyncBatchNorm
    # Made without parameters and buffers: the old ones are put in their places.
    new = kind(old.num_features, old.eps, old.momentum, affine=False, track_running_stats=False)
    new.affine, new.track_running_stats = old.affine, old.track_running_stats
    for name in _PARAMETERS + _BUFFERS:
        setattr(new, name, getattr(old, name))
    new.training = old.training
    return new


def _check_known(name: str, norm: _BatchNorm) -> None:
    """Refuses a layer of which the conversion would lose something."""
    children = {key for key, child in norm._modules.items() if child is not None}
    # Asked of the object, not of its class: somebody may have replaced the method of this one layer.
    forward = getattr(norm.forward, "__func__", None)
    is_torch = forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    is_plain = is_torch and not norm._modules
    is_followed = not is_torch and children == set(norm._modules) == _AFTER_NORM and forward is type(norm).forward
    has_more = set(norm._parameters) - set(_PARAMETERS) or set(norm._buffers) - set(_BUFFERS)
    if (is_plain or is_followed) and not has_more:
        return
    kind = type(norm)
    raise UserError(
        f"MODEL.SYNC_BATCH_NORM: the layer '{name}' is a {kind.__module__}.{kind.__qualname__}, a BatchNorm with a "
        "computation or state of its own, which would be lost when its statistics span the processes. Allowed are "
        "torch's BatchNorm1d, BatchNorm2d and BatchNorm3d, subclasses that keep their forward and state, and "
        "subclasses laid out as timm's BatchNormAct2d: the norm, then a child module drop, then a child module act, no "
        "more state. Build the network with one of these, train in one process, or (without a teacher) set "
        "MODEL.SYNC_BATCH_NORM to false."
    )
