"""What every teacher offers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vissl_like.distributed.sharding import local
from vissl_like.models.ssl_model import SSLModel
from vissl_like.records import ModelOutput, Progress


class Teacher(nn.Module):
    """A network of the student's shape that follows it without gradient and gives it targets.

    It starts as a copy of the student, without what only a student has (drop path, a predictor), and stays in training
    mode: its BatchNorm takes batch statistics, as in DINO's official code. A subclass says how it follows.

    Args:
        student: trunk and head on their device, BatchNorm already synchronised where it is to be.

    Attributes:
        network: the teacher's trunk and head.
    """

    def __init__(self, student: SSLModel):
        super().__init__()
        self.network = teaching_copy(student)

    def before_forward(self, student: SSLModel, progress: Progress) -> None:
        """Called once per optimizer step, before its first forward (normalises the teacher's prototypes).

        Args:
            student: with the weights that the step starts from, its prototypes already normalised.
            progress: of the step.
        """
        self.network.head.before_forward(progress)

    def start_from(self, student: SSLModel) -> None:
        """Begins anew as a copy of the student: where a run goes on that had no teacher."""
        for network in self.children():
            copy_weights(network, student)
            copy_buffers(network, student)

    @torch.no_grad()
    def forward(self, views: list[Tensor]) -> ModelOutput:
        """Views ``[b, C, H_v, W_v]`` -> outputs, view-major, without gradient."""
        return self.network(views)

    def after_update(self, student: SSLModel, progress: Progress) -> None:
        """May follow the student here; called after the optimizer, not if the update was skipped.

        Args:
            student: with the weights that the update gave it.
            progress: of the step just taken; ``progress.step`` does not count it yet.
        """


def teaching_copy(student: SSLModel) -> SSLModel:
    """A copy of the student without gradient, drop path or predictor."""
    network = copy.deepcopy(student)
    network.head.become_teacher()
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(getattr(module, "drop_prob", None), float):
            module.drop_prob = 0.0  # type: ignore[assignment]
    return network


def matched(teacher: nn.Module, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of the teacher and those of the same name of the student; of divided ones, this process's rows."""
    theirs = dict(student.named_parameters())
    names, own = zip(*teacher.named_parameters(), strict=True)
    return [local(tensor) for tensor in own], [local(theirs[name]).detach() for name in names]


@torch.no_grad()
def copy_weights(teacher: nn.Module, student: nn.Module) -> None:
    """Makes the teacher's parameters those of the student; buffers (running statistics) stay its own."""
    torch._foreach_copy_(*matched(teacher, student))


@torch.no_grad()
def copy_buffers(teacher: nn.Module, student: nn.Module) -> None:
    """Makes the teacher's buffers (BatchNorm's running statistics) those of the student."""
    theirs = dict(student.named_buffers())
    for name, buffer in teacher.named_buffers():
        buffer.copy_(theirs[name])
