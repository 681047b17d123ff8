"""What a forward pass keeps for the backward pass, counted on tensors that have shapes and formats but no memory.

The pass runs under torch's fake tensors: they are meta tensors that say that they lie on the device of the run, so that
autocast casts, and operators choose their kernels, as they would there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

HALF = (torch.bfloat16, torch.float16)
Storages = dict[int, tuple[int, Any]]
"""Number of a storage -> its bytes, and the storage, held so that no other gets its number."""


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass leaves behind.

    Attributes:
        activations: storages that autograd keeps, each counted once, and neither parameters nor ``inputs`` nor
            ``casts``.
        casts: parameters in the format of autocast, that live until the pass is over.
        recomputed: what the largest stretch under activation checkpointing keeps while it is computed again.
        outputs: tensors that the pass gives out, where nothing else counts them.
        inputs: the pass's inputs.
    """

    activations: int
    casts: int
    recomputed: int
    outputs: int
    inputs: int


class Imitation:
    """A context: tensors made inside have no memory, on any device, whether this machine has it or not.

    It may be entered again; what came of it before can be used then, what came of another one cannot.
    """

    def __init__(self) -> None:
        self._modes = FakeTensorMode(allow_non_fake_inputs=True), _NoValues()

    def __enter__(self) -> None:
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


def put_on(module: nn.Module, device: torch.device) -> None:
    """Parameters and buffers of a module on the meta device become imitations on ``device``; shared ones stay shared.

    Args:
        module: changed in place; called inside an ``Imitation``.
        device: of the run.
    """
    done: dict[int, tuple[Tensor, Tensor]] = {}  # the originals too, so that no other gets their number

    def imitated(tensor: Tensor) -> Tensor:
        if id(tensor) not in done:
            fake = torch.empty_like(tensor, device=device)
            is_weight = isinstance(tensor, nn.Parameter)
            done[id(tensor)] = tensor, nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
        return done[id(tensor)][1]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = imitated(tensor)  # type: ignore[assignment]


def count_kept(
    forward: Callable[[], list[Tensor]],
    parameters: list[Tensor],
    inputs: list[Tensor],
    device_type: str,
    keep_casts: bool,
) -> Kept:
    """Runs ``forward`` and counts what it keeps.

    Args:
        forward: the pass; returns what it gives out.
        parameters: parameters and buffers, which are not counted.
        inputs: counted by themselves.
        device_type: of the run.
        keep_casts: autocast holds casts of weights until the pass is over, else only whoever needs them does.
    """
    known = {_key(tensor): tensor for tensor in parameters}
    given = {_key(tensor): tensor.untyped_storage().nbytes() for tensor in inputs}
    watch, own, stretches = _Casts(set(known)), Storages(), list[tuple[set[int], Storages]]()

    def pack(tensor: Tensor) -> None:
        _note(own, tensor)

    fallback = _Attention() if device_type == "cuda" and not torch.cuda.is_available() else None
    with watch, fallback or nullcontext(), saved_tensors_hooks(pack, _never), _stretches(stretches, own):
        given_out = forward()
    casts = {key: size for key, (size, _) in watch.casts.items() if keep_casts or key in own}
    apart = known.keys() | given.keys() | casts.keys()
    activations = {key: size for key, (size, _) in own.items() if key not in apart}
    again = [
        sum(size for key, (size, _) in stretch.items() if key not in apart and key not in before)
        for before, stretch in stretches
    ]
    outputs = Storages()
    for tensor in given_out:
        if _key(tensor) not in apart and _key(tensor) not in activations:
            _note(outputs, tensor)
    return Kept(
        activations=sum(activations.values()),
        casts=sum(casts.values()),
        recomputed=max(again, default=0),
        outputs=sum(size for size, _ in outputs.values()),
        inputs=sum(given.values()),
    )


@contextmanager
def cast_as_there(device_type: str, dtype: Any, keep_casts: bool) -> Iterator[None]:
    """``torch.autocast``, which switches itself off for a GPU that is not there; this does not.

    Args:
        device_type: of the run.
        dtype: format of autocast; None: no autocast.
        keep_casts: it remembers casts of weights until it is left.
    """
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    remembered = torch.is_autocast_cache_enabled()
    torch.set_autocast_enabled(device_type, dtype is not None)
    torch.set_autocast_dtype(device_type, dtype or before[1])
    torch.set_autocast_cache_enabled(keep_casts)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(remembered)
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])


class _NoValues(TorchDispatchMode):
    """Tensors without memory have no values: where the program asks for one it is told 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        return func(*args, **(kwargs or {}))


class _Casts(TorchDispatchMode):
    """Notes parameters that are brought to another format.

    Args:
        parameters: storages of the parameters.
    """

    def __init__(self, parameters: set[int]):
        super().__init__()
        self.parameters, self.casts = parameters, Storages()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and _key(args[0]) in self.parameters and torch.is_grad_enabled():
            _note(self.casts, out)
        return out


class _Attention(TorchFunctionMode):
    """Attention in the kernels that a GPU takes; without a GPU torch cannot choose, and takes one that keeps more."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            func is not scaled_dot_product_attention
            or len(args) != 3
            or not kwargs.keys() <= {"attn_mask", "dropout_p"}
        ):
            return func(*args, **kwargs)
        mask, drop = kwargs.get("attn_mask"), kwargs.get("dropout_p", 0.0)
        if torch.is_autocast_enabled("cuda"):
            args = [tensor.to(torch.get_autocast_dtype("cuda")) for tensor in args]
        if args[0].dtype in HALF and mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args, drop)[0]
        needs_gradient = any(tensor.requires_grad for tensor in args)
        return torch.ops.aten._scaled_dot_product_efficient_attention(*args, mask, needs_gradient, drop)[0]


@contextmanager
def _stretches(found: list[tuple[set[int], Storages]], own: Storages) -> Iterator[None]:
    """Notes what is kept inside each stretch under activation checkpointing, which hides it from hooks outside.

    It enters hooks of its own, which drop what is kept; these are told to note it first. Beside each stretch stands
    what was kept before it (its input): that is not made a second time.
    """
    enter = saved_tensors_hooks.__enter__

    def noting(hooks: saved_tensors_hooks) -> None:
        stretch = Storages()
        found.append((set(own), stretch))
        drop = hooks.pack_hook

        def pack(tensor: Tensor) -> Any:
            _note(stretch, tensor)
            return drop(tensor)

        pack.__dict__ = drop.__dict__  # checkpointing keeps marks there
        hooks.pack_hook = pack
        enter(hooks)
        hooks.pack_hook = drop

    saved_tensors_hooks.__enter__ = noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        saved_tensors_hooks.__enter__ = enter  # type: ignore[method-assign]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _note(place: Storages, tensor: Tensor) -> None:
    storage = tensor.untyped_storage()
    place[storage._cdata] = (storage.nbytes(), storage)


def _never(_: Any) -> Tensor:
    raise AssertionError("no backward pass is made")
