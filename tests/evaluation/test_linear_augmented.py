"""Linear classifiers on augmented images: by hand, stopped and resumed, in two processes as in one."""

import json

import pytest
import torch
from processes import run_in_processes
from tiny_training import bench_of, images_of, normalised, trunk
from torch import nn

from vissl_like.evaluation import linear_augmented
from vissl_like.evaluation.base import stratified_split
from vissl_like.evaluation.linear_augmented import BankObjective, ClassifierBank, LinearAugmentedEvaluation
from vissl_like.evaluation.supervised import Keeper
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.utils.errors import UserError

WHOLE = {"scale": [1.0, 1.0], "flip": 0.0}


def kept_banks(monkeypatch):
    """Banks of classifiers that were trained, in order."""
    found = []
    original = LinearAugmentedEvaluation._train

    def train(self, *arguments):
        bank, facts = original(self, *arguments)
        found.append(bank)
        return bank, facts

    monkeypatch.setattr(LinearAugmentedEvaluation, "_train", train)
    return found


def by_torch(rows, labels, rate, epochs, decay):
    """One classifier by autograd, torch's SGD and torch's cosine, all rows in every step."""
    layer = nn.Linear(rows.shape[1], 3)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(rows.shape[1], 3, generator=torch.Generator().manual_seed(0)).t())
        layer.bias.zero_()
    layer.double()
    optimizer = torch.optim.SGD(layer.parameters(), rate, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(rows), labels).backward()
        optimizer.step()
        schedule.step()
    return layer


def test_every_rate_trains_as_torch_would_alone_and_one_is_chosen(monkeypatch):
    train, test, network = images_of(30), images_of(12, seed=1), trunk(norm=True, dropout=0.5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rates, banks = [0.01, 0.3, 3.0], kept_banks(monkeypatch)
    evaluation = LinearAugmentedEvaluation(rates=rates, epochs=5, batch_size=30, weight_decay=0.01, **WHOLE)
    result = evaluation.run(bench_of(network, train, test))
    assert network.training and all(torch.equal(v, before[name]) for name, v in network.state_dict().items())
    frozen = trunk(norm=True).double().eval()
    with torch.no_grad():
        rows, answers, others = frozen(normalised(train)), torch.tensor(train.labels), frozen(normalised(test))
    kept, held, _ = stratified_split(answers, 0.2, 0)
    ranks = []
    for place, rate in enumerate(rates):
        for position, layer in (
            (place, by_torch(rows[kept], answers[kept], rate, 5, 0.01)),
            (place + 3, by_torch(rows, answers, rate, 5, 0.01)),
        ):
            torch.testing.assert_close(banks[0].weight[position].double(), layer.weight.t(), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(banks[0].bias[position].double(), layer.bias, rtol=1e-3, atol=1e-5)
        judge, final = by_torch(rows[kept], answers[kept], rate, 5, 0.01), by_torch(rows, answers, rate, 5, 0.01)
        scores = judge(rows[held]).detach()
        accuracy = 100 * float((scores.argmax(1) == answers[held]).double().mean())
        loss = float(nn.functional.cross_entropy(scores, answers[held]))
        trial = result.details["trials"][place]
        assert trial["accuracy"] == pytest.approx(accuracy) and trial["log_loss"] == pytest.approx(loss, rel=1e-3)
        reached = 100 * float((final(others).argmax(1) == torch.tensor(test.labels)).double().mean())
        ranks.append((-accuracy, loss, rate, reached, final(others).argmax(1)))
    best = min(ranks, key=lambda rank: rank[:3])
    assert result.details["rate"] == best[2] and result.metrics["top1"] == pytest.approx(best[3])
    assert torch.equal(result.predictions, best[4])
    assert result.details["best_on_test"]["top1"] == pytest.approx(max(rank[3] for rank in ranks))
    assert result.chance.metrics["top1"] == pytest.approx(100 / 3) and result.train_images == 30
    json.dumps(result.details)


def test_one_rate_is_the_published_protocol(monkeypatch):
    banks = kept_banks(monkeypatch)
    made = LinearAugmentedEvaluation(rates=[0.3], epochs=3, batch_size=8)
    result = made.run(bench_of(trunk(), images_of(30), images_of(9, seed=1)))
    assert len(banks[0].weight) == 1 and result.details["trials"] == [] and result.details["rate"] == 0.3
    assert result.details["steps"] == 12  # 8 + 8 + 8 + 6 images
    assert result.details["best_on_test"] == {"rate": 0.3, "top1": result.metrics["top1"]}


def test_classes_are_learnt_of_augmented_images():
    train, test = images_of(45, broken={4}), images_of(21, seed=1, broken={1})
    made = LinearAugmentedEvaluation(rates=[0.3, 1.0, 3.0], epochs=8, batch_size=9, split=0.3)
    result = made.run(bench_of(trunk(), train, test))
    assert result.metrics["top1"] > 80 and result.items.mean() == pytest.approx(result.metrics["top1"])
    assert result.item_ids.tolist() == [0, *range(2, 21)] and result.test_images == 20
    assert {item.path for item in result.skipped} == {"memory[4]", "memory[1]"} and result.train_images == 44


def test_a_rate_that_diverges_leaves_the_others_alone():
    bench = bench_of(trunk(), images_of(30), images_of(9, seed=1))
    result = LinearAugmentedEvaluation(rates=[0.3, 1e39], epochs=4, batch_size=10).run(bench)
    alone = LinearAugmentedEvaluation(rates=[0.3], epochs=4, batch_size=10).run(bench)
    assert result.details["rate"] == 0.3 and torch.equal(result.predictions, alone.predictions)
    assert result.details["trials"][1]["accuracy"] is None
    with pytest.raises(UserError, match="diverged"):
        LinearAugmentedEvaluation(rates=[1e39, 1e40], epochs=4, batch_size=10).run(bench)


def test_images_that_are_not_counted_do_not_move_a_classifier():
    bank = ClassifierBank(2, 4, 3, 0, torch.device("cpu"))
    counted = torch.tensor([[True, False, True], [True, True, True]])
    objective = BankObjective(lambda images: images, torch.tensor([1.0, 2.0]), 0.0, counted)
    rows, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    objective(bank, (rows, labels, torch.arange(3)))
    weight = bank.weight[0].detach().clone().requires_grad_()
    nn.functional.cross_entropy(rows[[0, 2]] @ weight, labels[[0, 2]]).backward()
    torch.testing.assert_close(bank.weight.grad[0], weight.grad)
    objective(bank, (rows[1:2], labels[1:2], torch.tensor([1])))
    assert not bank.weight.grad[0].any() and bank.weight.grad[1].any()


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    banks, keep = kept_banks(monkeypatch), linear_augmented.keeper_of

    def often(*arguments):
        keeper = keep(*arguments)
        return None if keeper is None else Keeper(keeper.path, every=0.0)

    monkeypatch.setattr(linear_augmented, "keeper_of", often)

    def attempt(folder):
        made = LinearAugmentedEvaluation(rates=[0.1, 1.0], epochs=3, batch_size=6, weight_decay=0.001)
        return made.run(bench_of(trunk(), images_of(36), images_of(9, seed=1), folder))

    straight = attempt(None)
    calls, original = [], BankObjective.__call__

    def stop(self, model, batch):
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return original(self, model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(BankObjective, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            attempt(tmp_path)
    resumed = attempt(tmp_path)
    assert resumed.details["resumed_from"] == 10
    assert torch.equal(resumed.predictions, straight.predictions)
    assert torch.equal(banks[0].weight, banks[1].weight) and torch.equal(banks[0].bias, banks[1].bias)
    assert len(list((tmp_path / "training").iterdir())) == 1  # until the result is on disk


def _in_a_process(rank, world):
    banks = []
    original = LinearAugmentedEvaluation._train
    LinearAugmentedEvaluation._train = lambda *a: banks.append(original(*a)) or banks[-1]
    made = LinearAugmentedEvaluation(rates=[0.1, 1.0], epochs=2, batch_size=8, weight_decay=0.001, split=0.25)
    result = made.run(bench_of(trunk(norm=True), images_of(24), images_of(9, seed=1, broken={2})))
    LinearAugmentedEvaluation._train = original
    bank, facts = banks[0]
    answers = None if result is None else [result.predictions, result.details["rate"], len(result.skipped)]
    return {"weight": bank.weight.detach(), "answers": answers, "loss": facts["last_loss"]}


def test_two_processes_train_as_one():
    alone = _in_a_process(0, 1)
    first, second = run_in_processes(_in_a_process, 2)
    assert second["answers"] is None and torch.equal(first["answers"][0], alone["answers"][0])
    assert first["answers"][1:] == alone["answers"][1:]
    torch.testing.assert_close(first["weight"], alone["weight"], rtol=1e-4, atol=1e-6)
    assert torch.equal(first["weight"], second["weight"])
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_blocks_of_a_transformer(monkeypatch):
    torch.manual_seed(0)
    vit, banks = VisionTransformer(3, size="tiny", depth=2, patch_size=8, image_size=16), kept_banks(monkeypatch)
    bench = bench_of(vit, images_of(12, size=16), images_of(9, size=16, seed=1), size=16)
    result = LinearAugmentedEvaluation(rates=[0.1], epochs=1, blocks=2).run(bench)
    assert (
        banks[0].weight.shape == (1, 2 * vit.feature_dim, 3)
        and result.details["features"] == "class tokens of 2 blocks"
    )
    LinearAugmentedEvaluation(rates=[0.1], epochs=1, average_pool=True).run(bench)
    assert banks[1].weight.shape == (1, 2 * vit.feature_dim, 3)
    with pytest.raises(UserError, match="no blocks with class tokens"):
        LinearAugmentedEvaluation(rates=[0.1], epochs=1, blocks=2).run(bench_of(trunk(), images_of(9), images_of(9)))


def test_what_cannot_be():
    for options, message in (
        ({"rates": []}, "rates is empty"),
        ({"split": 1.0}, "between 0 and 1"),
        ({"blocks": 2, "average_pool": True}, "goes with one block"),
    ):
        with pytest.raises(UserError, match=message):
            LinearAugmentedEvaluation(**options)
    with pytest.raises(UserError, match="of one class only"):
        LinearAugmentedEvaluation().run(bench_of(trunk(), images_of(9, labels=[0] * 9), images_of(9)))
    with pytest.raises(UserError, match="every class has a single training image"):
        LinearAugmentedEvaluation().run(bench_of(trunk(), images_of(3), images_of(9)))
    labels = [0] * 6 + [1] * 6 + [2]
    result = LinearAugmentedEvaluation(rates=[1e-6, 1e-5], epochs=1).run(
        bench_of(trunk(), images_of(13, labels=labels), images_of(9))
    )
    assert result.details["notices"][0].startswith("1 class(es) with a single training image have no part")
    assert "at the end of EVALUATION.rates" in result.details["notices"][1]
