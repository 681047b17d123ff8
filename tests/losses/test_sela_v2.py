"""SeLa-v2: the whole loop against a plain float64 transcription, balance of the labels, one and two processes."""

import copy
import math

import pytest
import torch
from processes import run_in_processes
from small_bank_run import (
    GLOBAL_BATCH,
    IMAGES,
    ROWS,
    STEPS_PER_EPOCH,
    VIEWS,
    context_of,
    micro_batches,
    order_of,
    sgd,
    tiny_model,
    train,
    views_of,
)
from torch import nn
from torch.nn.functional import normalize

from vissl_like.losses.base import LossContext
from vissl_like.losses.sela_v2 import SeLaV2Loss
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.records import Batch, HeadOutput, ModelOutput, Progress
from vissl_like.utils.errors import UserError

COUNTS, STEPS = (4, 3), 4 * STEPS_PER_EPOCH
EPSILON, ROUNDS = 0.05, 5


def build(world_size=1, accumulation=1, batch_norm=False):
    model = tiny_model(*COUNTS, batch_norm=batch_norm)
    context = context_of(world_size, accumulation, COUNTS)
    return model, SeLaV2Loss(context, epsilon=EPSILON, sinkhorn_iterations=ROUNDS)


def plain_labels(rows, prototypes, mistake):
    """Sinkhorn in the published order (K x N, total mass 1, rows to 1/K, columns to 1/N), then the largest."""
    scores = torch.stack(rows) @ prototypes.t()
    if mistake == "labels without balancing":
        return scores.argmax(1).tolist()
    q = torch.exp(scores / EPSILON).t()
    q = q / q.sum()
    for _ in range(ROUNDS):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return q.argmax(0).tolist()


def plain_training(model, steps, mistake=None, lr=0.5):
    """Bank of two crops, labels every epoch from the prototypes of the newest step, SGD with momentum; in float64."""
    model = model.double()
    memory, memory_index = [[None] * ROWS, [None] * ROWS], order_of(0)[:ROWS].tolist()
    velocity = {name: None for name, _ in model.named_parameters()}
    embed = lambda views: normalize(  # noqa: E731
        model.head.layer(torch.cat([model.trunk(view.double()) for view in views])), dim=1
    )
    weights = [layer.weight for layer in model.head.prototypes]
    losses = []
    with torch.no_grad():
        for crop in (0, 1):
            memory[crop] = list(embed([views_of(0, order_of(0)[:ROWS])[crop]]))
    used = [normalize(weight.detach(), dim=1) for weight in weights]
    for step in range(steps):
        epoch, place = divmod(step, STEPS_PER_EPOCH)
        if place == 0:
            if mistake == "prototypes of the start":
                used = [normalize(p.weight.double(), dim=1) for p in tiny_model(*COUNTS).head.prototypes]
            if mistake == "updated prototypes":
                used = [weight.detach().clone() for weight in weights]
            table = [[-100] * IMAGES for _ in COUNTS]
            for head, prototypes in enumerate(used):
                bank = memory[0 if mistake == "first bank for all heads" else head % 2]
                for slot, label in enumerate(plain_labels(bank, prototypes, mistake)):
                    table[head][memory_index[slot]] = label
        with torch.no_grad():
            for weight in weights:
                weight.copy_(normalize(weight, dim=1))
        used = [weight.detach().clone() for weight in weights]
        index = order_of(epoch)[place * GLOBAL_BATCH : (place + 1) * GLOBAL_BATCH]
        z = embed(views_of(epoch, index))
        loss = 0
        for head, weight in enumerate(weights):
            log_p = torch.log_softmax(z @ weight.t() / 0.1, dim=1)
            targets = [table[head][int(index[row % GLOBAL_BATCH])] for row in range(VIEWS * GLOBAL_BATCH)]
            terms = [-log_p[row, target] for row, target in enumerate(targets) if target != -100]
            loss = loss + sum(terms) / len(terms) / len(COUNTS)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(model.named_parameters(), gradients):
                velocity[name] = gradient if velocity[name] is None else 0.9 * velocity[name] + gradient
                if name.startswith("head.prototypes") and mistake == "prototypes not learnt":
                    continue
                parameter -= lr * velocity[name]
        for row, image in enumerate(index.tolist()):
            memory_index[place * GLOBAL_BATCH + row] = image
            for crop in (0, 1):
                memory[crop][place * GLOBAL_BATCH + row] = z[crop * GLOBAL_BATCH + row].detach()
    return losses, model, table, used


def test_whole_loop_equals_the_plain_one():
    model, loss = build()
    reference = copy.deepcopy(model)
    record = train(model, loss, sgd(model), range(STEPS))
    losses, trained, table, used = plain_training(reference, STEPS)
    ours = torch.tensor([float(parts["loss"]) for parts, _, _ in record])
    torch.testing.assert_close(ours, torch.tensor(losses), rtol=1e-5, atol=1e-6)
    for (name, mine), (_, other) in zip(model.named_parameters(), trained.named_parameters()):
        torch.testing.assert_close(mine, other.float(), rtol=1e-4, atol=1e-5, msg=name)
    assert loss.table.tolist() == table
    for head, prototypes in enumerate(used):
        torch.testing.assert_close(loss.get_buffer(f"prototypes_{head}"), prototypes.float(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def our_losses():
    model, loss = build()
    return torch.tensor([float(parts["loss"]) for parts, _, _ in train(model, loss, sgd(model), range(STEPS))])


@pytest.mark.parametrize(
    "mistake",
    [
        "labels without balancing",
        "prototypes of the start",
        "updated prototypes",
        "first bank for all heads",
        "prototypes not learnt",
    ],
)
def test_the_comparison_notices_mistakes(mistake, our_losses):
    theirs = plain_training(build()[0], STEPS, mistake)[0]
    assert (our_losses - torch.tensor(theirs)).abs().max() > 1e-3


class Given:
    """A source of embeddings drawn from ten groups of very different size, as if a network had made them."""

    def __init__(self, images, prototypes):
        self.images, self.prototypes = images, prototypes

    def one_pass(self, views):
        generator = torch.Generator().manual_seed(0)
        groups = torch.multinomial(torch.arange(1.0, 11), self.images, True, generator=generator)
        z = torch.randn(10, 32, generator=generator)[groups] + 0.4 * torch.randn(self.images, 32, generator=generator)
        rows = HeadOutput(normalize(z, dim=1), prototypes=(self.prototypes,))
        index = torch.arange(self.images)
        yield Batch(views=[], index=index), [ModelOutput(1, z, rows) for _ in views]


def test_labels_are_nearly_equal_in_number():
    images, count = 3000, 50
    prototypes = normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    loss = SeLaV2Loss(LossContext(2, 32, (count,), images, images, 1, images))
    source = Given(images, prototypes)
    loss.before_epoch(source, Progress(0, 10, 1))
    sizes = torch.bincount(loss.table[0], minlength=count)
    assert int(sizes.min()) >= 35 and int(sizes.max()) <= 90  # 60 each if exactly equal
    assert float(loss.evenness) > 0.995
    ((_, outputs),) = source.one_pass([0])
    nearest = torch.bincount((outputs[0].head.embedding @ prototypes.t()).argmax(1), minlength=count)
    assert int(nearest.min()) == 0 and int(nearest.max()) > 240  # what plain nearest prototypes would give


def test_accumulation_equals_one_big_batch():
    records = []
    for accumulation in (1, 2):
        model, loss = build(accumulation=accumulation)
        records.append(train(model, loss, sgd(model), range(STEPS_PER_EPOCH), accumulation=accumulation))
    for (parts, gradients, buffers), (big_parts, big_gradients, big_buffers) in zip(records[1], records[0]):
        torch.testing.assert_close(parts["loss"], big_parts["loss"])
        torch.testing.assert_close(gradients, big_gradients, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(buffers, big_buffers)


def test_a_skipped_update_leaves_bank_and_prototypes_alone():
    model, loss = build()
    record = train(model, loss, sgd(model), range(3), skipped=(1,))
    for name in ("bank", "bank_index", "prototypes_0", "prototypes_1"):
        before, skipped, after = (buffers[name] for _, _, buffers in record)
        assert torch.equal(before, skipped) and (name == "bank_index" or not torch.equal(skipped, after))


def test_save_and_restore_inside_an_epoch_go_on_identically():
    model, loss = build()
    optimizer = sgd(model)
    train(model, loss, optimizer, range(4))
    other_model, other_loss = copy.deepcopy(model), build()[1]
    other_optimizer = sgd(other_model)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_loss.load_state_dict(copy.deepcopy(loss.state_dict()))
    ours = train(model, loss, optimizer, range(4, STEPS))
    theirs = train(other_model, other_loss, other_optimizer, range(4, STEPS))
    for (parts, gradients, buffers), (other_parts, other_gradients, other_buffers) in zip(ours, theirs):
        assert all(torch.equal(parts[name], other_parts[name]) for name in parts)
        assert all(map(torch.equal, gradients, other_gradients))
        assert all(torch.equal(buffers[name], other_buffers[name]) for name in buffers)


def test_trivial_value_is_the_mean_of_the_heads():
    model, loss = build()
    loss.table.zero_()
    for prototypes in model.head.prototypes:
        nn.init.zeros_(prototypes.weight)
    batch = next(micro_batches(0))
    value = loss(model(batch.views), batch, Progress(0, STEPS, STEPS_PER_EPOCH))["loss"]
    assert float(value.detach()) == pytest.approx((math.log(4) + math.log(3)) / 2, rel=1e-5)
    assert loss.trivial_value() == pytest.approx((math.log(4) + math.log(3)) / 2)


def test_more_prototypes_than_images_are_refused():
    with pytest.raises(UserError, match="13 prototypes are asked for, but an epoch has only 12 images"):
        SeLaV2Loss(context_of(num_prototypes=(4, 13)))


def _two_processes(rank, world_size):
    model, loss = build(world_size, batch_norm=True)
    model = synchronise_batch_norm(model, "cpu")
    wrapped = nn.parallel.DistributedDataParallel(model)
    return train(model, loss, sgd(model), range(STEPS_PER_EPOCH + 2), rank, world_size, wrapped=wrapped)


def test_two_processes_equal_one():
    results = run_in_processes(_two_processes, 2)
    model, loss = build(batch_norm=True)
    record = train(model, loss, sgd(model), range(STEPS_PER_EPOCH + 2))
    for step, (parts, gradients, buffers) in enumerate(record):
        (first, first_gradients, own), (second, second_gradients, others) = (result[step] for result in results)
        for name in parts:
            torch.testing.assert_close((first[name] + second[name]) / 2, parts[name], rtol=1e-5, atol=1e-6)
        for mine, other, expected in zip(first_gradients, second_gradients, gradients):
            torch.testing.assert_close(mine, other)
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(own["table"], buffers["table"]) and torch.equal(others["table"], buffers["table"])
        for name in ("prototypes_0", "prototypes_1"):
            torch.testing.assert_close(own[name], buffers[name], rtol=1e-5, atol=1e-5)
