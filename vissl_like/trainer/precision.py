"""Number formats of the forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def bf16_supported(device_type: str) -> bool:
    """Whether bfloat16 is fast here: on a GPU, or a CPU with AVX512-BF16 or AMX (emulated it is many times slower)."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in flags)


class Precision:
    """Autocast for the forward pass, and gradient scaling where the format needs it.

    Args:
        kind: ``fp32``, ``bf16`` or ``fp16`` (fp16 scales the loss; losses themselves always compute in float32).
        device_type: ``cpu`` or ``cuda``.
        keep_casts: weights in the low format are kept from one use to the next within a forward pass.
    """

    def __init__(self, kind: str, device_type: str, keep_casts: bool = True):
        self.kind, self.device_type, self.keep_casts = kind, device_type, keep_casts
        self.dtype = _DTYPES[kind]
        self.scaler = torch.amp.GradScaler(device_type, enabled=kind == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the forward pass."""
        on = self.dtype is not None
        return torch.autocast(self.device_type, self.dtype, enabled=on, cache_enabled=self.keep_casts)
