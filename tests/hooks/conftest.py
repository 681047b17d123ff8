"""A run without training: hooks are told what a real run would tell them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from vissl_like.hooks.base import Event, Hook
from vissl_like.records import Batch, HeadOutput, ModelOutput, Progress


@dataclass
class FakePlan:
    """The derived numbers that hooks read."""

    global_batch: int = 32
    per_rank_batch: int = 32
    world_size: int = 1
    dataset_size: int = 320
    peak_lr: float = 0.3
    channels_last: bool = False
    checkpoint_every_steps: int = 7


@dataclass
class FakeReport:
    """One step."""

    loss: float = 3.0
    parts: dict[str, float] = field(default_factory=dict)
    lr: float = 0.1
    grad_norm: float = 1.0
    images: int = 32
    data_wait: float = 0.1
    step_time: float = 0.5
    skipped_update: bool = False
    output: ModelOutput | None = None


class FakeLoss:
    def __init__(self, trivial: float | None):
        self.trivial = trivial

    def trivial_value(self) -> float | None:
        return self.trivial


class FakeModel(nn.Module):
    def __init__(self, trunk: nn.Module | None = None):
        super().__init__()
        self.trunk = trunk if trunk is not None else nn.Identity()
        self.head = nn.Identity()
        self.head.embedding_dim = 64


class FakeRun:
    """Tells hooks of steps, events and ends in the order of the real run; records what they ask for."""

    def __init__(
        self, output_dir: Path, hooks: list[Hook], *, step=0, total=100, per_epoch=20, trivial=None, settings=None
    ):
        self.output_dir, self.hooks = output_dir, sorted(hooks, key=lambda hook: hook.runs_last)
        self.progress = Progress(step, total, per_epoch)
        self.plan, self.loss = FakePlan(), FakeLoss(trivial)
        self.settings = OmegaConf.create(settings or {"HOOKS": {"events": {}}})
        self.model: Any = FakeModel()
        self.optimizer: Any = None
        self.dataset: Any = None
        self.device = torch.device("cpu")
        self.plugins: list[str] = []
        self.build_dataset: Any = lambda section: section
        self.last: FakeReport | None = None
        self.last_batch: Batch | None = None
        self.stop_reason: str | None = None
        self.is_main = True
        self.emitted: list[Event] = []
        self.saved: list[tuple[int, str]] = []
        self.states: dict[int, list[dict[str, Any]]] = {}

    @property
    def trunk(self):
        return self.model.trunk

    def banner(self):
        return [("Data", "320 images, none, 0 skipped at scan"), ("Trivial loss", "4.0943")]

    def emit(self, kind, **fields):
        event = Event(kind, self.progress.step, self.progress.epoch, time.time(), fields)
        self.emitted.append(event)
        for hook in self.hooks:
            hook.on_event(self, event)

    def say(self, text, level="info"):
        self.emit("message", text=text, level=level)

    def request_stop(self, reason):
        self.stop_reason = self.stop_reason or reason

    def save_checkpoint(self, reason):
        step = self.progress.step
        self.saved.append((step, reason))
        self.states[step] = [hook.state_dict() for hook in self.hooks]
        path = self.output_dir / f"step_{step}"
        self.emit("checkpoint", path=str(path), reason=reason)
        return path

    def start(self):
        for hook in self.hooks:
            hook.on_start(self)
        return self

    def do_step(self, **facts):
        self.progress = Progress(self.progress.step + 1, self.progress.total_steps, self.progress.steps_per_epoch)
        self.last = FakeReport(**facts)
        for hook in self.hooks:
            hook.on_step(self)

    def do_steps(self, count, **facts):
        for _ in range(count):
            self.do_step(**facts)

    def end(self):
        for hook in self.hooks:
            hook.on_end(self)

    def fail(self, error):
        for hook in self.hooks:
            hook.on_error(self, error)

    def messages(self, level=None):
        return [
            event.fields["text"]
            for event in self.emitted
            if event.kind == "message" and level in (None, event.fields["level"])
        ]

    def events(self, kind):
        return [event for event in self.emitted if event.kind == kind]


@pytest.fixture
def make_run(tmp_path):
    """``make_run(hook, ..., step=0, total=100, per_epoch=20, trivial=None, settings=None)``."""

    def make(*hooks, **facts):
        return FakeRun(tmp_path, list(hooks), **facts)

    return make


def outputs(
    embedding: torch.Tensor, logits: torch.Tensor | None = None, features: torch.Tensor | None = None
) -> ModelOutput:
    """A model's output with these embeddings ``[n, D]``."""
    head = HeadOutput(embedding, () if logits is None else (logits,))
    return ModelOutput(1, embedding if features is None else features, head)
