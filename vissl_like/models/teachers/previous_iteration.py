"""A teacher that is the student before its latest step."""

from __future__ import annotations

from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.base import Teacher, copy_weights, teaching_copy
from vissl_like.records import Progress
from vissl_like.registry import TEACHERS


@TEACHERS.register("previous_iteration")
class PreviousIterationTeacher(Teacher):
    """The student before its latest update: at step t the weights that step t - 1 started from.

    DINO, arXiv:2104.14294, section 5.2: does not converge there (figure 6); our reading of the text, for there is no
    official code of this variant.
    """

    def __init__(self, student: SSLModel):
        super().__init__(student)
        self.latest = teaching_copy(student)

    def after_update(self, student: SSLModel, progress: Progress) -> None:
        """Takes over the weights that the step just taken started from, and notes the new ones for the next time."""
        copy_weights(self.network, self.latest)
        copy_weights(self.latest, student)
