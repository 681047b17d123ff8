"""Random state of a process, saved and restored so that a resumed run draws what the straight run would have drawn."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int) -> None:
    """Seeds torch, numpy and random; every process gets its own stream."""
    value = (seed * 1_000_003 + rank) % 2**32
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def new_rng_state(seed: int, step: int, rank: int) -> dict[str, Any]:
    """State of streams that are a function of the three; for a run resumed where saved states do not fit.

    It also becomes this process's state.
    """
    seed_everything(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]), rank)
    return rng_state()


def rng_state() -> dict[str, Any]:
    """States as tensors, numbers and tuples only, so that they load without running code."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    words = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(name), words, int(position), int(has_gauss), float(cached)),
        "python": random.getstate(),
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Puts back what ``rng_state`` returned; CUDA states only where as many devices are present."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
