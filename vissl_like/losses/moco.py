"""MoCo v2: telling a teacher's vector of the same image from a queue of others (Chen et al. 2020, arXiv:2003.04297)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from vissl_like.distributed import comm
from vissl_like.losses.base import Loss, LossContext
from vissl_like.losses.functional.pairs import different_views, pair_cosines
from vissl_like.losses.functional.views import check_views
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.registry import LOSSES
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Index, Positive


@LOSSES.register("moco")
class MoCoLoss(Loss):
    """InfoNCE: the student's vector of one view must find the teacher's of another among a queue of earlier ones.

    ``mean over pairs (t, v != t) of -log(exp(s_v z_t / T) / (exp(s_v z_t / T) + sum over the queue exp(s_v k / T)))``
    with unit vectors (He et al. 2020, arXiv:1911.05722, equation 1). The queue holds the teacher's vectors (keys) of
    earlier steps, is common to all processes and starts with random directions. Collapse is prevented by the negatives.

    The official loss has one pair: ``teacher_views: [1]`` and two views. With both big crops as teacher views it is
    made symmetric, as multi-crop asks for.

    BatchNorm: in MoCo a key's statistics come from a shuffled batch, so that a query cannot recognise its key, other
    than the negatives, by sharing a batch with it. There is no shuffling here. With synchronised BatchNorm (the
    default of several processes) query and key share the statistics of the whole batch, a far weaker trace than those
    of one process's few images, but a trace; small batches and unsynchronised statistics leave a stronger one. Trunks
    and heads without BatchNorm (vision transformers) have none.

    Options:
        temperature: T (0.2 in MoCo v2, 0.07 in v1)
        queue_length: keys kept over all processes, rounded down to a multiple of the keys of one step; on small data
            less than the number of images, or negatives include the image itself
        teacher_views: views that the teacher sees (the two big crops); each gives keys
    """

    needs_views = 2
    needs_teacher = True
    accumulation_note = "BatchNorm sees micro-batches; otherwise it is the same (keys become negatives after the step)"

    def __init__(
        self,
        context: LossContext,
        *,
        temperature: Positive = 0.2,
        queue_length: Count = 65536,
        teacher_views: list[Index] | None = None,
    ):
        super().__init__()
        if context.num_prototypes:
            raise UserError(
                "the loss moco compares embeddings, and the head has prototypes that nothing would train: use a head "
                "without, such as mlp (MODEL.HEAD.name)"
            )
        self.context, self.temperature, self.asked_length = context, temperature, queue_length
        self.teacher_views = check_views("teacher_views", teacher_views, context.num_views)
        self.keys_per_step = len(self.teacher_views) * context.global_batch
        self.queue_length = queue_length - queue_length % self.keys_per_step
        if not self.queue_length:
            raise UserError(
                f"LOSS.queue_length is {queue_length}, less than the {self.keys_per_step} keys of one step "
                f"({len(self.teacher_views)} teacher views of {context.global_batch} images): use a multiple of "
                f"{self.keys_per_step}"
            )
        generator = torch.Generator().manual_seed(context.seed)
        start = torch.randn(self.queue_length, context.embedding_dim, generator=generator)
        self.queue: Tensor
        self.queue_pointer: Tensor
        self.register_buffer("queue", normalize(start, dim=1))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64))
        self._pending: list[Tensor] = []

    def trivial_value(self) -> float:
        """ln(1 + queue length): what constant outputs cost once the queue holds nothing but them."""
        return math.log1p(self.queue_length)

    def advice(self) -> list[str]:
        """A queue that is rounded down, or in which an image meets its own older keys."""
        remarks, views = [], len(self.teacher_views)
        if self.queue_length != self.asked_length:
            remarks.append(
                f"the queue of {self.asked_length} is rounded down to {self.queue_length}, whole steps of "
                f"{self.keys_per_step} keys"
            )
        if self.queue_length // views > self.context.dataset_size // 2:
            remarks.append(
                f"the queue of {self.queue_length} keys goes back over {self.queue_length // views} images, more than "
                f"half of the {self.context.dataset_size} there are: an image's own older keys count as negatives. "
                "Shorten LOSS.queue_length."
            )
        return remarks

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The objective; ``positive_cosine``, mean over pairs; ``accuracy``, share of pairs that beat all negatives."""
        assert output.teacher is not None
        student = normalize(output.head.embedding.float(), dim=1).unflatten(0, (output.num_views, -1))
        keys = normalize(output.teacher.head.embedding.detach().float(), dim=1)
        keys = keys.unflatten(0, (len(self.teacher_views), -1))
        cosines = pair_cosines(student, keys, self.teacher_views)
        negatives = student @ self.queue.t()
        competition = torch.logsumexp(negatives / self.temperature, dim=2)
        best, views = negatives.detach().amax(2), [v for _, v in different_views(self.teacher_views, output.num_views)]
        # -log(exp(p) / (exp(p) + exp(n))) = log(1 + exp(n - p))
        losses = softplus(torch.stack([competition[v] for v in views]) - cosines / self.temperature)
        won = cosines.detach() > torch.stack([best[v] for v in views])
        self._pending.append(keys.transpose(0, 1))
        return {"loss": losses.mean(), "positive_cosine": cosines.detach().mean(), "accuracy": won.float().mean()}

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        """Overwrites the oldest keys with those of this step: all teacher views, micro-batches and processes.

        They stand in the order that one process has with the whole batch at once: image by image.
        """
        everyone = comm.all_gather(torch.stack(self._pending))  # [W * micro-batches, b, T, D]
        keys = everyone.unflatten(0, (self.context.world_size, -1)).transpose(0, 1).flatten(0, 3)
        rows = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % self.queue_length
        self.queue.index_copy_(0, rows, keys)
        self.queue_pointer.add_(len(keys)).remainder_(self.queue_length)
        self._pending.clear()

    def forget_pending(self) -> None:
        """Keys of a skipped update are not kept."""
        self._pending.clear()
