"""SwAV's whole update against a plain transcription of the published loop, in one and in two processes."""

import math

import pytest
import torch
from processes import run_in_processes
from torch import nn
from torch.nn.functional import normalize

from vissl_like.losses.base import LossContext
from vissl_like.losses.swav import SwAVLoss
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.models.heads.swav import SwAVHead
from vissl_like.models.ssl_model import SSLModel
from vissl_like.records import Batch, Progress
from vissl_like.utils.errors import UserError

VIEWS, IMAGES, DIM, PROTOTYPES = 4, 6, 8, 5


class TinyTrunk(nn.Module):
    """Two pooled statistics and a linear layer: sees size and content, quick to train."""

    feature_dim = 12

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 12)

    def forward(self, images):
        return torch.tanh(self.layer(torch.cat([images.mean((2, 3)), images.amax((2, 3)), images.std((2, 3))], 1)))


def build(world_size=1, batch_norm=False, queue=0, start="0 steps", freeze="0 steps", **options):
    torch.manual_seed(3)
    head = SwAVHead(
        12, hidden_dim=10, output_dim=DIM, num_prototypes=PROTOTYPES, batch_norm=batch_norm, freeze_prototypes=freeze
    )
    model = SSLModel(TinyTrunk(), head)
    context = LossContext(VIEWS, DIM, (PROTOTYPES,), IMAGES // world_size, IMAGES, world_size, 100)
    return model, SwAVLoss(context, queue_length=queue, queue_start=start, **options)


def views_of(step, images=IMAGES):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(images, 1, size, size, generator=generator) for size in (8, 8, 4, 4)]


def batch(views):
    return Batch(views=views, index=torch.arange(len(views[0])))


def plain_sinkhorn(scores):
    q = torch.exp(scores.double() / 0.05).t()
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


def plain_training(model, steps, queue_rows, freeze_steps, lr=0.5, mistake=None):
    """The official loop written out, with one queue per assign crop and a hand-made SGD with momentum, in float64."""
    model = model.double()
    momentum = {name: None for name, _ in model.named_parameters()}
    queues = [torch.zeros(queue_rows, DIM, dtype=torch.float64) for _ in range(2)]
    losses = []
    for step in range(steps):
        prototypes = model.head.prototypes.weight
        with torch.no_grad():
            if mistake != "prototypes not normalised":
                prototypes.copy_(prototypes / prototypes.norm(dim=1, keepdim=True))
        views = [view.double() for view in views_of(step)]
        features = torch.cat([model.trunk(torch.cat(views[:2])), model.trunk(torch.cat(views[2:]))])
        z = normalize(model.head.projection_head(features), dim=1)
        scores = z @ prototypes.t()
        loss = 0
        for crop in range(2):
            with torch.no_grad():
                own = scores[IMAGES * crop : IMAGES * (crop + 1)].detach()
                current = z[IMAGES * crop : IMAGES * (crop + 1)].detach()
                joined = own
                if mistake == "current batch in the queue":
                    queues[crop] = torch.cat([current, queues[crop]])[:queue_rows]
                if queue_rows and (queues[crop][-1].abs().sum() > 0 or mistake == "queue used before full"):
                    joined = torch.cat([queues[crop] @ prototypes.t(), own])
                if queue_rows and mistake != "current batch in the queue":
                    queues[crop] = torch.cat([current, queues[crop]])[:queue_rows]
                q = plain_sinkhorn(joined)[-IMAGES:]
            sub = 0
            for other in [v for v in range(VIEWS) if v != crop]:
                logits = scores[IMAGES * other : IMAGES * (other + 1)] / 0.1
                sub = sub - (q * torch.log_softmax(logits, 1)).sum(1).mean()
            loss = loss + sub / (VIEWS if mistake == "divisor V" else VIEWS - 1)
        loss = loss / 2
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(model.named_parameters(), gradients):
                frozen = name == "head.prototypes.weight" and step < freeze_steps
                if frozen and mistake != "freeze ignored":
                    continue
                velocity = gradient if momentum[name] is None else 0.9 * momentum[name] + gradient
                momentum[name] = velocity
                parameter -= lr * velocity
    return losses, model


def our_training(model, loss, steps, lr=0.5):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for step in range(steps):
        progress = Progress(step, steps, 2)
        model.head.before_forward(progress)
        views = views_of(step)
        parts = loss(model(views), batch(views), progress)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        model.head.before_update(progress)
        optimizer.step()
        loss.after_update(progress)
        losses.append(float(parts["loss"].detach()))
    return losses


@pytest.mark.parametrize(("queue", "freeze"), [(0, 0), (2 * IMAGES, 0), (2 * IMAGES, 3), (0, 2)])
def test_whole_loop_equals_the_published_one(queue, freeze):
    model, loss = build(queue=queue, freeze=f"{freeze} steps")
    reference, _ = build()
    ours = our_training(model, loss, 8)
    theirs, trained = plain_training(reference, 8, queue, freeze)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-6)
    for (name, mine), (_, other) in zip(model.named_parameters(), trained.named_parameters()):
        torch.testing.assert_close(mine, other.float(), rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    "mistake",
    [
        "prototypes not normalised",
        "current batch in the queue",
        "queue used before full",
        "divisor V",
        "freeze ignored",
    ],
)
def test_the_comparison_notices_mistakes(mistake):
    model, loss = build(queue=2 * IMAGES, freeze="3 steps")
    reference, _ = build()
    ours = our_training(model, loss, 8)
    theirs, _ = plain_training(reference, 8, 2 * IMAGES, 3, mistake=mistake)
    assert (torch.tensor(ours) - torch.tensor(theirs)).abs().max() > 1e-4


def test_frozen_prototypes_have_no_gradient_at_all():
    model, loss = build(freeze="2 steps")
    views = views_of(0)
    loss(model(views), batch(views), Progress(0, 4, 2))["loss"].backward()
    model.head.before_update(Progress(1, 4, 2))
    assert model.head.prototypes.weight.grad is None
    assert model.head.projection_head[0].weight.grad is not None


def test_a_skipped_update_leaves_the_queue_alone():
    model, loss = build(queue=IMAGES)
    views = views_of(0)
    loss(model(views), batch(views), Progress(0, 4, 2))
    loss.forget_pending()
    loss.after_update(Progress(0, 4, 2))
    assert int(loss.queue_rows) == 0 and not loss.queue.any()


def test_queue_starts_when_told_and_holds_the_newest_first():
    model, loss = build(queue=2 * IMAGES, start="1 epochs")
    for step in range(4):
        progress, views = Progress(step, 8, 2), views_of(step)
        output = model(views)
        loss(output, batch(views), progress)
        loss.after_update(progress)
        assert int(loss.queue_rows) == min(2 * IMAGES, max(0, step - 1) * IMAGES)
    torch.testing.assert_close(loss.queue[0, :IMAGES], output.head.embedding[:IMAGES].detach())


def test_trivial_value_is_what_uniform_outputs_give():
    model, loss = build()
    assert loss.trivial_value() == pytest.approx(math.log(PROTOTYPES))
    nn.init.zeros_(model.head.projection_head[3].weight)
    nn.init.zeros_(model.head.projection_head[3].bias)
    views = views_of(0)
    parts = loss(model(views), batch(views), Progress(0, 4, 2))
    assert float(parts["loss"].detach()) == pytest.approx(math.log(PROTOTYPES), abs=1e-5)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="less than the global batch"):
        build(queue=IMAGES - 1)
    with pytest.raises(UserError, match=r"assign_views is \[0, 4\]"):
        build(assign_views=[0, 4])


def test_advice_on_ratios():
    context = LossContext(4, 8, (500,), 16, 16, 1, 100)
    assert "500 prototypes are balanced over only 16" in SwAVLoss(context).advice()[0]
    assert "more than half of the 100 images" in SwAVLoss(context, queue_length=64).advice()[-1]


def _two_process_gradients(rank, world_size, queue):
    model, loss = build(world_size, batch_norm=True, queue=queue)
    model = synchronise_batch_norm(model, "cpu")
    wrapped = nn.parallel.DistributedDataParallel(model)
    return _three_steps(model, wrapped, loss, lambda views: [view.chunk(world_size)[rank] for view in views])


def _three_steps(model, wrapped, loss, part):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    record = []
    for step in range(4):
        progress = Progress(step, 4, 2)
        model.head.before_forward(progress)
        views = part(views_of(step))
        value = loss(wrapped(views), batch(views), progress)["loss"]
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        record.append((value.detach().clone(), [p.grad.clone() for p in model.parameters()]))
        optimizer.step()
        loss.after_update(progress)
    return record, [buffer.clone() for buffer in model.buffers()]


@pytest.mark.parametrize("queue", [0, 2 * IMAGES])
def test_two_processes_equal_one_in_loss_gradient_and_statistics(queue):
    results = run_in_processes(_two_process_gradients, 2, queue)
    model, loss = build(batch_norm=True, queue=queue)
    record, buffers = _three_steps(model, model, loss, lambda views: views)
    for step, (value, gradients) in enumerate(record):
        mean = (results[0][0][step][0] + results[1][0][step][0]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
        for first, second, expected in zip(results[0][0][step][1], results[1][0][step][1], gradients):
            torch.testing.assert_close(first, second)
            # A bias in front of BatchNorm has no gradient but rounding noise, so the tolerance is absolute there.
            torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    for mine, expected in zip(results[0][1], buffers):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
