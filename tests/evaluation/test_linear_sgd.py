import json

import numpy as np
import pytest
import torch
from tiny_data import ArrayDataset, random_images
from torch import nn

from vissl_like.evaluation import linear_sgd
from vissl_like.evaluation.base import Features, stratified_split
from vissl_like.evaluation.bench import Bench, Probe
from vissl_like.evaluation.linear_sgd import LinearSgdEvaluation, train_classifiers, transformer_encoding
from vissl_like.evaluation.subjects import Look, Protocol, Source, network_subject
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.utils.errors import UserError

RATES = [0.01, 0.3, 5.0]


def blobs(count, width=12, classes=3, seed=0, spread=1.5, labels=None):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.arange(count) % classes if labels is None else np.asarray(labels)
    rows = centres[labels] + spread * generator.normal(size=(count, width))
    return Features(torch.tensor(rows, dtype=torch.float32), torch.tensor(labels), torch.arange(count))


def by_torch(features, labels, rate, classes, epochs, batch, decay, seed):
    """One classifier by autograd, torch's SGD and torch's cosine, on the batches that the seed gives."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(features.shape[1], classes, generator=generator).t())
        layer.bias.zero_()
    layer.double()
    optimizer = torch.optim.SGD(layer.parameters(), rate, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(labels), batch):
            chosen = order[start : start + batch]
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[chosen].double()), labels[chosen]).backward()
            optimizer.step()
        schedule.step()
    return layer


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_every_rate_trains_as_torch_would_alone(decay):
    data = blobs(50)
    found = train_classifiers(
        data.features,
        data.labels,
        rates=[0.01, 0.3],
        num_classes=3,
        epochs=4,
        batch_size=16,  # the last batch of an epoch has 2
        weight_decay=decay,
        seed=5,
        device=torch.device("cpu"),
    )
    for position, rate in enumerate([0.01, 0.3]):
        layer = by_torch(data.features, data.labels, rate, 3, 4, 16, decay, 5)
        torch.testing.assert_close(found.weight[position].double(), layer.weight.t(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bias[position].double(), layer.bias, rtol=1e-4, atol=1e-5)
    rows = blobs(5, seed=3).features
    torch.testing.assert_close(found.scores(rows)[1].double(), layer(rows.double()), rtol=1e-4, atol=1e-4)


def test_the_rate_is_chosen_on_held_out_training_images(monkeypatch):
    monkeypatch.setattr(linear_sgd, "SCORE_ROWS", 7)  # several stretches, the last one shorter
    train, test = blobs(90, spread=3.0), blobs(60, seed=1, spread=3.0)
    evaluation = LinearSgdEvaluation(rates=RATES, epochs=5, batch_size=16, seed=2)
    result = evaluation(train, test, 3)
    kept, held, _ = stratified_split(train.labels, 0.2, 2)
    ranks = []
    for rate, trial in zip(RATES, result.details["trials"], strict=True):
        layer = by_torch(train.features[kept], train.labels[kept], rate, 3, 5, 16, 0.0, 2)
        scores = layer(train.features[held].double()).detach()
        accuracy = 100 * float((scores.argmax(1) == train.labels[held]).double().mean())
        loss = float(nn.functional.cross_entropy(scores, train.labels[held]))
        assert trial["accuracy"] == pytest.approx(accuracy) and trial["log_loss"] == pytest.approx(loss, rel=1e-2)
        ranks.append((-accuracy, loss, rate))
    assert result.details["rate"] == min(ranks)[2]
    final = by_torch(train.features, train.labels, min(ranks)[2], 3, 5, 16, 0.0, 2)
    answers = final(test.features.double()).argmax(1)
    assert (answers == result.predictions).double().mean() > 0.97
    assert result.metrics["top1"] == pytest.approx(100 * float((answers == test.labels).double().mean()), abs=2)
    turned = evaluation(train, Features(test.features, (test.labels + 1) % 3, test.indices), 3)
    assert turned.details["trials"] == result.details["trials"]
    assert torch.equal(turned.predictions, result.predictions)
    json.dumps(result.details)


def test_a_rate_that_diverges_is_left_out():
    train = blobs(60)
    train.features *= 1e18
    result = LinearSgdEvaluation(rates=[1e-36, 1e20], epochs=3)(train, blobs(9), 3)
    assert result.details["rate"] == 1e-36 and result.details["trials"][1]["accuracy"] is None
    with pytest.raises(UserError, match="diverged at every learning rate"):
        LinearSgdEvaluation(rates=[1e19, 1e20], epochs=3)(train, blobs(9), 3)
    with pytest.raises(UserError, match=r"diverged at the learning rate 1e\+20"):
        LinearSgdEvaluation(rates=[1e20], epochs=3)(train, blobs(9), 3)


def test_remarks():
    train = blobs(31, classes=4, labels=[*([0, 1, 2] * 10), 3], spread=0.1)
    notices = LinearSgdEvaluation(rates=[1e-6, 1e-5], epochs=2)(train, blobs(4, classes=4), 4).details["notices"]
    assert notices[0] == "1 class(es) with a single training image have no part in the choice of the rate"
    assert "at the end of EVALUATION.rates" in notices[1]
    assert LinearSgdEvaluation(rates=[0.1], epochs=2)(blobs(3), blobs(3), 3).details["trials"] == []


class Tokens(nn.Module):
    """A transformer of two blocks whose tokens are given: ``[n, 3, 2]`` after each."""

    def __init__(self):
        super().__init__()
        first = torch.tensor([[[1.0, 2.0], [10.0, 20.0], [30.0, 40.0]]])
        self.layers = [first, first + 100]

    def intermediate_layers(self, images, count):
        return self.layers[-count:]


def test_what_is_taken_of_a_transformer():
    images, trunk = torch.zeros(1, 3, 8, 8), Tokens()
    assert transformer_encoding(1, False).encode is None
    assert transformer_encoding(2, False).encode(trunk, images).tolist() == [[1, 2, 101, 102]]
    # class token 101, 102 and mean patch token 120, 130 in turn
    assert transformer_encoding(1, True).encode(trunk, images).tolist() == [[101, 120, 102, 130]]
    assert len({transformer_encoding(b, a).name for b, a in [(1, False), (2, False), (3, False), (1, True)]}) == 4


def bench(trunk, images=18):
    labels = np.arange(images) % 2
    pixels = random_images(images, 16, channels=3) // 2 + 100 * labels[:, None, None, None].astype(np.uint8)
    source = Source(ArrayDataset(pixels.astype(np.uint8), labels, mean=[0.5] * 3, std=[0.25] * 3))
    protocol = Protocol(image_size=16)
    return Bench(network_subject("net", "net", trunk, protocol), protocol, Look(3, (0.5,) * 3, (0.25,) * 3),
                 Probe(source, source, 2))  # fmt: skip


def test_blocks_of_a_network(monkeypatch):
    torch.manual_seed(0)
    trunk = VisionTransformer(3, size="tiny", depth=2, patch_size=8, image_size=16)
    seen = {}
    original = LinearSgdEvaluation.__call__

    def note(self, train, test, num_classes):
        seen[self.encoding.name] = train.features
        return original(self, train, test, num_classes)

    monkeypatch.setattr(LinearSgdEvaluation, "__call__", note)
    for options in ({}, {"blocks": 2}, {"average_pool": True}):
        result = LinearSgdEvaluation(rates=[0.01], epochs=2, **options).run(bench(trunk))
        assert result.items.mean() == pytest.approx(result.metrics["top1"]) and result.chance.metrics["top1"] == 50.0
    output, blocks, pooled = seen.values()
    assert output.shape == (18, 192) and blocks.shape == pooled.shape == (18, 384)
    torch.testing.assert_close(blocks[:, 192:], output)  # the last block is the output
    torch.testing.assert_close(pooled[:, ::2], output)
    assert not torch.allclose(pooled[:, 1::2], output, atol=1e-2)


def test_networks_without_blocks():
    trunk = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="Sequential has no blocks with class tokens"):
        LinearSgdEvaluation(blocks=4).run(bench(trunk))
    assert LinearSgdEvaluation(rates=[1.0], epochs=20).run(bench(trunk)).metrics["top1"] == 100.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": []}, "rates is empty"),
        ({"split": 0.0}, r"split is 0\.0"),
        ({"blocks": 4, "average_pool": True}, "average_pool goes with one block"),
    ],
)
def test_senseless_options(options, message):
    with pytest.raises(UserError, match=message):
        LinearSgdEvaluation(**options)


def test_senseless_data():
    with pytest.raises(UserError, match="one class only"):
        LinearSgdEvaluation()(blobs(9, labels=[1] * 9), blobs(3), 3)
    with pytest.raises(UserError, match="none can be held out to choose the learning rate"):
        LinearSgdEvaluation()(blobs(3), blobs(3), 3)
