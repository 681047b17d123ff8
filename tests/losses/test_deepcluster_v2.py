"""DeepCluster-v2's whole loop against a plain float64 transcription, over several epochs, in one and two processes."""

import copy
import math

import numpy as np
import pytest
import torch
from processes import run_in_processes
from small_bank_run import (
    GLOBAL_BATCH,
    IMAGES,
    ROWS,
    SEED,
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

from vissl_like.losses.deepcluster_v2 import DeepClusterV2Loss
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.records import Progress

CLUSTERS, HEADS, ITERATIONS, STEPS = 4, 3, 2, 4 * STEPS_PER_EPOCH
FIRST = Progress(0, STEPS, STEPS_PER_EPOCH)


def build(world_size=1, accumulation=1, batch_norm=False, **options):
    model = tiny_model(batch_norm=batch_norm)
    given = {"heads": HEADS, "num_prototypes": CLUSTERS, "iterations": ITERATIONS, **options}
    return model, DeepClusterV2Loss(context_of(world_size, accumulation), **given)


def plain_kmeans(rows, indices, epoch, head, mistake):
    """Random start (the random order of images is part of what is given), assignment, mean, length 1; row by row."""
    order = np.random.Generator(np.random.PCG64([SEED, epoch, head])).permutation(IMAGES)
    first = sorted(range(len(rows)), key=lambda row: order[indices[row]])[:CLUSTERS]
    centroids = [rows[row] for row in first]
    for iteration in range(ITERATIONS + 1):
        labels = [max(range(CLUSTERS), key=lambda k: float(row @ centroids[k])) for row in rows]
        if iteration == ITERATIONS:
            return torch.stack(centroids), labels
        before = labels
        for k in range(CLUSTERS):
            members = [row for row, label in zip(rows, labels) if label == k]
            if members:
                centroids[k] = sum(members) / len(members)
                if mistake != "centroids not normalised":
                    centroids[k] = centroids[k] / centroids[k].norm()
        if mistake == "no assignment after the last iteration" and iteration == ITERATIONS - 1:
            return torch.stack(centroids), before


def plain_embeddings(model, views):
    return normalize(model.head.layer(torch.cat([model.trunk(view.double()) for view in views])), dim=1)


def plain_training(model, steps, mistake=None, lr=0.5):
    """The official loop written out in float64: bank of two crops, k-means every epoch, SGD with momentum."""
    model = model.double()
    memory, memory_index = [[None] * ROWS, [None] * ROWS], [None] * ROWS
    velocity = {name: None for name, _ in model.named_parameters()}
    losses, table, centroids = [], None, None
    with torch.no_grad():  # init_memory
        for slot, index in enumerate(order_of(0)[:ROWS].tolist()):
            views = views_of(0, torch.tensor([index]))
            for crop in (0, 1):
                memory[crop][slot] = plain_embeddings(model, [views[crop]])[0]
            memory_index[slot] = index
    for step in range(steps):
        epoch, place = divmod(step, STEPS_PER_EPOCH)
        if place == 0:  # cluster_memory
            unseen = 0 if mistake == "images left over get label 0" else -100
            table, centroids = [[unseen] * IMAGES for _ in range(HEADS)], []
            crop = 0
            for head in range(HEADS):
                rows = memory[0] if mistake == "first bank for all heads" else memory[crop]
                if mistake == "banks averaged":
                    rows = [normalize(a + b, dim=0) for a, b in zip(*memory)]
                if mistake == "heads in the wrong order":
                    rows = memory[1 - crop]
                found, labels = plain_kmeans(rows, memory_index, epoch, head, mistake)
                for slot, label in enumerate(labels):
                    table[head][slot if mistake == "table by slot" else memory_index[slot]] = label
                centroids.append(found.requires_grad_(mistake == "centroids learn"))
                crop = (crop + 1) % 2
        index = order_of(epoch)[place * GLOBAL_BATCH : (place + 1) * GLOBAL_BATCH]
        views = views_of(epoch, index)
        z = plain_embeddings(model, views)
        used = 2 if mistake == "assign crops only" else VIEWS
        loss = 0
        for head in range(HEADS):
            log_p = torch.log_softmax(z @ centroids[head].t() / 0.1, dim=1)
            terms = []
            for row in range(used * GLOBAL_BATCH):
                target = table[head][int(index[row % GLOBAL_BATCH])]
                if target != -100:
                    terms.append(-log_p[row, target])
            loss = loss + sum(terms) / (used * GLOBAL_BATCH if mistake == "ignored images counted" else len(terms))
        loss = loss if mistake == "sum over heads" else loss / HEADS
        losses.append(float(loss.detach()))
        learnt = [*model.named_parameters(), *((f"c{h}", c) for h, c in enumerate(centroids) if c.requires_grad)]
        gradients = torch.autograd.grad(loss, [tensor for _, tensor in learnt])
        with torch.no_grad():
            for (name, tensor), gradient in zip(learnt, gradients):
                before = velocity.get(name)
                velocity[name] = gradient if before is None else 0.9 * before + gradient
                tensor -= lr * velocity[name]
            if mistake == "bank written with the updated network":
                z = plain_embeddings(model, views)
            if mistake == "bank not updated":
                continue
            begin = place * GLOBAL_BATCH
            for row, image in enumerate(index.tolist()):
                for crop in (0, 1):
                    memory[crop][begin + row] = z[crop * GLOBAL_BATCH + row].detach()
                if mistake != "positions in the dataset not updated":
                    memory_index[begin + row] = image
    return losses, model, memory, memory_index, table, centroids


def test_whole_loop_equals_the_published_one():
    model, loss = build()
    reference = copy.deepcopy(model)
    record = train(model, loss, sgd(model), range(STEPS))
    losses, trained, memory, memory_index, table, centroids = plain_training(reference, STEPS)
    ours = torch.tensor([float(parts["loss"]) for parts, _, _ in record])
    torch.testing.assert_close(ours, torch.tensor(losses), rtol=1e-5, atol=1e-6)
    for (name, mine), (_, other) in zip(model.named_parameters(), trained.named_parameters()):
        torch.testing.assert_close(mine, other.float(), rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(loss.bank, torch.stack([torch.stack(rows) for rows in memory]).float())
    torch.testing.assert_close(loss.centroids, torch.stack(centroids).float(), rtol=1e-5, atol=1e-5)
    assert loss.bank_index.tolist() == memory_index and loss.table.tolist() == table
    assert sum(float(parts["ignored"]) > 0 for parts, _, _ in record) == 3  # the case is in the data, in later epochs
    assert sum(row.count(-100) for row in table) == HEADS  # the one image left out, in each head


MISTAKES = [
    "banks averaged",
    "bank not updated",
    "positions in the dataset not updated",
    "bank written with the updated network",
    "centroids not normalised",
    "centroids learn",
    "no assignment after the last iteration",
    "first bank for all heads",
    "heads in the wrong order",
    "table by slot",
    "assign crops only",
    "sum over heads",
    "images left over get label 0",
    "ignored images counted",
]


@pytest.fixture(scope="module")
def our_losses():
    model, loss = build()
    return torch.tensor([float(parts["loss"]) for parts, _, _ in train(model, loss, sgd(model), range(STEPS))])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_notices_mistakes(mistake, our_losses):
    theirs = plain_training(build()[0], STEPS, mistake)[0]
    assert (our_losses - torch.tensor(theirs)).abs().max() > 1e-3


def test_accumulation_equals_one_big_batch():
    records = []
    for accumulation in (1, 2):
        model, loss = build(accumulation=accumulation)
        records.append(train(model, loss, sgd(model), range(STEPS_PER_EPOCH), accumulation=accumulation))
    for (parts, gradients, buffers), (big_parts, big_gradients, big_buffers) in zip(records[1], records[0]):
        torch.testing.assert_close(parts["loss"], big_parts["loss"])
        torch.testing.assert_close(gradients, big_gradients, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(buffers, big_buffers)


def test_save_and_restore_inside_an_epoch_go_on_identically():
    model, loss = build()
    optimizer = sgd(model)
    train(model, loss, optimizer, range(4))
    other_model, other_loss = (
        copy.deepcopy(model),
        DeepClusterV2Loss(context_of(), heads=HEADS, num_prototypes=CLUSTERS, iterations=ITERATIONS),
    )
    other_optimizer = sgd(other_model)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_loss.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert set(loss.per_rank_buffers) <= set(loss.state_dict())
    ours = train(model, loss, optimizer, range(4, STEPS))
    theirs = train(other_model, other_loss, other_optimizer, range(4, STEPS))
    for (parts, gradients, buffers), (other_parts, other_gradients, other_buffers) in zip(ours, theirs):
        assert all(torch.equal(parts[name], other_parts[name]) for name in parts)
        assert all(map(torch.equal, gradients, other_gradients))
        assert all(torch.equal(buffers[name], other_buffers[name]) for name in buffers)


def test_embeddings_of_any_length_are_brought_to_one():
    model, loss = build()
    train(model, loss, sgd(model), range(1))
    batch = next(micro_batches(1))
    output = model(batch.views)
    expected = loss(output, batch, FIRST)["loss"]
    output.head.embedding = output.head.embedding * 3
    torch.testing.assert_close(loss(output, batch, FIRST)["loss"], expected)
    torch.testing.assert_close(loss._pending[0][1], loss._pending[1][1])


def test_trivial_value_is_what_equal_centroids_give():
    model, loss = build()
    loss.table.zero_()
    batch = next(micro_batches(0))
    value = loss(model(batch.views), batch, FIRST)["loss"]
    assert float(value.detach()) == pytest.approx(math.log(CLUSTERS), rel=1e-5)
    assert loss.trivial_value() == pytest.approx(math.log(CLUSTERS))


def _two_processes(rank, world_size):
    model, loss = build(world_size, batch_norm=True)
    model = synchronise_batch_norm(model, "cpu")
    wrapped = nn.parallel.DistributedDataParallel(model)
    return train(model, loss, sgd(model), range(STEPS_PER_EPOCH + 2), rank, world_size, wrapped=wrapped)


def test_two_processes_equal_one():
    results = run_in_processes(_two_processes, 2)
    model, loss = build(batch_norm=True)
    record = train(model, loss, sgd(model), range(STEPS_PER_EPOCH + 2))
    assert any(float(parts["ignored"]) > 0 for parts, _, _ in record)
    for step, (parts, gradients, buffers) in enumerate(record):
        (first, first_gradients, own), (second, second_gradients, others) = (result[step] for result in results)
        for name in parts:
            torch.testing.assert_close((first[name] + second[name]) / 2, parts[name], rtol=1e-5, atol=1e-6)
        for mine, other, expected in zip(first_gradients, second_gradients, gradients):
            torch.testing.assert_close(mine, other)
            # A bias in front of BatchNorm has no gradient but rounding noise, so the tolerance is absolute there.
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(own["table"], buffers["table"]) and torch.equal(others["table"], buffers["table"])
        torch.testing.assert_close(own["centroids"], buffers["centroids"], rtol=1e-5, atol=1e-5)
        assert torch.equal(own["centroids"], others["centroids"])
        assert sorted(torch.cat([own["bank_index"], others["bank_index"]]).tolist()) == sorted(
            buffers["bank_index"].tolist()
        )
        assert not torch.equal(own["bank_index"], others["bank_index"])
