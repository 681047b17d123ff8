"""Small data for losses with a bank: 13 images, 3 steps of 4 an epoch (one image is left out), 3 views."""

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from vissl_like.losses.base import LossContext
from vissl_like.models.heads.base import Head
from vissl_like.models.ssl_model import SSLModel
from vissl_like.records import Batch, HeadOutput, Progress

IMAGES, GLOBAL_BATCH, STEPS_PER_EPOCH, VIEWS, DIM, SEED = 13, 4, 3, 3, 5, 7
ROWS = STEPS_PER_EPOCH * GLOBAL_BATCH


class TinyTrunk(nn.Module):
    """Four pooled pixels and a linear layer."""

    feature_dim = 8

    def __init__(self, batch_norm=False):
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()

    def forward(self, images):
        return torch.tanh(self.norm(self.layer(adaptive_avg_pool2d(images, 2).flatten(1))))


class TinyHead(Head):
    """Unit-length embedding, and cosines with as many sets of prototypes as asked for."""

    def __init__(self, *num_prototypes):
        super().__init__()
        self.embedding_dim, self.num_prototypes = DIM, num_prototypes
        self.layer = nn.Linear(8, DIM)
        self.prototypes = nn.ModuleList(nn.Linear(DIM, count, bias=False) for count in num_prototypes)

    @torch.no_grad()
    def before_forward(self, progress):
        for prototypes in self.prototypes:
            prototypes.weight.copy_(normalize(prototypes.weight, dim=1))

    def forward(self, features):
        embedding = normalize(self.layer(features), dim=1)
        return HeadOutput(
            embedding, tuple(p(embedding) for p in self.prototypes), tuple(p.weight for p in self.prototypes)
        )


def tiny_model(*num_prototypes, batch_norm=False):
    torch.manual_seed(3)
    return SSLModel(TinyTrunk(batch_norm), TinyHead(*num_prototypes))


def context_of(world_size=1, accumulation=1, num_prototypes=(), **facts):
    given = {
        "num_views": VIEWS,
        "embedding_dim": DIM,
        "num_prototypes": num_prototypes,
        "per_rank_batch": GLOBAL_BATCH // world_size // accumulation,
        "global_batch": GLOBAL_BATCH,
        "world_size": world_size,
        "dataset_size": IMAGES,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "total_steps": 4 * STEPS_PER_EPOCH,
        "seed": SEED,
    }
    return LossContext(**{**given, **facts})


def order_of(epoch):
    return torch.randperm(IMAGES, generator=torch.Generator().manual_seed(100 + epoch))


def views_of(epoch, indices):
    """Views ``[b, 1, size, size]`` of images; every image has its own noise in every epoch and view."""
    views = []
    for view, size in enumerate((6, 6, 4)):
        images = []
        for index in indices.tolist():
            kind = torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(index % 5)) * 1.5
            own = torch.Generator().manual_seed(10_000 * epoch + 100 * index + view)
            images.append(kind.repeat_interleave(size // 2, 1).repeat_interleave(size // 2, 2))
            images[-1] = images[-1] + 0.8 * torch.randn(1, size, size, generator=own)
        views.append(torch.stack(images))
    return views


def micro_batches(step, rank=0, world_size=1, accumulation=1):
    """This process's share of a step, dealt out as the samplers do."""
    epoch, place = divmod(step, STEPS_PER_EPOCH)
    size = GLOBAL_BATCH // world_size // accumulation
    for micro in range(accumulation):
        begin = place * GLOBAL_BATCH + (micro * world_size + rank) * size
        index = order_of(epoch)[begin : begin + size]
        yield Batch(views=views_of(epoch, index), index=index)


class Source:
    """The pass before the first epoch; counts how often it is asked for."""

    def __init__(self, model, *share):
        self.model, self.share, self.passes = model, share, 0

    def one_pass(self, views):
        self.passes += 1
        for step in range(STEPS_PER_EPOCH):
            for batch in micro_batches(step, *self.share):
                with torch.no_grad():
                    yield batch, [self.model([batch.views[view]]) for view in views]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def train(model, loss, optimizer, steps, rank=0, world_size=1, accumulation=1, wrapped=None, skipped=()):
    """Steps of the training loop as the trainer takes them.

    Returns:
        for each step the parts, the gradients of all parameters, and the loss's buffers after it.
    """
    record = []
    share = (rank, world_size, accumulation)
    for step in steps:
        progress = Progress(step, 4 * STEPS_PER_EPOCH, STEPS_PER_EPOCH)
        if step % STEPS_PER_EPOCH == 0:
            loss.before_epoch(Source(model, *share), progress)
        model.head.before_forward(progress)
        optimizer.zero_grad(set_to_none=True)
        sums = {}
        for batch in micro_batches(step, *share):
            parts = loss((wrapped or model)(batch.views), batch, progress)
            (parts["loss"] / accumulation).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() / accumulation
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        if step in skipped:
            loss.forget_pending()
        else:
            optimizer.step()
            loss.after_update(progress)
        record.append((sums, gradients, {name: buffer.clone() for name, buffer in loss.named_buffers()}))
    return record
