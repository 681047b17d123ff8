"""DeepCluster-v2: classify every view by k-means centroids of the last epoch (Caron et al. 2020, arXiv:2006.09882)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vissl_like.clustering.kmeans import kmeans, random_priorities
from vissl_like.losses.bank import BankLoss
from vissl_like.losses.base import LossContext
from vissl_like.records import ModelOutput, Progress
from vissl_like.registry import LOSSES
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Index, Positive


@LOSSES.register("deepcluster_v2")
class DeepClusterV2Loss(BankLoss):
    """Offline clustering: spherical k-means between epochs, whose centroids are the classifier of the next epoch.

    Needs only the head's embedding. The official code copies the centroids into prototype weights that never get a
    gradient; here they are a buffer of the loss, and cosine with them gives the same scores. So a head with prototypes
    of its own would carry weights that nobody trains, and is refused. Several heads are several clusterings, from other
    random starts and other views. Source: appendix A and the official main_deepclusterv2.py.

    Options:
        heads: clusterings, each with its own labels; the loss is their mean
        num_prototypes: K, centroids of each clustering; about 10 times the number of kinds of image expected
        temperature: softmax temperature of the prediction (0.1 in the paper)
        iterations: of k-means
        assign_views: views whose embeddings are clustered, head after head in turn (the two big crops)
    """

    def __init__(
        self,
        context: LossContext,
        *,
        heads: Count = 3,
        num_prototypes: Count = 3000,
        temperature: Positive = 0.1,
        iterations: Count = 10,
        assign_views: list[Index] | None = None,
    ):
        if context.num_prototypes:
            counts = ", ".join(map(str, context.num_prototypes))
            raise UserError(
                f"MODEL.HEAD has prototypes ({counts}), which deepcluster_v2 would never train: its centroids are its "
                "own (LOSS.heads, LOSS.num_prototypes). Use a head without, such as 'mlp' with normalize: true"
            )
        super().__init__(context, [num_prototypes] * heads, temperature, assign_views)
        self.iterations = iterations
        self.centroids: Tensor
        self.register_buffer("centroids", torch.zeros(heads, num_prototypes, context.embedding_dim))

    def label(self, head: int, rows: Tensor, progress: Progress) -> Tensor:
        """k-means of one bank; the random start depends on seed, epoch and head, not on the number of processes."""
        epoch = progress.step // progress.steps_per_epoch
        order = random_priorities(self.context.dataset_size, self.context.seed, epoch, head).to(rows.device)
        priority = order[self.bank_index]
        # A centroid without rows stays, as in the official code: it is a prototype, and may get rows again.
        found = kmeans(rows, priority, self.num_prototypes[head], self.iterations, spherical=True, split_empty=False)
        self.centroids[head] = found.centroids
        return found.labels

    def scores(self, output: ModelOutput) -> Sequence[Tensor]:
        """Cosines with the centroids; an embedding that is not of length 1 is brought to it."""
        embedding = normalize(output.head.embedding.float(), dim=1)
        return [embedding @ centroids.t() for centroids in self.centroids]
