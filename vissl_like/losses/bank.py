"""What methods share that cluster the whole dataset between epochs: a bank of embeddings and a table of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from vissl_like.clustering.statistics import evenness, mutual_information
from vissl_like.distributed import comm
from vissl_like.losses.base import FeatureSource, Loss, LossContext
from vissl_like.losses.functional.views import check_views
from vissl_like.losses.per_rank import StepRows
from vissl_like.records import Batch, ModelOutput, Progress
from vissl_like.utils.errors import UserError

IGNORED = -100
"""Label of an image that was not in the bank when labels were made: it takes no part in the loss."""

FEW_IMAGES_PER_CLUSTER = 10
LARGE_SHARE_WITHOUT_LABEL = 0.1


class BankLoss(Loss):
    """Predicts, from every view, labels that the images got when the epoch began.

    Each process keeps the unit-length embedding of every image it saw in the last epoch, one bank per assign view, with
    the images' positions in the dataset. Slots follow the order of training: step s of an epoch owns the same slots in
    every epoch. Before the first epoch the banks are filled by one pass without gradient; later each update overwrites
    its slots with the embeddings it was computed from. When an epoch begins, head h labels bank h mod (number of assign
    views), and the labels of all processes go into one table by position in the dataset. Images that are not in a bank
    (left over at the end of the last epoch) are ignored.

    A subclass gives ``label`` and ``scores``.

    Args:
        context: facts of the run.
        num_prototypes: K of each head.
        temperature: softmax temperature, > 0.
        assign_views: views whose embeddings are kept; None = the first two.

    Raises:
        UserError: assign views that do not exist or repeat; more prototypes than images in an epoch.
    """

    needs_index = True
    accumulation_note = (
        "BatchNorm sees micro-batches, and each micro-batch averages over its own labelled images (a few images left "
        "over from the last epoch have no label)"
    )
    per_rank_buffers = ("bank", "bank_index")
    per_rank_layout = MappingProxyType({"bank": StepRows(dim=1), "bank_index": StepRows()})

    def __init__(
        self,
        context: LossContext,
        num_prototypes: Sequence[int],
        temperature: float,
        assign_views: list[int] | None,
    ):
        super().__init__()
        self.context, self.num_prototypes, self.temperature = context, tuple(num_prototypes), temperature
        self.assign_views = check_views("assign_views", assign_views, context.num_views)
        self._refuse_too_many_prototypes()
        rows, heads = context.rows_per_rank, len(self.num_prototypes)
        self.bank: Tensor
        self.bank_index: Tensor
        self.table: Tensor
        self.evenness: Tensor
        self.agreement: Tensor
        self.register_buffer("bank", torch.zeros(len(self.assign_views), rows, context.embedding_dim))
        self.register_buffer("bank_index", torch.full((rows,), -1, dtype=torch.int64))
        self.register_buffer("table", torch.full((heads, context.dataset_size), IGNORED, dtype=torch.int64))
        self.labelled_step: Tensor
        self.register_buffer("labelled_step", torch.full((), -1, dtype=torch.int64))
        self.register_buffer("evenness", torch.zeros(()))
        self.register_buffer("agreement", torch.zeros(()))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def label(self, head: int, rows: Tensor, progress: Progress) -> Tensor:
        """Labels ``[n]`` int64 in 0..K_head-1 of this process's bank rows ``[n, D]``; called by all processes."""
        raise NotImplementedError

    def scores(self, output: ModelOutput) -> Sequence[Tensor]:
        """``[V * b, K_h]`` of each head; divided by the temperature they are the logits."""
        raise NotImplementedError

    def trivial_value(self) -> float:
        """ln K, averaged over heads."""
        return sum(math.log(count) for count in self.num_prototypes) / len(self.num_prototypes)

    def advice(self) -> list[str]:
        """Few images per cluster, many images without a label, banks that no head uses, a single clustering."""
        context, remarks = self.context, []
        rows = context.rows_per_rank * context.world_size
        largest = max(self.num_prototypes)
        if largest * FEW_IMAGES_PER_CLUSTER > rows:
            remarks.append(
                f"{largest} prototypes for the {rows} images of an epoch are {rows / largest:.1f} images each: labels "
                "tell images apart rather than kinds of image. Use fewer prototypes (about 10 times the kinds expected)"
            )
        unseen = 1 - rows / context.dataset_size
        if unseen > LARGE_SHARE_WITHOUT_LABEL:
            remarks.append(
                f"each epoch leaves out {100 * unseen:.0f} % of the images (what does not fill a batch of "
                f"{context.global_batch}), and in the next epoch these have no label. Use a smaller global batch"
            )
        if len(self.num_prototypes) < len(self.assign_views):
            unused = self.assign_views[len(self.num_prototypes) :]
            remarks.append(
                f"LOSS.assign_views names {len(self.assign_views)} views for {len(self.num_prototypes)} head(s): the "
                f"embeddings of view(s) {', '.join(map(str, unused))} are kept but never used"
            )
        if context.total_steps <= context.steps_per_epoch:
            remarks.append("the run is one epoch long: its only labels come from the network before training")
        return remarks

    @torch.no_grad()
    def before_epoch(self, source: FeatureSource, progress: Progress) -> None:
        """Labels every image in the bank anew, after filling the bank if nothing was trained yet."""
        if int(self.labelled_step) == progress.step:
            return  # a run that was stopped here has the labels of this epoch already
        if progress.step == 0:
            self._fill(source)
        assert int(self.bank_index.min()) >= 0
        labels = [
            self.label(head, self.bank[head % len(self.assign_views)], progress)
            for head in range(len(self.num_prototypes))
        ]
        everyone = comm.all_gather(torch.stack(labels, dim=1)).t()
        index = comm.all_gather(self.bank_index).expand_as(everyone)
        # After a skipped update an image can lie in two slots; the higher label holds, wherever the slots are.
        table = torch.full_like(self.table, IGNORED).scatter_reduce(1, index, everyone, "amax")
        self._describe(table)
        self.table.copy_(table)
        self.labelled_step.fill_(progress.step)

    def forward(self, output: ModelOutput, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Mean over heads of the cross-entropy of all views, averaged over the labelled images of all processes.

        Returns:
            ``loss``; ``cluster_evenness``, entropy of the cluster sizes over ln K (1 = equal sizes);
            ``label_agreement``, normalised mutual information of these labels and the last epoch's (1 = the same
            partition, 0 in the first epoch); ``ignored``, share of images without a label. The middle two stay the same
            throughout an epoch.
        """
        index = batch.index.to(self.table.device)
        self._pending.append((index, self._kept([output.view(output.head.embedding, v) for v in self.assign_views])))
        targets = self.table[:, index]
        labelled = (targets[0] != IGNORED).sum()
        # The mean over the labelled images of all processes, as one process would take it; gradients are averaged.
        scale = comm.world_size() / (comm.all_reduce(labelled) * output.num_views).clamp_min(1)
        sums = [
            cross_entropy(
                scores.float() / self.temperature,
                target.repeat(output.num_views),
                ignore_index=IGNORED,
                reduction="sum",
            )
            for scores, target in zip(self.scores(output), targets, strict=True)
        ]
        return {
            "loss": torch.stack(sums).mean() * scale,
            "cluster_evenness": self.evenness.clone(),
            "label_agreement": self.agreement.clone(),
            "ignored": 1 - labelled / index.shape[0],
        }

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        """Overwrites this step's slots with what the update was computed from, micro-batch by micro-batch."""
        slot = progress.step % self.context.steps_per_epoch * (self.context.global_batch // self.context.world_size)
        for index, embeddings in self._pending:
            slot = self._write(slot, index, embeddings)
        self._pending.clear()

    def forget_pending(self) -> None:
        """A skipped update leaves its slots as they were."""
        self._pending.clear()

    def _fill(self, source: FeatureSource) -> None:
        slot = 0
        for batch, outputs in source.one_pass(self.assign_views):
            self.look_at_first_pass(outputs[0])
            kept = self._kept([output.head.embedding for output in outputs])
            slot = self._write(slot, batch.index.to(self.bank_index.device), kept)
        assert slot == self.bank_index.shape[0], (slot, self.bank_index.shape[0])

    def look_at_first_pass(self, output: ModelOutput) -> None:
        """Called with each micro-batch's first output while the bank is filled."""

    @staticmethod
    def _kept(embeddings: list[Tensor]) -> Tensor:
        """``[assign views, b, D]`` of unit length, without gradient."""
        return normalize(torch.stack([embedding.detach().float() for embedding in embeddings]), dim=2)

    def _write(self, slot: int, index: Tensor, embeddings: Tensor) -> int:
        """Writes rows from ``slot`` on; returns the slot behind them."""
        end = slot + index.shape[0]
        self.bank[:, slot:end] = embeddings
        self.bank_index[slot:end] = index
        return end

    def _describe(self, table: Tensor) -> None:
        """Evenness of the new labels, and their agreement with the old ones, means over heads."""
        even, agreement = [], []
        for labels, before, count in zip(table, self.table, self.num_prototypes, strict=True):
            even.append(evenness(torch.bincount(labels[labels != IGNORED], minlength=count)))
            both = (labels != IGNORED) & (before != IGNORED)
            agreement.append(mutual_information(labels[both], before[both]))
        self.evenness.copy_(torch.stack(even).mean())
        self.agreement.copy_(torch.stack(agreement).mean())

    def _refuse_too_many_prototypes(self) -> None:
        context = self.context
        rows = context.rows_per_rank * context.world_size
        if max(self.num_prototypes) > rows:
            raise UserError(
                f"{max(self.num_prototypes)} prototypes are asked for, but an epoch has only {rows} images to cluster: "
                f"use at most {rows // FEW_IMAGES_PER_CLUSTER or 1} (some {FEW_IMAGES_PER_CLUSTER} images each), or "
                "more images"
            )
