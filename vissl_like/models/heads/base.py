"""What every head offers."""

from __future__ import annotations

from torch import Tensor, nn

from vissl_like.records import HeadOutput, Progress


class Head(nn.Module):
    """Maps trunk features to what a loss works on.

    Class-level facts, compared with the loss's ``needs_...`` before the run starts:
        gives_logits: whether the output carries logits over prototypes or classes.
        sharded_parts: names of children that are only called, with tensors: their weights may be divided over
            processes. Weights that the head reads by itself cannot.

    Attributes:
        embedding_dim: D, width of ``HeadOutput.embedding``.
        num_prototypes: K of each entry of ``HeadOutput.logits``.
    """

    gives_logits = False
    sharded_parts: tuple[str, ...] = ()
    embedding_dim: int
    num_prototypes: tuple[int, ...] = ()

    def before_forward(self, progress: Progress) -> None:
        """Called once per optimizer step, before its first forward (e.g. to normalise prototypes)."""

    def before_update(self, progress: Progress) -> None:
        """Called once per optimizer step, after backward and clipping, before the optimizer (e.g. to freeze)."""

    def become_teacher(self) -> None:
        """Called once on the copy that a teacher keeps: drop what only the student has (a predictor)."""

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F] -> HeadOutput`` of n rows."""
        raise NotImplementedError
