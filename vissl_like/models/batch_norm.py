"""BatchNorm whose statistics span all processes: torch's on GPU, an all-reduce version of the same layout on CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vissl_like.distributed import comm


class AllReduceBatchNorm(_BatchNorm):
    """BatchNorm over the joined batch of all processes, on any device and for inputs ``[n, C]`` or ``[n, C, ...]``.

    torch's SyncBatchNorm refuses CPU tensors in training; state-dict keys are the same. Mean first, then centred
    variance (two collectives), so that the result equals one process on the joined batch to rounding.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions [n, C, ...], got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalised input of the same shape and dtype."""
        if not (self.training and comm.active()):
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        rows = torch.tensor([float(x.numel() // x.shape[1])], device=x.device)
        joined = comm.all_reduce_with_gradient(torch.cat([x.sum(axes), rows]))
        count = joined[-1].detach()
        mean = joined[:-1] / count
        centred = x - mean.view(shape)
        variance = comm.all_reduce_with_gradient(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach(), count)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)


def synchronise_batch_norm(module: nn.Module, device_type: str) -> nn.Module:
    """Replaces every BatchNorm of ``module`` by one that spans all processes; parameters and buffers are kept."""
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, AllReduceBatchNorm):
        replacement = AllReduceBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        replacement.load_state_dict(module.state_dict())
        return replacement.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child, device_type))
    return module
