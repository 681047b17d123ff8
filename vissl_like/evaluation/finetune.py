"""Fine-tuning: every layer is trained with labels, all of them or a few."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from vissl_like.data.transforms.base import ViewTransform
from vissl_like.distributed import comm
from vissl_like.evaluation.augmentation import Mixing, RandAugmentCrop, random_crop
from vissl_like.evaluation.base import Evaluation, EvaluationResult
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.features import extract_features, untouched_randomness
from vissl_like.evaluation.labelled_batches import LabelledBatches, LabelledOrder
from vissl_like.evaluation.labelled_images import ChosenImages, classified, draw_share, split_of
from vissl_like.evaluation.supervised import Training, keeper_of
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.registry import EVALUATIONS, OPTIMIZERS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction, Index, NonNegative, Positive

SCALE = [0.08, 1.0]
TOKENS = ("cls_token", "pos_embed")


class Labelled(nn.Module):
    """A trunk and a linear classifier on its output.

    Args:
        trunk: ``[n, C, H, W] -> [n, feature_dim]``.
        classes: of the labels.
        deviation: of the first weights, truncated normal, bias 0; None for torch's own start.
        seed: of the first weights.
    """

    def __init__(self, trunk: nn.Module, classes: int, deviation: float | None, seed: int):
        super().__init__()
        self.trunk = trunk
        device = next((value.device for value in trunk.parameters()), torch.device("cpu"))
        with untouched_randomness(torch.device("cpu")):
            torch.default_generator.manual_seed(seed)
            head = nn.Linear(int(trunk.feature_dim), classes)  # type: ignore[arg-type]
            if deviation is not None:
                nn.init.trunc_normal_(head.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
                nn.init.zeros_(head.bias)
        self.head = head.to(device)

    def forward(self, images: Tensor) -> Tensor:
        """``[n, C, H, W] -> [n, classes]``."""
        scores: Tensor = self.head(self.trunk(images))
        return scores


@EVALUATIONS.register("finetune")
class FinetuneEvaluation(Evaluation):
    """All layers trained with labels and a new linear classifier on the network's output, from the learnt weights.

    The images are augmented by a random crop and mirroring, and scored by their centres after the last epoch: nothing
    is chosen by test images. In several processes BatchNorm spans them. The untrained network beside it is trained in
    the same way, from scratch: with the short schedules and small rates that suit learnt weights, it is a weak rival.

    Options:
        epochs: passes over the training images
        batch_size: images per step, of all processes together
        trunk_lr: learning rate of the network, for the batch as given (it is not scaled by its size)
        head_lr: learning rate of the new classifier
        optimizer: sgd decays all weights, adamw all but vectors, class tokens and position embeddings
        momentum: of sgd
        weight_decay: of either
        schedule: cosine falls with every step, cosine_epoch with every epoch, milestones by a factor at given epochs
        final: share of the rates that the cosine would end at
        milestones: epochs after which rates fall, for that schedule
        factor: what they are multiplied by there
        warmup_epochs: in which rates first rise linearly; those of the schedule count from the start nevertheless
        warmup_start: share of the rates that they rise from
        share: part of the training images of every class, chosen by the seed, at least one; null for all
        shots: so many training images of every class instead
        smoothing: of the labels: this much is spread over all classes
        drop_path: largest probability of dropping a branch, rising along the blocks; null leaves the network's own
        scale: smallest and largest share of the image's area in a training crop
        flip: probability of mirroring left-right
        interpolation: filter of the training crops
        rand_augment: RandAugment in timm's words, such as rand-m9-mstd0.5-inc1; null for none (needs timm)
        erasing: probability of random erasing (needs timm)
        mixup: alpha of mixup, 0 for none (needs timm)
        cutmix: alpha of CutMix, 0 for none (needs timm)
        repeats: augmentations of an image that follow each other, for fewer images in an epoch
        drop_last: leave out the last batch of an epoch where it is smaller
        head_deviation: deviation of the classifier's first weights, whose bias is then 0; null for torch's start
        precision: number format of the forward pass
        seed: of the share, the first weights, the order of images, and all that is random
    """

    labelled, trains = True, True

    def __init__(
        self,
        *,
        epochs: Count = 20,
        batch_size: Count = 64,
        trunk_lr: Positive = 0.01,
        head_lr: Positive = 0.1,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 0.0,
        schedule: Literal["cosine", "cosine_epoch", "milestones"] = "cosine",
        final: Fraction = 0.0,
        milestones: list[Count] | None = None,
        factor: Fraction = 0.2,
        warmup_epochs: Index = 0,
        warmup_start: Fraction = 0.0,
        share: Fraction | None = None,
        shots: Count | None = None,
        smoothing: Fraction = 0.0,
        drop_path: Fraction | None = None,
        scale: list[Positive] = SCALE,
        flip: Fraction = 0.5,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        rand_augment: str | None = None,
        erasing: Fraction = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        repeats: Count = 1,
        drop_last: bool = False,
        head_deviation: Positive | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        seed: Index = 0,
    ):
        given = {name: value for name, value in locals().items() if name != "self"}
        _check(given)
        self.options: dict[str, Any] = given
        self.seed, self.smoothing = seed, smoothing

    def identity(self, bench: Bench) -> str:
        """The probe images and their labels."""
        return bench.probe_identity()

    def run(self, bench: Bench) -> EvaluationResult | None:
        """Trains, then scores the test images; see ``Evaluation``.

        Raises:
            UserError: the images have no labels, or are too few; training diverged; the network has no branches to
                drop, or timm is missing.
        """
        wanted, protocol = self.options, bench.protocol
        split = split_of(bench)
        rows, notices = draw_share(split.train.targets, share=wanted["share"], shots=wanted["shots"], seed=self.seed)
        train = split.train.select(rows)
        if len(train.targets.unique()) < 2:
            raise UserError("the training images are of one class only: there is nothing to tell apart")
        batches = self._batches(bench, train)
        model = self._model(bench)
        of_an_epoch = batches.order.steps_per_epoch
        changes = {"name": "finetune", **wanted, "steps": batches.steps, "images": len(train)}
        keeper = keeper_of(bench, changes, self.identity(bench))
        training = Training(
            model,
            build_optimizer(model, wanted),
            batches,
            self._objective,
            batches.steps,
            lambda step: rate_at(step / of_an_epoch, wanted),
            self.seed,
            f"fine-tuning, {bench.subject.name}",
            autocast=torch.bfloat16 if wanted["precision"] == "bf16" else None,
            keeper=keeper,
        )
        facts = training.run()
        found = extract_features(model, split.test, **protocol.running(), share=True)
        skipped = batches.skipped()
        result = None
        if comm.is_main():
            result = classified("finetune", found.features, found, train.targets, split.test_ids, bench.num_classes)
            notices += result.details["notices"]
            result.train_images -= len(skipped)
            result.skipped = [*skipped, *found.skipped]
            options = {**wanted, "batch_size": batches.order.global_batch}
            result.details = {**options, **facts, "steps_per_epoch": of_an_epoch, "notices": notices}
        return result

    def _batches(self, bench: Bench, train: ChosenImages) -> LabelledBatches:
        wanted, protocol = self.options, bench.protocol
        mixes = wanted["mixup"] > 0 or wanted["cutmix"] > 0
        order = LabelledOrder(
            len(train),
            wanted["batch_size"],
            comm.rank(),
            comm.world_size(),
            self.seed,
            drop_last=wanted["drop_last"],
            repeats=wanted["repeats"],
            multiple=2 if mixes else 1,
        )
        crop = (train.channels, protocol.image_size, wanted["scale"], wanted["flip"], wanted["interpolation"])
        policy = wanted["rand_augment"]
        transform: ViewTransform = (
            random_crop(*crop) if policy is None else RandAugmentCrop(*crop, policy, bench.look.mean)
        )
        finish = None
        if mixes or wanted["erasing"] > 0:
            finish = Mixing(
                bench.num_classes,
                **{name: wanted[name] for name in ("mixup", "cutmix", "smoothing", "erasing")},
                seed=self.seed,
                rank=comm.rank(),
            )
        epochs = wanted["epochs"]
        return LabelledBatches(
            train, transform, bench.look, protocol, order, epochs=epochs, seed=self.seed, finish=finish
        )

    def _model(self, bench: Bench) -> Labelled:
        assert bench.subject.network is not None
        trunk = copy.deepcopy(bench.subject.network())
        if self.options["drop_path"] is not None:
            set_drop_path(trunk, self.options["drop_path"])
        if comm.active():
            trunk = synchronise_batch_norm(trunk, bench.protocol.device.type)
        return Labelled(trunk, bench.num_classes, self.options["head_deviation"], self.seed).train()

    def _objective(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        images, targets, _ = batch
        smoothing = 0.0 if targets.is_floating_point() else self.smoothing  # mixed labels are smooth already
        return {"cross_entropy": functional.cross_entropy(model(images).float(), targets, label_smoothing=smoothing)}


def rate_at(epoch: float, options: dict[str, Any]) -> float:
    """What learning rates are multiplied by after so many epochs, fractional; see ``FinetuneEvaluation``."""
    schedule, warmup = options["schedule"], options["warmup_epochs"]
    if schedule != "cosine":
        epoch = math.floor(epoch + 1e-9)
    if epoch < warmup:
        start = options["warmup_start"]
        return float(start + (1 - start) * epoch / warmup)
    if schedule == "milestones":
        return float(options["factor"] ** sum(epoch >= milestone for milestone in options["milestones"]))
    final = options["final"]
    return float(final + (1 - final) * (1 + math.cos(math.pi * epoch / options["epochs"])) / 2)


def build_optimizer(model: Labelled, options: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a network and its classifier, each with its rate; see ``FinetuneEvaluation``."""
    name, decay = options["optimizer"], options["weight_decay"]
    groups: list[tuple[list[tuple[str, Parameter]], float, float]] = []
    for part, lr in ((model.trunk, options["trunk_lr"]), (model.head, options["head_lr"])):
        trained = [(key, value) for key, value in part.named_parameters() if value.requires_grad]
        spared = {key for key, value in trained if name == "adamw" and (value.ndim <= 1 or key.endswith(TOKENS))}
        groups.append(([pair for pair in trained if pair[0] not in spared], lr, decay))
        groups.append(([pair for pair in trained if pair[0] in spared], lr, 0.0))
    (first, lr, pull), *others = [group for group in groups if group[0]]
    more = {"momentum": options["momentum"]} if name == "sgd" else {}
    made: torch.optim.Optimizer = OPTIMIZERS.get(name)(first, lr, weight_decay=pull, decay_vectors=True, **more)
    for named, lr, pull in others:
        made.add_param_group({"params": [value for _, value in named], "lr": lr, "weight_decay": pull})
    return made


def set_drop_path(trunk: nn.Module, largest: float) -> None:
    """Sets the probabilities of dropping branches, in place: the network's own pattern scaled, or a rising line.

    Args:
        trunk: whose modules that drop have a ``drop_prob``.
        largest: of the block that drops most.

    Raises:
        UserError: it has none.
    """
    blocks: dict[str, list[Any]] = {}
    for name, module in trunk.named_modules():
        if isinstance(getattr(module, "drop_prob", None), float):
            blocks.setdefault(name.rpartition(".")[0], []).append(module)
    if not blocks:
        if largest == 0:
            return
        raise UserError(
            f"EVALUATION.drop_path is {largest:g}, and the network has no branches to drop: leave it out (null), or "
            "build a timm network with options.drop_path_rate above 0"
        )
    most = max(module.drop_prob for modules in blocks.values() for module in modules)
    for number, modules in enumerate(blocks.values()):
        for module in modules:
            line = number / max(1, len(blocks) - 1)
            module.drop_prob = largest * (module.drop_prob / most if most > 0 else line)


def _check(options: dict[str, Any]) -> None:
    """Looks whether options fit each other.

    Raises:
        UserError: they do not.
    """
    share = options["share"]
    if share is not None and not 0 < share <= 1:
        raise UserError(f"EVALUATION.share is {share:g}; it is a part of the training images, above 0 and at most 1")
    if share is not None and options["shots"] is not None:
        raise UserError("give EVALUATION.share or EVALUATION.shots, not both")
    if (options["schedule"] == "milestones") != bool(options["milestones"]):
        raise UserError(
            "EVALUATION.schedule: milestones goes with a list of epochs, such as EVALUATION.milestones=[12,16]; "
            "others go without"
        )
    if options["warmup_epochs"] >= options["epochs"]:
        raise UserError(
            f"EVALUATION.warmup_epochs is {options['warmup_epochs']}; it must be less than EVALUATION.epochs, "
            f"{options['epochs']}"
        )
    if options["smoothing"] == 1:
        raise UserError("EVALUATION.smoothing is 1, which leaves nothing of the labels; it must be below 1")
