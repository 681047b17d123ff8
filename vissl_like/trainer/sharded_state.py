"""The state of a sharded run in a checkpoint, and back.

Beside ``state.pt``, which has what is equal on all processes, every process writes its rows of the divided tensors
into ``shard_00000.safetensors`` and so on: names ``model.<key>``, ``teacher.<key>``, ``optimizer.<index>.<key>``. They
lie in the folder before its manifest, so digests, damage and half-written folders are treated as for all other files,
and ``shards`` in the manifest is their number. Rows are divided along the first dimension in rank order: a whole tensor
is the shards one after the other, whatever their number.

torch.distributed.checkpoint is not used: the reader of its format unpickles ``.metadata``, which can run code, and a
digest in the same folder does not make a file trusted. safetensors is lengths and numbers only.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.distributed.sharding import is_divided, is_shard, local, own_rows
from vissl_like.models.teachers.base import Teacher
from vissl_like.trainer.checkpoint import Checkpoint, shard_name
from vissl_like.utils.errors import UserError


def take_out(
    common: dict[str, Any], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """A run's state without divided tensors, and this process's rows of these; None where nothing is divided."""
    kept: dict[str, Any] = dict(common)
    shards: dict[str, Tensor] = {}
    for part in ("model", "teacher"):
        shards |= {f"{part}.{key}": local(value) for key, value in common[part].items() if is_divided(value)}
        kept[part] = {key: value for key, value in common[part].items() if not is_divided(value)}
    if not shards:
        return common, None
    state = {}
    for (index, values), parameter in zip(common["optimizer"]["state"].items(), _stateful(common, optimizer)):
        divided = {key for key, value in values.items() if is_shard(parameter) and _is_like(value, parameter.shape)}
        shards |= {f"optimizer.{index}.{key}": values[key] for key in divided}
        state[index] = {key: value for key, value in values.items() if key not in divided}
    kept["optimizer"] = {**common["optimizer"], "state": state}
    return kept, shards


def put_together(
    common: dict[str, Any],
    checkpoint: Checkpoint,
    model: nn.Module,
    teacher: Teacher | None,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """A saved state with the rows that this process has of every tensor, however many processes wrote it.

    Also from a run that was not sharded to one that is, and the other way round.
    """
    count = int(checkpoint.manifest.get("shards", 0))
    if not count and not any(is_divided(parameter) for parameter in model.parameters()):
        return common
    with ExitStack() as stack:
        saved = _Shards(checkpoint.folder, count, stack)
        found = {**common, "model": saved.module("model", common["model"], model)}
        if teacher is not None and (common.get("teacher") or saved.names("teacher.")):
            found["teacher"] = saved.module("teacher", common["teacher"], teacher)
        found["optimizer"] = saved.optimizer(common["optimizer"], optimizer)
    return found


def load_into(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts a state dict (for a divided tensor: this process's rows) into a network.

    Raises:
        UserError: names or shapes do not fit.
    """
    own = module.state_dict()
    if not any(is_divided(tensor) for tensor in own.values()):
        module.load_state_dict(state)
        return
    odd = sorted(own.keys() ^ state.keys()) or [
        name for name, tensor in own.items() if local(tensor).shape != state[name].shape
    ]
    if odd:
        raise UserError(f"the checkpoint is of another network: {', '.join(odd[:4])}. Take another OUTPUT_DIR.")
    with torch.no_grad():
        for name, tensor in own.items():
            local(tensor).copy_(state[name])


class _Shards:
    """Reads rows of divided tensors out of the files of a checkpoint.

    Args:
        folder: of the checkpoint.
        count: files.
        stack: closes them.
    """

    def __init__(self, folder: Path, count: int, stack: ExitStack):
        from safetensors import safe_open

        files = [folder / shard_name(rank) for rank in range(count)]
        self._files: list[Any] = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        self._names = set(self._files[0].keys()) if self._files else set()

    def names(self, prefix: str) -> list[str]:
        """What follows the prefix, of all tensors whose name begins with it."""
        return [name.removeprefix(prefix) for name in sorted(self._names) if name.startswith(prefix)]

    def rows(self, name: str, divided: bool) -> Tensor:
        """This process's rows of a tensor, or all of them."""
        parts = [file.get_slice(name) for file in self._files]
        counts = [part.get_shape()[0] for part in parts]
        first, last = own_rows(sum(counts)) if divided else (0, sum(counts))
        found, begin = [], 0
        for part, count in zip(parts, counts, strict=True):
            inside = max(first - begin, 0), min(last - begin, count)
            if inside[0] < inside[1]:
                found.append(part[inside[0] : inside[1]])
            begin += count
        return torch.cat(found) if found else parts[0][0:0]

    def module(self, prefix: str, plain: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
        """The state dict of a network."""
        divided = {name for name, tensor in module.state_dict().items() if is_divided(tensor)}
        found = {name: _rows_of(value) if name in divided else value for name, value in plain.items()}
        return found | {n: self.rows(f"{prefix}.{n}", n in divided) for n in self.names(f"{prefix}.")}

    def optimizer(self, plain: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state dict of an optimizer."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for index, values in plain["state"].items():
            whole = getattr(parameters[index], "whole_shape", None)
            state[index] = {
                key: _rows_of(value) if whole is not None and _is_like(value, whole) else value
                for key, value in values.items()
            }
        for name in self.names("optimizer."):
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = self.rows(f"optimizer.{name}", is_shard(parameters[int(number)]))
        return {**plain, "state": state}


def _rows_of(whole: Tensor) -> Tensor:
    first, last = own_rows(len(whole))
    return whole[first:last].clone()


def _is_like(value: Any, shape: torch.Size) -> bool:
    """Whether a state is one number for each of a parameter."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == shape


def _stateful(common: dict[str, Any], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters that have a state, in the order of the optimizer's state dict."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameters[index] for index in common["optimizer"]["state"]]
