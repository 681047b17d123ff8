"""Any image model of the timm package (github.com/huggingface/pytorch-image-models) as a trunk, under timm's key names.

A state dict of ``timm.create_model(model, num_classes=0)`` loads as it is, and timm loads a trained backbone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.registry import TRUNKS
from vissl_like.utils.errors import UserError, nearest

SET_BY_US = {
    "in_chans": "it follows the data",
    "num_classes": "a trunk has no classifier",
    "pretrained": "nothing is downloaded; give a weights file as WEIGHTS",
    "checkpoint_path": "give a weights file as WEIGHTS",
}
"""Arguments of ``timm.create_model`` that are not options of a trunk, and why."""


@TRUNKS.register("timm")
class TimmTrunk(nn.Module):
    """A network of the timm package without its classifier, randomly initialised.

    Options:
        model: timm's name without a tag, such as "convnext_tiny"; no weights are downloaded
        options: further arguments of timm.create_model, such as drop_path_rate, img_size or dynamic_img_size
    """

    def __init__(self, channels: int, *, model: str, options: dict[str, Any] | None = None):
        super().__init__()
        options = dict(options or {})
        self.model = model
        self.net = _create(model, channels, options)
        self.feature_dim = self._probe(channels, options.get("img_size"))
        # Keys are those of the network itself, so that files can be exchanged with timm.
        self.register_state_dict_post_hook(_hide_wrapper)
        self.register_load_state_dict_pre_hook(_restore_wrapper)

    def _probe(self, channels: int, img_size: Any) -> int:
        """F, from a run on the meta device (shapes only): ``num_features`` is not what many models give.

        A copy runs, because some models keep tensors of the last size and device that they saw.
        """
        usual: Any = self.net.pretrained_cfg
        given = img_size if img_size is not None else usual["input_size"][-2:]
        height, width = (given, given) if isinstance(given, int) else given
        copied = copy.deepcopy(self.net).eval().to("meta")
        try:
            with torch.no_grad():
                return self._run(copied, torch.empty(2, channels, height, width, device="meta")).shape[1]
        except UserError:
            raise
        except Exception as error:  # whatever an unlucky mix of options leads to, inside another package
            raise UserError(
                f"timm's {self.model!r} with these options fails on {height} x {width} pixels: {_short(error)}"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features: ``[n, C, H, W] -> [n, F]``.

        Raises:
            UserError: the model does not take images of this size, or gives something else while training.
        """
        return self._run(self.net, images)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one place to the next in the map after each stage; empty where the model gives no maps."""
        stages: Any = getattr(self.net, "feature_info", None)
        if not callable(getattr(self.net, "forward_intermediates", None)) or not isinstance(stages, list):
            return ()
        return tuple(int(stage["reduction"]) for stage in stages)

    def stage_maps(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Maps after some stages in one pass: ``[n, C, H, W] -> [n, D, H / stride, W / stride]`` each.

        A transformer's stages are its blocks, its maps the patch tokens through the last norm.

        Args:
            images: ``[n, C, H, W]``.
            stages: increasing, 1 to the number of ``strides``.

        Raises:
            UserError: the model does not take images of this size.
        """
        net: Any = self.net
        indices = [stage - 1 for stage in stages]
        try:
            return list(net.forward_intermediates(images, indices=indices, norm=True, intermediates_only=True))
        except AssertionError as error:
            raise self._wrong_size(images, error) from error

    def stage_map(self, images: Tensor, stages: int) -> Tensor:
        """The map after the first stages; see ``stage_maps``."""
        return self.stage_maps(images, [stages])[0]

    def _wrong_size(self, images: Tensor, error: AssertionError) -> UserError:
        height, width = images.shape[-2:]
        return UserError(
            f"timm's {self.model!r} does not take images of {height} x {width} pixels: {error} Tell it the one "
            "size of all views as MODEL.TRUNK.options.img_size; or, for views of several sizes, set "
            "options.dynamic_img_size (ViTs) to true or options.strict_img_size (Swins) to false; or take a "
            "convolutional model"
        )

    def _run(self, net: nn.Module, images: Tensor) -> Tensor:
        try:
            features = net(images)
        except AssertionError as error:
            raise self._wrong_size(images, error) from error
        if not isinstance(features, Tensor) or features.shape[:-1] != images.shape[:1]:
            got = f"shape {list(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise UserError(
                f"timm's {self.model!r} gives {got} for {len(images)} images; a trunk gives [images, features]. Leave "
                "out options that change its output (global_pool, features_only, ...), or take another model"
            )
        return features


def _create(model: str, channels: int, options: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f'the trunk "timm" needs the timm package ({error}): pip install "vissl_like[timm]"') from error
    known = timm.list_models()
    if model not in known:
        raise UserError(
            f"MODEL.TRUNK.model: timm {timm.__version__} has no model {model!r}.{nearest(model, known)} It has "
            f"{len(known)}, written without the tag of a set of weights; timm.list_models('*vit*') searches them"
        )
    for name in options:
        if name in SET_BY_US:
            raise UserError(f"MODEL.TRUNK.options.{name} cannot be given: {SET_BY_US[name]}")
    try:
        return timm.create_model(model, pretrained=False, num_classes=0, in_chans=channels, **options)
    except Exception as error:  # as above: the options are passed on unchecked
        raise UserError(
            f"timm cannot build {model!r} for {channels} channels with MODEL.TRUNK.options {options}: {_short(error)}. "
            "Each model has options of its own"
        ) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.:')}"


def _hide_wrapper(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    inner = f"{prefix}net."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _restore_wrapper(module: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}net.{key.removeprefix(prefix)}"] = state.pop(key)
