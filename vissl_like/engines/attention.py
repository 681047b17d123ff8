"""The attention engine: pictures of where a trained vision transformer looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from vissl_like.data.datasets.base import ImageDataset, UnreadableImage, evenly_spread
from vissl_like.data.normalise import Normalise
from vissl_like.data.transforms.pixels import to_array
from vissl_like.distributed import comm
from vissl_like.engines.train import prepare_folder
from vissl_like.engines.trained import Weights, build_trained, find_weights, look_of, open_source, trunk_section
from vissl_like.evaluation.features import frozen
from vissl_like.registry import ENGINES
from vissl_like.trainer.build import choose_device
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import write_atomic
from vissl_like.utils.kinds import Count, Fraction
from vissl_like.visualize.attention import attention_sheet, class_attention

FOLDER = "attention"
SETS = ("PROBE_TEST", "PROBE_TRAIN", "TRAIN")
"""Sections of DATA whose images are shown: those of the first that is given."""


@ENGINES.register("attention")
class AttentionEngine:
    """Draws the attention maps of a trained vision transformer for some images, whatever size it was trained at.

    Takes the newest checkpoint of OUTPUT_DIR or EVALUATE.weights, and images of DATA.PROBE_TEST (else PROBE_TRAIN, else
    TRAIN), evenly spread. Each is scaled to cover the wanted rectangle and its middle cut out, so that proportions
    stay; the rectangle is made whole patches. Writes OUTPUT_DIR/attention/00.png, 01.png, ...

    Options:
        images: how many images
        height: of what the network is given, in pixels; null for EVALUATE.image_size
        width: of what the network is given, in pixels; null for the height
        mass: share of a head's attention that its mask keeps
    """

    required_settings = ()
    used_sections = ("DATA", "MODEL", "DISTRIBUTED", "EVALUATE", "TRAIN")

    def __init__(
        self,
        loaded: Any,
        *,
        images: Count = 4,
        height: Count | None = None,
        width: Count | None = None,
        mass: Fraction = 0.6,
    ):
        self.loaded = loaded
        self.images, self.mass = images, mass
        self.height = loaded.resolved.EVALUATE.image_size if height is None else height
        self.width = self.height if width is None else width

    def run(self) -> int:
        """Draws the pictures; one process is enough.

        Returns:
            0.

        Raises:
            UserError: no images, no weights, a network without attention maps, or OUTPUT_DIR cannot be written.
        """
        if not comm.is_main():
            return 0
        settings = self.loaded.resolved
        section = next((name for name in SETS if settings.DATA[name] is not None), None)
        if section is None:
            raise UserError(
                "attention maps need images: give config.DATA.PROBE_TEST (or PROBE_TRAIN, or TRAIN) a folder of them"
            )
        output_dir = prepare_folder(settings.OUTPUT_DIR)
        weights = find_weights(settings, output_dir, alone=True)
        look = look_of(settings, weights)
        dataset = open_source(settings.DATA[section], look).dataset
        trunk, remarks = build_trained(settings, weights, look)
        if not callable(getattr(trunk, "last_attention", None)):
            raise UserError(
                f"the network {trunk_section(settings, weights)['name']!r} gives no attention maps. Only vision "
                "transformers do: train with config.MODEL.TRUNK.name=vit, or name such weights in EVALUATE.weights"
            )
        height, width, rounded = whole_patches(trunk, self.height, self.width)
        print("\n".join([*remarks, *rounded]), flush=True)
        folder = prepare_folder(str(output_dir / FOLDER))
        count = self._draw(trunk.to(choose_device(settings)), dataset, folder, (height, width), step_of(weights))
        print(f"attention maps of {count} image(s) of DATA.{section}, {width} x {height} pixels: {folder}", flush=True)
        return 0

    def _draw(self, trunk: nn.Module, dataset: ImageDataset, folder: Path, size: tuple[int, int], of_what: str) -> int:
        """Writes a picture for each image, and returns how many.

        Raises:
            UserError: no image can be read, or the folder cannot be written.
        """
        normalise = Normalise(dataset.mean, dataset.std, next(trunk.parameters()).device)
        count = 0
        with frozen(trunk):
            for index in evenly_spread(len(dataset), self.images).tolist():
                try:
                    photo = ImageOps.fit(dataset.read(index), size[::-1], Image.Resampling.BICUBIC)
                except UnreadableImage as error:
                    print(f"left out: {error}", flush=True)
                    continue
                pixels = torch.from_numpy(to_array(photo)).unsqueeze(0)
                attention = class_attention(trunk, normalise(pixels)[0])
                if not np.isfinite(attention).all():
                    raise UserError(
                        f"the attention for {dataset.path(index)} is not finite. The weights are broken (a diverged "
                        "run?); use an earlier checkpoint."
                    )
                name = f"{Path(dataset.path(index)).name}, {of_what}"
                file = folder / f"{count:02d}.png"
                try:
                    write_atomic(file, attention_sheet(photo, attention, self.mass, name).png)
                except OSError as error:
                    raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
                count += 1
        if not count:
            raise UserError("none of the images chosen for attention maps can be read")
        return count


def whole_patches(trunk: nn.Module, height: int, width: int) -> tuple[int, int, list[str]]:
    """Height and width made whole patches, and a remark if that changed them.

    Raises:
        UserError: not even one patch fits.
    """
    rows, columns = trunk.grid(height, width)  # type: ignore[operator]
    patch = int(trunk.patch_size)  # type: ignore[arg-type]
    whole = (rows * patch, columns * patch)
    if whole == (height, width):
        return height, width, []
    remark = f"images are {whole[1]} x {whole[0]} pixels, not {width} x {height}: whole patches of {patch}"
    return (*whole, [remark])


def step_of(weights: Weights) -> str:
    """Which weights, in a few words."""
    step = weights.record.get("step")
    return weights.path.name if step is None else f"step {step}"
