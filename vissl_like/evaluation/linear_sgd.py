"""Linear classifiers trained by SGD on frozen features, at many learning rates in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vissl_like.evaluation.base import (
    EvaluationResult,
    FeatureEvaluation,
    Features,
    required_labels,
    stratified_split,
)
from vissl_like.evaluation.subjects import OUTPUT, Encoding
from vissl_like.meters.accuracy import AccuracyMeter
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction, Index, NonNegative, Positive

DEFAULT_RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
MOMENTUM = 0.9
WEIGHT_DEVIATION = 0.01
SCORE_ROWS = 4096


@dataclass
class Classifiers:
    """Linear classifiers, one for each of R learning rates.

    Attributes:
        weight: ``[R, F, C]``.
        bias: ``[R, C]``.
    """

    weight: Tensor
    bias: Tensor

    def scores(self, rows: Tensor) -> Tensor:
        """``[n, F] -> [R, n, C]``."""
        return torch.einsum("nf,rfc->rnc", rows, self.weight) + self.bias[:, None]

    def stretches(self, features: Tensor) -> Iterator[Tensor]:
        """Scores ``[R, n, C]`` on the CPU, of n rows at a time in order: those of all rows may not fit into memory."""
        for rows in features.split(SCORE_ROWS):
            yield self.scores(rows.to(self.weight.device)).cpu()


@EVALUATIONS.register("linear_sgd")
class LinearSgdEvaluation(FeatureEvaluation):
    """Linear classifier trained by SGD on frozen features without augmentation; its learning rate is chosen by itself.

    Length, optimizer, schedule and start are those of the linear probes of SwAV and DINO: SGD with momentum 0.9, rates
    that fall along a cosine by the epoch, weights N(0, 0.01), bias 0. It is NOT their published protocol: features are
    computed once, of the centres of the images, while they augment, and they report the best of the test results. Here
    all rates are trained at once on a part of the TRAINING images, the one with the most right answers on the rest is
    taken (of equals, the least cross-entropy), and is trained again on all of them.

    Options:
        rates: learning rates to choose from, each above 0, for the batch as given (they are not scaled by its size)
        epochs: passes over the training images
        batch_size: images per step
        weight_decay: pull of weights and bias to 0, times the rate
        split: part of the training images held out for the choice, in (0, 1); not used when there is one rate
        seed: of the held-out part, the first weights and the order of the images
        blocks: concatenate the class tokens after so many last blocks, for vision transformers (4 in DINO's ViT-S); 1
            takes the network's output
        average_pool: with one block: the mean patch token besides, element by element in turn (DINO's ViT-B)
    """

    def __init__(
        self,
        *,
        rates: list[Positive] = DEFAULT_RATES,
        epochs: Count = 100,
        batch_size: Count = 256,
        weight_decay: NonNegative = 0.0,
        split: Fraction = 0.2,
        seed: Index = 0,
        blocks: Count = 1,
        average_pool: bool = False,
    ):
        if not rates:
            raise UserError("EVALUATION.rates is empty; give at least one learning rate, such as [0.1]")
        if not 0 < split < 1:
            raise UserError(f"EVALUATION.split is {split}; it must lie between 0 and 1, both excluded")
        if average_pool and blocks > 1:
            raise UserError(
                f"EVALUATION.average_pool goes with one block, and EVALUATION.blocks is {blocks}; set it to 1"
            )
        self.rates = sorted(set(rates))
        self.epochs, self.batch_size, self.weight_decay = epochs, batch_size, weight_decay
        self.split, self.seed = split, seed
        self.taken = transformer_encoding(blocks, average_pool)
        self.encoding = self.taken

    def __call__(self, train: Features, test: Features, num_classes: int) -> EvaluationResult:
        """Evaluates; see ``FeatureEvaluation``.

        Raises:
            UserError: labels are missing, there are fewer than two classes, too few images to choose a rate, or every
                rate is too large.
        """
        labels, test_labels = required_labels(train, "training"), required_labels(test, "test")
        if len(labels.unique()) < 2:
            raise UserError("the training images are of one class only: there is nothing to tell apart")
        rate, trials, notices = self._choose(train.features, labels, num_classes)
        final = self._train(train.features, labels, [rate], num_classes)
        scores = torch.cat([part[0] for part in final.stretches(test.features)])
        if not scores.isfinite().all():
            raise UserError(
                f"training diverged at the learning rate {rate:g}; give smaller ones: config.EVALUATION.rates"
            )
        meter = AccuracyMeter(num_classes)
        meter.update(scores, test_labels)
        details: dict[str, Any] = {
            "rate": rate,
            "trials": trials,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "weight_decay": self.weight_decay,
            "split": self.split,
            "seed": self.seed,
            "features": self.taken.name,
            "notices": notices,
        }
        return EvaluationResult("linear_sgd", meter.value(), scores.argmax(dim=1), details)

    def _choose(
        self, features: Tensor, labels: Tensor, num_classes: int
    ) -> tuple[float, list[dict[str, float | None]], list[str]]:
        """The best rate, what each reached on the held-out part, and remarks."""
        if len(self.rates) == 1:
            return self.rates[0], [], []
        kept, held, notices = held_for_choice(labels, self.split, self.seed)
        model = self._train(features[kept], labels[kept], self.rates, num_classes)
        best, trials, more = best_rate(self.rates, *held_out(model, features[held], labels[held]))
        return best, trials, notices + more

    def _train(self, features: Tensor, labels: Tensor, rates: list[float], num_classes: int) -> Classifiers:
        """Classifiers trained at each rate on the same batches from the same start."""
        return train_classifiers(
            features,
            labels,
            rates=rates,
            num_classes=num_classes,
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            seed=self.seed,
            device=self.device,
        )


@torch.no_grad()
def train_classifiers(
    features: Tensor,
    labels: Tensor,
    *,
    rates: list[float],
    num_classes: int,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    seed: int,
    device: torch.device,
) -> Classifiers:
    """Trains R linear classifiers by cross-entropy, each as torch's SGD with its own rate would.

    The gradient is written out, ``x^T (softmax - one-hot) / n``: one product gives those of all classifiers, which do
    not know each other.

    Args:
        features: ``[N, F]``.
        labels: ``[N]`` int64 in 0..C-1.
        rates: R of the first epoch; in epoch e of E they are ``rate * (1 + cos(pi e / E)) / 2``.
        num_classes: C.
        epochs: E.
        batch_size: images per step; the last batch of an epoch may be smaller.
        weight_decay: times the weights (and bias), added to the gradient.
        seed: of the start, which all share, and of the batches.
        device: where it is computed.
    """
    generator = torch.Generator().manual_seed(seed)
    start = WEIGHT_DEVIATION * torch.randn(features.shape[1], num_classes, generator=generator)
    model = Classifiers(start.to(device).repeat(len(rates), 1, 1), torch.zeros(len(rates), num_classes, device=device))
    momenta = torch.zeros_like(model.weight), torch.zeros_like(model.bias)
    base = torch.tensor(rates, device=device)
    for epoch in range(epochs):
        rate = base * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for chosen in _batches(len(labels), batch_size, generator):
            rows, answers = features[chosen].to(device), labels[chosen].to(device)
            errors = model.scores(rows).softmax(dim=2)  # [R, n, C]
            errors -= functional.one_hot(answers, num_classes)
            errors /= len(rows)
            gradients = torch.einsum("nf,rnc->rfc", rows, errors), errors.sum(dim=1)
            for values, gradient, momentum in zip((model.weight, model.bias), gradients, momenta, strict=True):
                momentum.mul_(MOMENTUM).add_(gradient).add_(values, alpha=weight_decay)
                values.sub_(rate.view(-1, *[1] * (values.dim() - 1)) * momentum)
    return model


def held_out(model: Classifiers, features: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """Accuracy in percent and mean cross-entropy in nats (not finite where training diverged) of each classifier.

    Args:
        model: R classifiers.
        features: ``[N, F]``.
        labels: ``[N]``.
    """
    right = torch.zeros(len(model.bias), dtype=torch.float64)
    loss = torch.zeros_like(right)
    for scores, answers in zip(model.stretches(features), labels.split(SCORE_ROWS), strict=True):
        right += (scores.argmax(dim=2) == answers).sum(dim=1)
        columns = answers.expand(len(scores), -1)[..., None]
        loss -= scores.double().log_softmax(dim=2).gather(2, columns).sum(dim=(1, 2))
    return (100 * right / len(labels)).tolist(), (loss / len(labels)).tolist()


def held_for_choice(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Training images to learn from and to choose the rate on: positions of both, and remarks.

    Args:
        labels: ``[N]``.
        share: part that is held out, in (0, 1).
        seed: of the choice.

    Raises:
        UserError: none can be held out.
    """
    kept, held, single = stratified_split(labels, share, seed)
    if not len(held):
        raise UserError(
            "every class has a single training image, so none can be held out to choose the learning rate. Give one: "
            "config.EVALUATION.rates=[0.1]"
        )
    remark = f"{len(single)} class(es) with a single training image have no part in the choice of the rate"
    return kept, held, [remark] if single else []


def best_rate(
    rates: list[float], accuracies: list[float], losses: list[float]
) -> tuple[float, list[dict[str, float | None]], list[str]]:
    """The rate with the most right answers (of equals, the least loss), what each reached, and remarks.

    Args:
        rates: increasing.
        accuracies, losses: of each on held-out images; a loss that is not finite is of a training that diverged.

    Raises:
        UserError: all are.
    """
    trials: list[dict[str, float | None]] = []
    ranks: list[tuple[float, float, float]] = []
    for rate, accuracy, loss in zip(rates, accuracies, losses, strict=True):
        if math.isfinite(loss):
            trials.append({"rate": rate, "accuracy": accuracy, "log_loss": loss})
            ranks.append((-accuracy, loss, rate))
        else:
            trials.append({"rate": rate, "accuracy": None, "log_loss": None})
    if not ranks:
        raise UserError("training diverged at every learning rate; give smaller ones: config.EVALUATION.rates")
    best = min(ranks)[2]
    if best not in (rates[0], rates[-1]):
        return best, trials, []
    side = "smaller" if best == rates[0] else "larger"
    remark = f"the rate {best:g}, at the end of EVALUATION.rates, is the best; a {side} one may be better"
    return best, trials, [remark]


def transformer_encoding(blocks: int, average_pool: bool) -> Encoding:
    """What DINO's linear probe takes of a vision transformer.

    Args:
        blocks: class tokens of so many last blocks side by side, the last one last.
        average_pool: with one block: class token c and mean patch token a as ``c0, a0, c1, a1, ...``, the order of
            DINO's released classifiers.
    """
    if blocks == 1 and not average_pool:
        return OUTPUT

    def encode(trunk: nn.Module, images: Tensor) -> Tensor:
        layers = getattr(trunk, "intermediate_layers", None)
        if layers is None:
            raise UserError(
                f"{type(trunk).__name__} has no blocks with class tokens, which EVALUATION.blocks and "
                "EVALUATION.average_pool take; leave them out (blocks: 1, average_pool: false)"
            )
        tokens = layers(images, blocks)
        if average_pool:
            return torch.stack([tokens[-1][:, 0], tokens[-1][:, 1:].mean(dim=1)], dim=-1).flatten(1)
        return torch.cat([found[:, 0] for found in tokens], dim=-1)

    return Encoding("class and mean patch tokens" if average_pool else f"class tokens of {blocks} blocks", encode)


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All positions in a new order, in stretches."""
    yield from torch.randperm(count, generator=generator).split(size)
