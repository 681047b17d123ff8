"""A teacher whose weights are a moving average of the student's (DINO, BYOL, MoCo)."""

from __future__ import annotations

import math

import torch

from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher, matched
from vissl_like.models.teachers.base import copy_buffers as take_over_buffers
from vissl_like.records import Progress
from vissl_like.registry import TEACHERS
from vissl_like.utils.kinds import Fraction


@TEACHERS.register("ema")
class EMATeacher(Teacher):
    """Exponential moving average of the student's weights: ``teacher = m teacher + (1 - m) student`` after each step.

    The momentum m goes from ``momentum`` to ``final_momentum`` along half a cosine over the whole run (DINO,
    arXiv:2104.14294, section 3.1). Only parameters are averaged: BatchNorm's running statistics are the teacher's own.

    Options:
        momentum: m at the first step; lower for short runs, higher for small batches (0.996 for 1024 images)
        final_momentum: m that the last step comes close to
        copy_buffers: take BatchNorm's running statistics from the student at every step (momentum encoder of SwAV)
    """

    def __init__(
        self,
        student: SSLModel,
        *,
        momentum: Fraction = 0.996,
        final_momentum: Fraction = 1.0,
        copy_buffers: bool = False,
    ):
        super().__init__(student)
        self.momentum, self.final_momentum, self.copy_buffers = momentum, final_momentum, copy_buffers

    def momentum_at(self, progress: Progress) -> float:
        """m of the update that follows the step at ``progress.step``."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress.fraction))
        return self.final_momentum + (self.momentum - self.final_momentum) * cosine

    @torch.no_grad()
    def after_update(self, student: SSLModel, progress: Progress) -> None:
        """Moves the weights towards those that the student has now."""
        torch._foreach_lerp_(*matched(self.network, student), 1 - self.momentum_at(progress))
        if self.copy_buffers:
            take_over_buffers(self.network, student)
