"""Means over consecutive steps: losses, speed, waiting, memory."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from vissl_like.hooks.base import StepFacts

MIB = 2**20


class StepMeans:
    """Gathers steps until their means are taken."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything gathered."""
        self.first = self.steps = self.skipped = self.images = 0
        self.seconds = self.waited = self.lr = 0.0
        # Sum and number of the finite values of each quantity.
        self._loss = self._grad_norm = (0.0, 0)
        self._parts: dict[str, tuple[float, int]] = {}

    def add(self, step: int, facts: StepFacts) -> None:
        """Takes in step number ``step``.

        Losses that are not finite (their update was skipped) count in ``skipped_updates``, not in the means.
        """
        if not self.steps:
            self.first = step
        self.lr = facts.lr
        self.steps += 1
        self.skipped += facts.skipped_update
        self.images += facts.images
        self.seconds += facts.step_time
        self.waited += facts.data_wait
        self._loss = _added(self._loss, facts.loss)
        self._grad_norm = _added(self._grad_norm, facts.grad_norm)
        for name, value in facts.parts.items():
            self._parts[name] = _added(self._parts.get(name, (0.0, 0)), value)

    @property
    def loss(self) -> float:
        """Mean loss, NaN if no step had a finite one."""
        return _mean(self._loss)

    @property
    def images_per_s(self) -> float:
        """Images over all processes per second of stepping (what hooks take is not counted)."""
        return self.images / self.seconds if self.seconds else math.nan

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for the loader, 0..1."""
        return self.waited / self.seconds if self.seconds else math.nan

    def fields(self) -> dict[str, Any]:
        """Everything as fields of an event; ``lr`` is that of the newest step."""
        return {
            "first_step": self.first,
            "steps": self.steps,
            "loss": self.loss,
            "parts": {name: _mean(sum_) for name, sum_ in self._parts.items() if name != "loss"},
            "lr": self.lr,
            "grad_norm": _mean(self._grad_norm),
            "images": self.images,
            "images_per_s": self.images_per_s,
            "data_wait": self.data_wait,
            "skipped_updates": self.skipped,
        }

    def state_dict(self) -> dict[str, Any]:
        """What was gathered, for a checkpoint."""
        return {**vars(self), "_parts": dict(self._parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        vars(self).update({**state, "_parts": dict(state["_parts"])})


def _added(so_far: tuple[float, int], value: float) -> tuple[float, int]:
    return (so_far[0] + value, so_far[1] + 1) if math.isfinite(value) else so_far


def _mean(total_and_count: tuple[float, int]) -> float:
    total, count = total_and_count
    return total / count if count else math.nan


def memory_mib(device: torch.device) -> dict[str, float]:
    """MiB used: ``process`` (this process, resident now) and, on a GPU, ``cuda_peak`` (most that torch ever held)."""
    found = {"process": _resident_bytes() / MIB}
    if device.type == "cuda":
        found["cuda_peak"] = torch.cuda.max_memory_allocated(device) / MIB
    return found


def _resident_bytes() -> int:
    """Resident memory now on Linux; elsewhere the most there has been, or 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
