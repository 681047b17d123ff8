"""Masks against masks: attention maps on VOC12 (Caron et al. 2021, figure 4), and DAVIS' measures J and F."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vissl_like.utils.errors import UserError

VOID = 255
"""Label of pixels that belong to no object in VOC's and DAVIS' annotations."""
BOUNDARY_TOLERANCE = 0.008
FRAMES_AT_A_TIME = 16


def keep_mass(attention: Tensor, share: float) -> Tensor:
    """The most attended positions, which together hold a share of the attention.

    Values are sorted ascending, divided by their sum and added up; a position is kept where this sum exceeds
    ``1 - share``. So the kept mass is at least the share, and the position in which the border falls is kept. Of equal
    values, the later position counts as the larger.

    Args:
        attention: ``[..., T]``, values >= 0 (a head's attention of the class token to the patches).
        share: of the mass to keep, in (0, 1]; 0.6 in the paper.

    Returns:
        ``[..., T]`` bool; all False where a row is all zero.

    Raises:
        ValueError: the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of the mass to keep must lie in (0, 1], got {share}")
    wide = attention.to(torch.promote_types(attention.dtype, torch.float32))
    values, order = wide.sort(dim=-1, stable=True)
    values = values / values.sum(dim=-1, keepdim=True)  # 0 / 0 is NaN, which exceeds nothing
    kept = values.cumsum(dim=-1) > 1 - share
    return torch.zeros_like(kept).scatter_(-1, order, kept)


def enlarge(masks: Tensor, factor: int) -> Tensor:
    """Nearest-neighbour enlargement of patch masks ``[..., h, w] -> [..., h * factor, w * factor]``."""
    return masks.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def split_objects(labels: Tensor) -> tuple[Tensor, list[int]]:
    """One mask for each object of an annotation.

    Args:
        labels: ``[H, W]`` integers: 0 background, 255 void, anything else an object.

    Returns:
        masks ``[o, H, W]`` bool and the labels that they belong to, increasing.
    """
    numbers = [int(label) for label in labels.unique() if int(label) not in (0, VOID)]
    return labels == torch.tensor(numbers, dtype=labels.dtype, device=labels.device).view(-1, 1, 1), numbers


def jaccard(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of masks; 1 where both are empty.

    Args:
        first: ``[..., H, W]`` bool.
        second: the same, or a shape that spreads to it.

    Returns:
        ``[...]`` float64 in [0, 1].
    """
    first, second = first.bool(), second.bool()
    union = (first | second).sum(dim=(-2, -1))
    overlap = (first & second).sum(dim=(-2, -1)).double()
    return torch.where(union == 0, torch.ones_like(overlap), overlap / union.clamp(min=1))


def best_heads(heads: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """For each object the head whose mask fits best; several objects may choose the same head.

    An image's score is the mean of the first result, a data set's the mean over images.

    Args:
        heads: ``[h, H, W]`` bool.
        objects: ``[o, H, W]`` bool.

    Returns:
        Jaccard of the best head ``[o]`` float64, and its number ``[o]`` int64 (the first of equal ones).
    """
    scores = jaccard(objects[:, None], heads[None])  # [o, h]
    best = scores.argmax(dim=1)
    return scores.gather(1, best[:, None]).squeeze(1), best


def boundary(masks: Tensor) -> Tensor:
    """Border pixels of masks: those that differ from the pixel to the right, below, or right below.

    The rule of ``seg2bmap`` (Martin et al.): the border lies inside or outside, one pixel wide. The last row looks to
    the right only, the last column below only, the last pixel is never border.

    Args:
        masks: ``[..., H, W]`` bool.

    Returns:
        the same shape, bool.
    """
    masks = masks.bool()
    right = torch.cat([masks[..., :, 1:], masks[..., :, -1:]], dim=-1)  # a border pixel is its own neighbour
    below = torch.cat([masks[..., 1:, :], masks[..., -1:, :]], dim=-2)
    right_below = torch.cat([right[..., 1:, :], right[..., -1:, :]], dim=-2)
    return (masks ^ right) | (masks ^ below) | (masks ^ right_below)


def dilate(masks: Tensor, radius: int) -> Tensor:
    """Masks grown by a disk: a pixel is set where a set one has ``dx^2 + dy^2 <= radius^2``.

    Args:
        masks: ``[n, H, W]`` bool.
        radius: in pixels, at least 0.
    """
    values, height = masks.float()[:, None], masks.shape[1]
    grown = torch.zeros_like(masks, dtype=torch.bool)
    for dy in range(min(radius, height - 1) + 1):
        half = math.isqrt(radius * radius - dy * dy)  # the disk's row at this distance is 2 * half + 1 wide
        wide = functional.max_pool2d(values, (1, 2 * half + 1), stride=1, padding=(0, half))[:, 0] > 0
        grown[:, dy:] |= wide[:, : height - dy]
        grown[:, : height - dy] |= wide[:, dy:]
    return grown


def boundary_f(predicted: Tensor, truth: Tensor, tolerance: float = BOUNDARY_TOLERANCE) -> Tensor:
    """DAVIS' boundary measure F (Perazzi et al. 2016): harmonic mean of precision and recall of border pixels.

    A border pixel is right where the other mask's border lies within a disk of radius ``ceil(tolerance * diagonal)``.
    Without any border of one kind, the share of its right pixels counts as 1 and the other's as 0; without both, F = 1.

    Args:
        predicted: ``[n, H, W]`` bool.
        truth: ``[n, H, W]`` bool.
        tolerance: share of the image's diagonal in pixels.

    Returns:
        ``[n]`` float64 in [0, 1].
    """
    radius = math.ceil(tolerance * math.hypot(*truth.shape[-2:]))
    own, true = boundary(predicted), boundary(truth)
    precision = _share_within(own, dilate(true, radius))
    recall = _share_within(true, dilate(own, radius))
    # Where one border is empty, the other's pixels find nothing near them: its share is 0 without a case of its own.
    both = precision + recall
    return torch.where(both == 0, torch.zeros_like(both), 2 * precision * recall / both.clamp(min=1e-12))


def _share_within(border: Tensor, near: Tensor) -> Tensor:
    """Share of border pixels that are near, 1 where there is no border; ``[n]`` float64."""
    count = border.sum(dim=(-2, -1))
    right = (border & near).sum(dim=(-2, -1)).double()
    return torch.where(count == 0, torch.ones_like(right), right / count.clamp(min=1))


@dataclass(frozen=True)
class VideoScores:
    """Scores of one video's objects.

    Attributes:
        objects: labels of the o objects.
        region: J ``[o, T - 2]`` float64 by frame, without the first and the last.
        boundary: F, likewise.
    """

    objects: list[int]
    region: Tensor
    boundary: Tensor


def score_video(predicted: Tensor, truth: Tensor) -> VideoScores:
    """J and F of every object in a video, as the DAVIS-2017 evaluation (semi-supervised) counts them.

    The first frame is given and the last is left out by the benchmark. Objects are those annotated in the first frame;
    void (255) is background. An object that is neither annotated nor predicted in a frame scores 1.

    Args:
        predicted: ``[T, H, W]`` integer labels, 0 background.
        truth: ``[T, H, W]`` likewise; T >= 3.

    Raises:
        UserError: the shapes differ, there are fewer than 3 frames, or the first frame shows no object.
    """
    if predicted.shape != truth.shape or truth.ndim != 3:
        raise UserError(
            f"predicted labels have the shape {tuple(predicted.shape)}, the annotations {tuple(truth.shape)}: they "
            "must be [frames, height, width] alike. Labels are scored at the annotations' size."
        )
    if len(truth) < 3:
        raise UserError(f"a video of {len(truth)} frames cannot be scored: the first and the last do not count")
    _, objects = split_objects(truth[0])
    if not objects:
        raise UserError("the first frame's annotation shows no object (labels other than 0 and 255), so none is scored")
    region, border = [], []
    for label in objects:
        pairs = [
            (own == label, true == label)
            for own, true in zip(predicted[1:-1].split(FRAMES_AT_A_TIME), truth[1:-1].split(FRAMES_AT_A_TIME))
        ]
        region.append(torch.cat([jaccard(own, true) for own, true in pairs]))
        border.append(torch.cat([boundary_f(own, true) for own, true in pairs]))
    return VideoScores(objects, torch.stack(region), torch.stack(border))


def mean_over_objects(videos: Sequence[VideoScores]) -> dict[str, float]:
    """``J``, ``F`` and their mean ``J&F`` in [0, 1]: mean over frames, then over the objects of all videos alike."""
    region = torch.cat([video.region.mean(dim=1) for video in videos]).mean()
    border = torch.cat([video.boundary.mean(dim=1) for video in videos]).mean()
    return {"J": float(region), "F": float(border), "J&F": float((region + border) / 2)}
