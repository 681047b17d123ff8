"""A teacher that is the student of the end of the previous epoch."""

from __future__ import annotations

from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher, copy_weights
from vissl_like.records import Progress
from vissl_like.registry import TEACHERS


@TEACHERS.register("previous_epoch")
class PreviousEpochTeacher(Teacher):
    """The student as it was when the previous epoch ended, constant over an epoch (first epoch: initial weights).

    DINO, arXiv:2104.14294, section 5.2: works surprisingly well (figure 6), where copies of a newer student collapse.
    """

    def before_forward(self, student: SSLModel, progress: Progress) -> None:
        """Before the first step of an epoch, takes over the student's weights (even if the last update was skipped)."""
        if progress.step % progress.steps_per_epoch == 0:
            copy_weights(self.network, student)
        super().before_forward(student, progress)
