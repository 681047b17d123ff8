"""Linear probes on every layer of a frozen network (protocol of DeepCluster and of VISSL's linear benchmark)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from vissl_like.distributed import comm
from vissl_like.evaluation.base import EvaluationResult, FeatureEvaluation
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.linear import DEFAULT_COSTS, LinearEvaluation
from vissl_like.evaluation.subjects import Encoding
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction, Index, Positive


def pooled_stage(trunk: nn.Module, images: Tensor, *, stage: int, dims: int) -> Tensor:
    """The map after some stages, average-pooled to the largest square grid of at most ``dims`` values.

    Args:
        trunk: with ``stage_map``.
        images: ``[n, C, H, W]``.
        stage: 1 to the number of ``strides``.
        dims: most values of an image; at least one place for each channel is kept.

    Returns:
        ``[n, D g g]``, g = max(1, floor(sqrt(dims / D))), or the side of the map if that is less.
    """
    found: Tensor = trunk.stage_map(images, stage)  # type: ignore[operator]
    side = max(1, math.isqrt(dims // found.shape[1]))
    return torch.flatten(adaptive_avg_pool2d(found, (min(side, found.shape[2]), min(side, found.shape[3]))), 1)


@EVALUATIONS.register("layers")
class LayersEvaluation(FeatureEvaluation):
    """A linear probe on the map after every stage of a convolutional network, pooled to about 9,000 values.

    Metrics are ``top1_stage1``, ... The stage that counts is chosen on a part of the TRAINING images, as the strength
    of each probe is (``linear``); published numbers take the best on the test images. The published probes are trained
    with SGD and augmentation; these are logistic regressions on one view of each image.

    Options:
        stages: which, counted from 1 (a ResNet has 4, AlexNet 5, VGG-16 13); null for all
        dims: most values that a map is pooled to
        costs: strengths C to choose from, see ``linear``
        split: part of the training images held out for both choices, in (0, 1)
        max_iterations: of the solver for each fit
        seed: of the held-out part
    """

    pixels = False

    def __init__(
        self,
        *,
        stages: list[Count] | None = None,
        dims: Count = 9600,
        costs: list[Positive] = DEFAULT_COSTS,
        split: Fraction = 0.2,
        max_iterations: Count = 2000,
        seed: Index = 0,
    ):
        if stages is not None and not stages:
            raise UserError("EVALUATION.stages is empty; name at least one, such as [4], or give null for all")
        self.stages, self.dims = stages, dims
        self.probe = LinearEvaluation(costs=costs, split=split, max_iterations=max_iterations, seed=seed)

    def run(self, bench: Bench) -> EvaluationResult | None:
        """See ``Evaluation``.

        Raises:
            UserError: the network has no stages, or fewer than were asked for; or as ``linear`` raises.
        """
        results: dict[int, EvaluationResult] = {}
        for stage in self._wanted(bench):
            encode = partial(pooled_stage, stage=stage, dims=self.dims)
            self.encoding = Encoding(f"stage {stage} pooled to {self.dims}", encode)
            found = super().run(bench)
            if found is not None:
                results[stage] = found
        return self._joined(results) if comm.is_main() else None

    def __call__(self, train: Any, test: Any, num_classes: int) -> EvaluationResult:
        """One probe; see ``LinearEvaluation``."""
        return self.probe(train, test, num_classes)

    def _wanted(self, bench: Bench) -> list[int]:
        network = None if bench.subject.network is None else bench.subject.network()
        strides = tuple(getattr(network, "strides", ()))
        if not strides:
            raise UserError(
                "probes on layers need a network that gives its maps stage by stage: a resnet, regnet_y, alexnet, vgg, "
                "xcit or timm trunk. For a vision transformer use config=benchmark/linear_sgd with EVALUATION.blocks."
            )
        wanted = sorted(set(self.stages or range(1, len(strides) + 1)))
        if wanted[-1] > len(strides):
            raise UserError(f"EVALUATION.stages asks for stage {wanted[-1]}; this network has {len(strides)}")
        return wanted

    def _joined(self, results: dict[int, EvaluationResult]) -> EvaluationResult:
        """The result of the stage that counts, with the metrics of all."""
        held = {stage: _held_out(found) for stage, found in results.items()}
        best = max(held, key=lambda stage: (held[stage], stage))
        result = results[best]
        notices = [f"stage {stage}: {text}" for stage, found in results.items() for text in found.details["notices"]]
        result.name = "layers"
        result.metrics = {f"top1_stage{stage}": found.metrics["top1"] for stage, found in results.items()}
        result.main = f"top1_stage{best}"
        result.details = {
            "stage": best,
            "dims": self.dims,
            "cost_per_stage": {str(stage): found.details["cost"] for stage, found in results.items()},
            "held_out_per_stage": {str(stage): value for stage, value in held.items()},
            "notices": notices,
        }
        return result


def _held_out(result: EvaluationResult) -> float:
    """Accuracy of a probe's best strength on the held-out part; 0 where there was one strength and no choice."""
    trials = {trial["cost"]: trial["accuracy"] for trial in result.details["trials"]}
    return float(trials.get(result.details["cost"], 0.0))
