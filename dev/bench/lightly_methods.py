"""lightly's SwAV and DINO (PyPI, MIT), put together as in its examples, with the numbers of this project's settings."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.config import Plan
from vissl_like.records import Progress
from vissl_like.registry import HEADS, LOSSES, TEACHERS, TRANSFORMS, Registry
from vissl_like.trainer.components import plain_values
from vissl_like.utils.errors import UserError


def options(registry: Registry, section: Any) -> dict[str, Any]:
    """All options of a component: those of its section, and the defaults of the others."""
    given = plain_values(section)
    parameters = inspect.signature(registry.get(given["name"])).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {**defaults, **given}


def require(found: dict[str, Any], **wanted: Any) -> None:
    """Refuses what lightly has no counterpart for.

    Raises:
        UserError: a value differs from the one wanted.
    """
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(
                f"lightly's side of the comparison needs {key} = {value!r}, the settings say {found[key]!r}"
            )


def view_options(transform: dict[str, Any]) -> dict[str, Any]:
    """What both of lightly's transforms are told: the two kinds of views, and changes of colour.

    Raises:
        UserError: lightly cannot make such views.
    """
    require(transform, name="multi_crop", blur=None, solarize=0.0)
    views = transform["views"]
    if len(views) != 2 or views[0]["count"] != 2 or any(set(view) != {"count", "size", "scale"} for view in views):
        raise UserError(
            "lightly's side of the comparison needs two kinds of views {count, size, scale}, the first twice"
        )
    jitter = transform["jitter"] or {"p": 0.0}
    return {
        "sizes": [view["size"] for view in views],
        "counts": [view["count"] for view in views],
        "scales": [tuple(view["scale"]) for view in views],
        "shared": {
            "hf_prob": transform["flip"],
            "vf_prob": transform["vertical_flip"],
            "random_gray_scale": transform["grayscale"],
            "cj_prob": jitter.get("p", 1.0),
            # Half the strength of twice the change: DINOTransform ignores another strength in its second view.
            "cj_strength": 0.5,
            "cj_bright": 2 * jitter.get("brightness", 0.0),
            "cj_contrast": 2 * jitter.get("contrast", 0.0),
            "cj_sat": 2 * jitter.get("saturation", 0.0),
            "cj_hue": 2 * jitter.get("hue", 0.0),
        },
    }


class SwAV:
    """SwAV as in lightly's example."""

    def __init__(self, settings: Any, trunk: nn.Module, plan: Plan, normalize: dict[str, list[float]]):
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
        from lightly.transforms import SwaVTransform

        head, loss = options(HEADS, settings.MODEL.HEAD), options(LOSSES, settings.LOSS)
        transform = options(TRANSFORMS, settings.DATA.TRANSFORM)
        require(head, name="swav", batch_norm=True)
        require(loss, queue_length=0, assign_views=None)
        require(transform, interpolation="bilinear")
        views = view_options(transform)
        self.transform = SwaVTransform(
            crop_sizes=tuple(views["sizes"]),
            crop_counts=tuple(views["counts"]),
            crop_min_scales=tuple(low for low, _ in views["scales"]),
            crop_max_scales=tuple(high for _, high in views["scales"]),
            gaussian_blur=0.0,
            normalize=normalize,
            **views["shared"],
        )
        self.encoder = trunk
        self.frozen = _start(plan).steps_of(head["freeze_prototypes"])
        self.head = SwaVProjectionHead(trunk.feature_dim, head["hidden_dim"], head["output_dim"])
        self.prototypes = SwaVPrototypes(head["output_dim"], head["num_prototypes"], self.frozen)
        self.criterion = SwaVLoss(loss["temperature"], loss["sinkhorn_iterations"], loss["epsilon"])
        self.trained = nn.ModuleList([trunk, self.head, self.prototypes])

    def loss(self, views: list[Tensor], progress: Progress) -> Tensor:
        """The objective of one step."""
        self.prototypes.normalize()
        embeddings = [nn.functional.normalize(self.head(self.encoder(view)), dim=1) for view in views]
        scores = [self.prototypes(embedding, progress.step) for embedding in embeddings]
        return self.criterion(scores[:2], scores[2:])

    def before_update(self, progress: Progress) -> None:
        """The prototypes are frozen inside of lightly."""

    def after_update(self, progress: Progress) -> None:
        """Nothing follows."""


class DINO:
    """DINO as in lightly's example; the encoder that is measured is the teacher's."""

    def __init__(self, settings: Any, trunk: nn.Module, plan: Plan, normalize: dict[str, list[float]]):
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead
        from lightly.transforms import DINOTransform

        head, loss = options(HEADS, settings.MODEL.HEAD), options(LOSSES, settings.LOSS)
        teacher, transform = options(TEACHERS, settings.MODEL.TEACHER), options(TRANSFORMS, settings.DATA.TRANSFORM)
        require(head, name="dino", layers=3, activation="gelu", l2_bottleneck=True, predictor_dim=0)
        require(loss, targets="centering", teacher_views=None, temperature_changes="epoch")
        require(teacher, name="ema", copy_buffers=False)
        require(transform, interpolation="bicubic")
        views = view_options(transform)
        self.transform = DINOTransform(
            global_crop_size=views["sizes"][0],
            global_crop_scale=views["scales"][0],
            local_crop_size=views["sizes"][1],
            local_crop_scale=views["scales"][1],
            n_local_views=views["counts"][1],
            gaussian_blur=(0.0, 0.0, 0.0),
            solarization_prob=0.0,
            normalize=normalize,
            **views["shared"],
        )
        self.student, self.encoder = trunk, copy.deepcopy(trunk)
        widths = (trunk.feature_dim, head["hidden_dim"], head["bottleneck_dim"], head["num_prototypes"])
        made = {"batch_norm": head["batch_norm"], "norm_last_layer": head["norm_last_layer"]}
        # The weight norm inside cannot be copied by copy.deepcopy.
        self.head, self.teacher_head = DINOProjectionHead(*widths, **made), DINOProjectionHead(*widths, **made)
        self.teacher_head.load_state_dict(self.head.state_dict())
        nn.ModuleList([self.encoder, self.teacher_head]).requires_grad_(False)
        self.frozen = _start(plan).steps_of(head["freeze_last_layer"])
        self.criterion = DINOLoss(
            head["num_prototypes"],
            warmup_teacher_temp=loss["teacher_temperature_start"],
            teacher_temp=loss["teacher_temperature"],
            warmup_teacher_temp_epochs=round(
                _start(plan).steps_of(loss["teacher_temperature_warmup"]) / plan.steps_per_epoch
            ),
            student_temp=loss["student_temperature"],
            center_momentum=loss["center_momentum"],
        )
        self.momentum = (teacher["momentum"], teacher["final_momentum"])
        self.trained = nn.ModuleList([trunk, self.head])

    def loss(self, views: list[Tensor], progress: Progress) -> Tensor:
        """The objective of one step."""
        with torch.no_grad():
            targets = [self.teacher_head(self.encoder(view)) for view in views[:2]]
        return self.criterion(targets, [self.head(self.student(view)) for view in views], epoch=int(progress.epoch))

    def before_update(self, progress: Progress) -> None:
        """Freezes the last layer at first, as lightly does."""
        if progress.step < self.frozen:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None

    def after_update(self, progress: Progress) -> None:
        """Moves the teacher."""
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(progress.step, progress.total_steps, *self.momentum)
        update_momentum(self.student, self.encoder, momentum)
        update_momentum(self.head, self.teacher_head, momentum)


METHODS: dict[str, Callable[..., Any]] = {"swav": SwAV, "dino": DINO}


def _start(plan: Plan) -> Progress:
    return Progress(0, plan.total_steps, plan.steps_per_epoch)
