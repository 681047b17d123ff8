"""A teacher that is the student itself, without gradient."""

from __future__ import annotations

from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher, copy_weights
from vissl_like.records import Progress
from vissl_like.registry import TEACHERS


@TEACHERS.register("student_copy")
class StudentCopyTeacher(Teacher):
    """The current student with its gradient stopped: an average with momentum 0.

    DINO, arXiv:2104.14294, section 5.2: collapses with centring (figure 6), works with balanced targets (SwAV).
    """

    def after_update(self, student: SSLModel, progress: Progress) -> None:
        """Takes over the student's weights."""
        copy_weights(self.network, student)
