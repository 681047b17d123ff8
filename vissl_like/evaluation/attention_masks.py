"""How well a transformer's attention covers objects (Caron et al. 2021, arXiv:2104.14294, figure 4, on VOC12).

For each head of the last block, the patches that together hold a share of the class token's attention are a mask; an
object's score is the Jaccard index of the mask that fits it best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vissl_like.data.readers.masks import read_mask
from vissl_like.data.readers.voc import VocMasks, read_voc_masks
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Evaluation, EvaluationResult, Features
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.functional.label_propagation import resize_nearest
from vissl_like.evaluation.functional.masks import best_heads, enlarge, jaccard, keep_mass, split_objects
from vissl_like.evaluation.subjects import Encoding
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Fraction

WHOLE = "whole image"


@EVALUATIONS.register("attention_masks")
class AttentionMasksEvaluation(Evaluation):
    """Jaccard index of attention masks and objects: the best head for each object, its mean over an image, over images.

    Pixels that belong to no object (255, borders) count as background. The floor takes the whole image for the mask of
    every object.

    Options:
        path: folder of a VOCdevkit, with SegmentationObject and ImageSets/Segmentation
        year: of VOC; the folder is VOC<year>
        split: name of the list in ImageSets/Segmentation
        image_size: side in pixels of the square that each image is squeezed into, made whole patches; masks go back to
            the image's own size
        mass: share of a head's attention that its mask holds, in (0, 1]
    """

    def __init__(
        self, *, path: str, year: Count = 2012, split: str = "val", image_size: Count = 480, mass: Fraction = 0.6
    ):
        if mass <= 0:
            raise UserError(f"EVALUATION.mass is {mass:g}; it must be above 0 (0.6 is usual), else masks are empty")
        self.path, self.year, self.split = path, year, split
        self.image_size, self.mass = image_size, mass

    def run(self, bench: Bench) -> EvaluationResult | None:
        """Takes the attention of all images, then scores it on the main process; see ``Evaluation``.

        Raises:
            UserError: the network has no attention of a class token, or an image's masks show no object.
        """
        entries = self._entries()
        trunk = _transformer_of(bench)
        rows, columns = trunk.grid(self.image_size, self.image_size)
        patch = int(trunk.patch_size)
        encoding = Encoding("class token's attention in the last block", class_attention)
        found = bench.features(
            bench.images([entry.image for entry in entries]),
            encoding,
            image_size=rows * patch,
            resize=None,
            fit="squash",
            batch_size=1,  # the whole table of attention of an image has (480 / 8)^4 values for each head
        )
        if not comm.is_main():
            return None
        result = self._scored(entries, found, (rows, columns), patch)
        result.skipped = found.skipped
        return result

    def identity(self, bench: Bench) -> str:
        """The images and masks of the split."""
        files = [file for entry in self._entries() for file in (entry.image, entry.object_mask)]
        return bench.images(files).identity

    def _entries(self) -> list[VocMasks]:
        return read_voc_masks(self.path, self.split, year=str(self.year))

    def _scored(self, entries: list[VocMasks], found: Features, grid: tuple[int, int], patch: int) -> EvaluationResult:
        heads = found.features.shape[1] // (grid[0] * grid[1])
        chosen = np.zeros(heads, dtype=np.int64)
        scores, whole, kept = [], [], []
        for attention, index in zip(found.features, found.indices.tolist(), strict=True):
            objects, _ = split_objects(torch.from_numpy(read_mask(entries[index].object_mask)))
            if not len(objects):
                continue
            masks = attention_masks(attention.view(heads, *grid), self.mass, patch, *objects.shape[1:])
            fits, best = best_heads(masks, objects)
            chosen += np.bincount(best.numpy(), minlength=heads)
            scores.append(float(fits.mean()))
            whole.append(float(jaccard(objects, torch.ones_like(objects)).mean()))
            kept.append(index)
        if not kept:
            raise UserError(f"none of the {len(found)} masks of the split {self.split!r} shows an object")
        empty = len(found) - len(kept)
        result, floor = _mean("attention_masks", scores, kept), _mean(WHOLE, whole, kept)
        result.details = {
            "mass": self.mass,
            "image_size": grid[0] * patch,
            "patch": patch,
            "heads": heads,
            "objects": int(chosen.sum()),
            "year": self.year,
            "split": self.split,
            "objects_by_head": chosen.tolist(),
            "notices": [f"{empty} image(s) without an object are left out"] * bool(empty),
        }
        result.chance = floor
        return result


def class_attention(trunk: nn.Module, images: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block, ``[n, C, H, W] -> [n, heads * patches]``."""
    network: Any = trunk
    return network.last_attention(images)[:, :, 0, 1:].flatten(1)


def attention_masks(attention: Tensor, mass: float, patch: int, height: int, width: int) -> Tensor:
    """The mask of each head at an image's own size, ``[heads, height, width]`` bool.

    Args:
        attention: ``[heads, rows, columns]``, >= 0.
        mass: share of each head's sum that is kept, in (0, 1].
        patch: pixels of a patch's side, in the square that the network saw.
        height, width: of the image, in pixels; nearest-neighbour.
    """
    kept = keep_mass(attention.flatten(1), mass).view_as(attention)
    return resize_nearest(enlarge(kept, patch), height, width)


def _transformer_of(bench: Bench) -> Any:
    if bench.subject.network is None:
        raise UserError(f"{bench.subject.name} have no attention that could be measured")
    trunk = bench.subject.network()
    if not callable(getattr(trunk, "last_attention", None)):
        raise UserError(
            f"the network {type(trunk).__name__} has no attention of a class token to measure. Only vision "
            "transformers do: train with config.MODEL.TRUNK.name=vit, or name such weights in EVALUATE.weights"
        )
    return trunk


def _mean(name: str, scores: list[float], images: list[int]) -> EvaluationResult:
    """Percentages; the mean over images."""
    items = 100.0 * np.array(scores)
    found = EvaluationResult(name, {"jaccard": float(items.mean())}, main="jaccard", items=items)
    found.item_ids, found.test_images = np.array(images, dtype=np.int64), len(images)
    return found
