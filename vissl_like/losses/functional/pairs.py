"""Comparisons of a student's views with what a teacher makes of other views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def different_views(teacher_views: Sequence[int], num_views: int) -> list[tuple[int, int]]:
    """All pairs (teacher slot t, student view v) in which the two saw different views of the image.

    Args:
        teacher_views: the view that each teacher slot saw.
        num_views: V, views that the student saw.
    """
    return [(slot, v) for slot, view in enumerate(teacher_views) for v in range(num_views) if v != view]


def pair_cosines(student: Tensor, teacher: Tensor, teacher_views: Sequence[int]) -> Tensor:
    """Cosine between the two networks' vectors of the same image, for each of the P pairs of different views.

    Args:
        student: ``[V, b, D]``, any lengths.
        teacher: ``[T, b, D]``, any lengths.
        teacher_views: the view that each of the T teacher slots saw.

    Returns:
        ``[P, b]`` in the order of ``different_views``.
    """
    cosines = torch.einsum("tid,vid->tvi", normalize(teacher, dim=2), normalize(student, dim=2))
    return torch.stack([cosines[pair] for pair in different_views(teacher_views, len(student))])
