"""Linear classifiers on a frozen network whose images are augmented in every epoch: the published linear probes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from vissl_like.distributed import comm
from vissl_like.evaluation.augmentation import random_crop
from vissl_like.evaluation.base import Evaluation, EvaluationResult, Features, required_labels
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.features import extract_features, frozen
from vissl_like.evaluation.keeper import Keeper
from vissl_like.evaluation.labelled_batches import LabelledBatches, LabelledOrder
from vissl_like.evaluation.labelled_images import Split, classified, split_of
from vissl_like.evaluation.linear_sgd import (
    MOMENTUM,
    WEIGHT_DEVIATION,
    Classifiers,
    best_rate,
    held_for_choice,
    held_out,
    transformer_encoding,
)
from vissl_like.evaluation.supervised import Training, keeper_of
from vissl_like.registry import EVALUATIONS, OPTIMIZERS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction, Index, NonNegative, Positive

RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
SCALE = [0.08, 1.0]


class ClassifierBank(nn.Module):
    """H linear classifiers of equal start that do not know each other.

    Args:
        heads: H.
        width: F, of the features.
        classes: C.
        seed: of the first weights, N(0, 0.01); the bias is 0.
        device: where they are.
    """

    def __init__(self, heads: int, width: int, classes: int, seed: int, device: torch.device):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = WEIGHT_DEVIATION * torch.randn(width, classes, generator=generator)
        self.weight = Parameter(start.to(device).repeat(heads, 1, 1))
        self.bias = Parameter(torch.zeros(heads, classes, device=device))

    def some(self, heads: slice) -> Classifiers:
        """Some of them, for scoring."""
        return Classifiers(self.weight.detach()[heads], self.bias.detach()[heads])


class BankObjective:
    """Cross-entropy of every classifier of a bank, whose gradients it fills in itself.

    The gradient of a classifier is ``x^T (softmax - one-hot) / n`` plus the weight decay, both times its learning rate:
    SGD with momentum and a rate of 1 then makes the steps of SGD with that rate. Classifiers have no gradient in
    common, so that one whose rate is too large leaves the others alone.

    Args:
        features: images -> ``[n, F]``.
        rates: H learning rates.
        weight_decay: of weights and bias.
        counted: how much images count for each classifier, by the number of the image: ``[H, N]`` bool.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], rates: Tensor, weight_decay: float, counted: Tensor):
        self.features, self.rates, self.weight_decay, self.counted = features, rates, weight_decay, counted

    @torch.no_grad()
    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Fills in the gradients of the bank.

        Returns:
            the least cross-entropy of all that are finite: what a training that diverges at every rate is known by.
        """
        assert isinstance(model, ClassifierBank)
        images, labels, numbers = batch
        rows = self.features(images)
        counted = self.counted[:, numbers].to(rows)  # [H, n]
        totals = comm.all_reduce(counted.sum(dim=1)).clamp(min=1) / comm.world_size()
        bank = Classifiers(model.weight, model.bias)
        scores = bank.scores(rows)  # [H, n, C]
        log_probabilities = scores.log_softmax(dim=2)
        losses = -log_probabilities.gather(2, labels.expand(len(scores), -1)[..., None])[..., 0]
        totalled = comm.all_reduce(losses.where(counted > 0, 0.0).sum(dim=1)) / comm.world_size()
        errors = log_probabilities.exp()
        errors -= functional.one_hot(labels, scores.shape[2])
        errors *= (counted / totals[:, None])[..., None]
        gradients = torch.einsum("nf,hnc->hfc", rows, errors), errors.sum(dim=1)
        for values, gradient in zip((model.weight, model.bias), gradients, strict=True):
            pulled = gradient.add(values, alpha=self.weight_decay).mul_(self.rates.view(-1, *[1] * (values.dim() - 1)))
            values.grad = pulled.contiguous()  # torch's fused optimizers go through memory as it lies
        return {"least": (totalled / totals).nan_to_num(nan=torch.inf, posinf=torch.inf).min()}


@EVALUATIONS.register("linear_augmented")
class LinearAugmentedEvaluation(Evaluation):
    """Linear classifiers by SGD on a frozen network, of random crops of images (the linear probes of SwAV and DINO).

    SGD with momentum 0.9, rates that fall along a cosine by the epoch, weights N(0, 0.01), bias 0; the network runs in
    eval mode; every rate is trained in the same passes over the images. Two classifiers are trained for each rate: one
    on all training images, as published, and one on all but a part, which serves for choosing the rate. With one rate
    nothing is chosen, which is the published protocol, except that the last epoch counts instead of the best on the
    test images. What the rate that is best on the test images reaches is in the record too (best_on_test), since papers
    report such numbers.

    Options:
        rates: learning rates to choose from, each above 0, for the batch as given (they are not scaled by its size)
        epochs: passes over the training images
        batch_size: images per step, of all processes together
        weight_decay: pull of weights and bias to 0, times the rate
        split: part of the training images held out for the choice, in (0, 1); not used when there is one rate
        scale: smallest and largest share of the image's area in a training crop
        flip: probability of mirroring left-right
        interpolation: filter of the training crops
        blocks: concatenate the class tokens after so many last blocks, for vision transformers (4 in DINO's ViT-S); 1
            takes the network's output
        average_pool: with one block: the mean patch token besides, element by element in turn (DINO's ViT-B)
        seed: of the held-out part, the first weights, the order of images and their crops
    """

    labelled, trains = True, True

    def __init__(
        self,
        *,
        rates: list[Positive] = RATES,
        epochs: Count = 100,
        batch_size: Count = 256,
        weight_decay: NonNegative = 0.0,
        split: Fraction = 0.2,
        scale: list[Positive] = SCALE,
        flip: Fraction = 0.5,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        blocks: Count = 1,
        average_pool: bool = False,
        seed: Index = 0,
    ):
        if not rates:
            raise UserError("EVALUATION.rates is empty; give at least one learning rate, such as [0.1]")
        if not 0 < split < 1:
            raise UserError(f"EVALUATION.split is {split}; it must lie between 0 and 1, both excluded")
        if average_pool and blocks > 1:
            raise UserError(
                f"EVALUATION.average_pool goes with one block, and EVALUATION.blocks is {blocks}; set it to 1"
            )
        rates = sorted(set(rates))
        self.options: dict[str, Any] = {name: value for name, value in locals().items() if name != "self"}
        self.rates, self.epochs, self.seed = rates, epochs, seed
        self.encoding = transformer_encoding(blocks, average_pool)

    def identity(self, bench: Bench) -> str:
        """The probe images and their labels."""
        return bench.probe_identity()

    def run(self, bench: Bench) -> EvaluationResult | None:
        """Trains, chooses a rate, then scores the test images; see ``Evaluation``.

        Raises:
            UserError: the images have no labels, are of one class only, or are too few to choose a rate; every rate is
                too large.
        """
        split = split_of(bench)
        labels = split.train.targets
        if len(labels.unique()) < 2:
            raise UserError("the training images are of one class only: there is nothing to tell apart")
        held, notices = self._held(labels)
        test = self._features(bench, split.test)
        judged = None if held is None else self._features(bench, split.train.select(held))
        width = comm.broadcast_object(int(test.features.shape[1]))
        batches = self._batches(bench, split)
        changes = {"name": "linear_augmented", **self.options, "steps": batches.steps}
        keeper = keeper_of(bench, changes, self.identity(bench))
        bank, facts = self._train(bench, batches, held, width, keeper)
        skipped = batches.skipped()
        result = None
        if comm.is_main():
            rate, trials, more = self._choose(bank, judged)
            final = bank.some(slice(-len(self.rates), None))
            chosen = self.rates.index(rate)
            scores = torch.cat([part[chosen] for part in final.stretches(test.features)])
            result = classified("linear_augmented", scores, test, labels, split.test_ids, bench.num_classes)
            reached = held_out(final, test.features, required_labels(test, "test"))[0]
            best = max(range(len(reached)), key=lambda place: reached[place])
            notices += more + result.details["notices"]
            result.train_images -= len(skipped)
            result.skipped = list({item.path: item for item in [*skipped, *test.skipped]}.values())
            result.details = {
                **self.options,
                **facts,
                "rate": rate,
                "trials": trials,
                "best_on_test": {"rate": self.rates[best], "top1": reached[best]},
                "batch_size": batches.order.global_batch,
                "steps_per_epoch": batches.order.steps_per_epoch,
                "features": self.encoding.name,
                "notices": notices,
            }
        return result

    def _held(self, labels: Tensor) -> tuple[Tensor | None, list[str]]:
        """Places of the training images that the rate is chosen on, None where there is no choice; and remarks."""
        if len(self.rates) == 1:
            return None, []
        _, held, notices = held_for_choice(labels, self.options["split"], self.seed)
        return held, notices

    def _features(self, bench: Bench, images: Any) -> Features:
        assert bench.subject.network is not None
        trunk, protocol = bench.subject.network(), bench.protocol
        return extract_features(
            trunk, images, **protocol.running(), encode=self.encoding.encode, share=True, folder=protocol.folder
        )

    def _batches(self, bench: Bench, split: Split) -> LabelledBatches:
        wanted, train = self.options, split.train
        order = LabelledOrder(len(train), wanted["batch_size"], comm.rank(), comm.world_size(), self.seed)
        transform = random_crop(
            train.channels, bench.protocol.image_size, wanted["scale"], wanted["flip"], wanted["interpolation"]
        )
        return LabelledBatches(train, transform, bench.look, bench.protocol, order, epochs=self.epochs, seed=self.seed)

    def _train(
        self, bench: Bench, batches: LabelledBatches, held: Tensor | None, width: int, keeper: Keeper | None
    ) -> tuple[ClassifierBank, dict[str, Any]]:
        """Those that leave the held-out images alone, if any are, then those on all; and facts for the record."""
        assert bench.subject.network is not None
        trunk, device = bench.subject.network(), bench.protocol.device
        count = len(self.rates)
        counted = torch.ones(count if held is None else 2 * count, len(batches.dataset), dtype=torch.bool)
        if held is not None:
            counted[:count, held] = False
        rates = torch.tensor(self.rates * (len(counted) // count), device=device)
        bank = ClassifierBank(len(counted), width, bench.num_classes, self.seed, device)

        def features(images: Tensor) -> Tensor:
            taken = trunk if self.encoding.encode is None else partial(self.encoding.encode, trunk)
            return taken(images).float()

        objective = BankObjective(features, rates, self.options["weight_decay"], counted.to(device))
        make = OPTIMIZERS.get("sgd")
        optimizer = make(list(bank.named_parameters()), 1.0, momentum=MOMENTUM, weight_decay=0.0)
        of_an_epoch = batches.order.steps_per_epoch
        training = Training(
            bank,
            optimizer,
            batches,
            objective,
            batches.steps,
            lambda step: (1 + math.cos(math.pi * (step // of_an_epoch) / self.epochs)) / 2,
            self.seed,
            f"linear classifiers, {bench.subject.name}",
            keeper=keeper,
        )
        with frozen(trunk):
            return bank, training.run()

    def _choose(
        self, bank: ClassifierBank, judged: Features | None
    ) -> tuple[float, list[dict[str, float | None]], list[str]]:
        """See ``best_rate``; without held-out images there is one rate."""
        if judged is None:
            return self.rates[0], [], []
        first = bank.some(slice(None, len(self.rates)))
        return best_rate(self.rates, *held_out(first, judged.features, required_labels(judged, "held-out")))
