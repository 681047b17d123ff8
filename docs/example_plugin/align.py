"""An example of a method from outside the package: pull two views together, push the batch apart.

The objective is alignment plus uniformity on the unit sphere (Wang & Isola 2020, arXiv:2005.10242, eq. 1 and 2), with a
dataset, a head and a hook of its own, to show all four. See docs/add_a_method.md.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.hooks.base import Hook
from vissl_like.losses.base import Loss, LossContext
from vissl_like.models.heads.base import Head
from vissl_like.records import Batch, HeadOutput, ModelOutput, Progress
from vissl_like.registry import DATASETS, HEADS, HOOKS, LOSSES
from vissl_like.utils.kinds import Count, Positive


@DATASETS.register("stripes")
class Stripes(ImageDataset):
    """Generated grey images of stripes of random direction and width.

    Options:
        count: number of images
        size: side in pixels
    """

    def __init__(self, *, count: Count = 64, size: Count = 32):
        super().__init__(channels=1)
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> str:
        """A name for messages."""
        return f"stripes/{index}"

    def read(self, index: int) -> Image.Image:
        """The image, the same each time."""
        generator = np.random.default_rng(index)
        angle, width = generator.uniform(0, np.pi), generator.uniform(2, 8)
        y, x = np.mgrid[: self.size, : self.size]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / width)
        return Image.fromarray(((wave + 1) * 127).astype(np.uint8))


@HEADS.register("unit")
class UnitHead(Head):
    """One linear layer onto the unit sphere.

    Options:
        output_dim: width of the embedding
    """

    def __init__(self, feature_dim: int, *, output_dim: Count = 16):
        super().__init__()
        self.embedding_dim = output_dim
        self.layer = nn.Linear(feature_dim, output_dim)

    def forward(self, features: Tensor) -> HeadOutput:
        """``[n, F]`` -> unit rows ``[n, D]``."""
        return HeadOutput(nn.functional.normalize(self.layer(features), dim=1))


@LOSSES.register("align")
class AlignLoss(Loss):
    """Alignment of two views plus uniformity of the batch.

    Options:
        weight: of the uniformity term
    """

    needs_views = 2

    def __init__(self, context: LossContext, *, weight: Positive = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Squared distance of the pair, and log-mean-exp of minus twice the squared distances within each view."""
        first, second = (output.view(output.head.embedding.float(), view) for view in (0, 1))
        alignment = (first - second).square().sum(1).mean()
        uniformity = torch.stack([torch.pdist(z).square().mul(-2).exp().mean().log() for z in (first, second)]).mean()
        return {"loss": alignment + self.weight * uniformity, "alignment": alignment, "uniformity": uniformity}

    def trivial_value(self) -> float:
        """All embeddings equal: distance 0, log-mean-exp 0."""
        return 0.0


@HOOKS.register("tell_alignment")
class TellAlignment(Hook):
    """Says the alignment at the end of every epoch."""

    def on_phase_end(self, run) -> None:
        """Reads the newest report; says one line."""
        if run.last is not None:
            run.say(f"alignment {run.last.parts['alignment']:.4f}")
