"""Labels carried through a video by the similarity of patch features (Jabri et al. 2020; DINO's DAVIS protocol)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, repeat

import torch
from torch import Tensor
from torch.nn import functional

from vissl_like.evaluation.functional.masks import VOID
from vissl_like.utils.errors import UserError

TEMPERATURE = 0.1
MAX_AFFINITIES = 2**23
"""Affinities held at a time: 32 MiB of float32, and about four such tables at the peak."""


def frame_size(height: int, width: int, *, short: int = 480, multiple: int = 64) -> tuple[int, int]:
    """Size at which frames are seen: short side 480, long side in proportion, rounded down to a multiple of 64.

    Returns:
        (height, width). A square frame gets the full height and the rounded width, as in the official script.
    """
    if height > width:
        return short * height // width // multiple * multiple, short
    return short, short * width // height // multiple * multiple


def first_masks(labels: Tensor, height: int, width: int) -> Tensor:
    """One-hot masks of the first frame on the patch grid, by nearest-neighbour reduction.

    Args:
        labels: ``[H, W]`` integers, 0 background; void (255) counts as background.
        height: of the grid (frame height over patch size).
        width: of the grid.

    Returns:
        ``[C, height, width]`` float32, with C = 1 + the largest label. An object too small for the grid has an empty
        mask and is lost.
    """
    labels = torch.where(labels == VOID, 0, labels.long())
    classes = torch.arange(int(labels.max()) + 1, device=labels.device)
    return (resize_nearest(labels, height, width) == classes.view(-1, 1, 1)).float()


def resize_nearest(labels: Tensor, height: int, width: int) -> Tensor:
    """Nearest-neighbour resize ``[..., H, W] -> [..., height, width]`` that takes the same pixels as Pillow.

    That is the pixel under each new pixel's centre; torch's own "nearest" takes the one under its upper left corner.
    """
    rows, columns = _under_centres(labels.shape[-2], height), _under_centres(labels.shape[-1], width)
    return labels[..., rows.to(labels.device), :][..., columns.to(labels.device)]


def _under_centres(length: int, count: int) -> Tensor:
    """``floor((i + 1/2) length / count)`` for i < count, by repeated addition: Pillow's rounding at whole numbers."""
    step = length / count
    places = accumulate(repeat(step, count - 1), initial=step / 2)
    return torch.tensor([min(int(place), length - 1) for place in places])


def propagate(
    target: Tensor,
    context: Tensor,
    masks: Tensor,
    *,
    radius: int | None = 12,
    topk: int = 5,
    temperature: float = TEMPERATURE,
    max_affinities: int = MAX_AFFINITIES,
) -> Tensor:
    """Masks of one frame from those of context frames.

    Each pixel of the target takes the weighted mean of the masks of the context pixels that resemble it most: weight
    ``exp(cosine / temperature)``, within a square window of ``radius`` around its place, the ``topk`` highest of all
    context frames together (with those equal to the last), divided by their sum. Target pixels are handled in
    stretches, against the context rows that their windows reach only.

    Args:
        target: ``[D, h, w]`` features, any length.
        context: ``[n, D, h, w]`` features, any length.
        masks: ``[n, C, h, w]`` in [0, 1].
        radius: of the window in pixels, 2 * radius + 1 wide; None = everywhere (the official script's 0).
        topk: context pixels that count; more than there are takes all.
        temperature: above 0.
        max_affinities: bound on the table of target by context pixels (at least one target pixel is handled).

    Returns:
        ``[C, h, w]`` float32 (or as the masks, where wider).

    Raises:
        UserError: features are not finite.
        ValueError: shapes do not fit.
    """
    frames, dim, height, width = context.shape
    if target.shape != (dim, height, width) or masks.shape[0] != frames or masks.shape[2:] != (height, width):
        raise ValueError(
            f"target {tuple(target.shape)}, context {tuple(context.shape)} and masks {tuple(masks.shape)} must be "
            "[D, h, w], [n, D, h, w] and [n, C, h, w]"
        )
    dtype = torch.promote_types(torch.promote_types(target.dtype, masks.dtype), torch.float32)
    target = functional.normalize(target.to(dtype), dim=0).flatten(1).T  # [h * w, D]
    context, masks = functional.normalize(context.to(dtype), dim=1), masks.to(dtype)
    reach = height if radius is None else radius
    reached_rows = min(height, 2 * reach + 2)  # of a stretch shorter than a row, which may touch two rows
    stretch = min(width, max(1, max_affinities // (frames * reached_rows * width)))
    found = []
    for start in range(0, height * width, stretch):
        pixels = torch.arange(start, min(start + stretch, height * width), device=target.device)
        top = max(0, start // width - reach)
        bottom = min(height, int(pixels[-1]) // width + reach + 1)
        keys = context[:, :, top:bottom].transpose(0, 1).flatten(1)  # [D, n * rows * w]
        cosines = target[pixels] @ keys
        if radius is not None:
            near = _window(pixels, top, bottom, width, radius)  # [m, rows * w], the same for every frame
            cosines = cosines.unflatten(1, (frames, -1)).masked_fill(~near[:, None], -torch.inf).flatten(1)
        weights = _weights(cosines, topk, temperature)
        found.append(weights @ masks[:, :, top:bottom].transpose(0, 1).flatten(1).T)  # [m, C]
    result = torch.cat(found).T.reshape(-1, height, width)
    if result.isnan().any():
        raise UserError("the propagated masks are NaN: look for non-finite features of the video's frames")
    return result


def _window(pixels: Tensor, top: int, bottom: int, width: int, radius: int) -> Tensor:
    """``[m, rows * w]`` bool: context pixels of rows top..bottom-1 no further than the radius in either direction."""
    rows = torch.arange(top, bottom, device=pixels.device)
    columns = torch.arange(width, device=pixels.device)
    near_rows = (pixels[:, None] // width - rows).abs() <= radius  # [m, rows]
    near_columns = (pixels[:, None] % width - columns).abs() <= radius  # [m, w]
    return (near_rows[:, :, None] & near_columns[:, None, :]).flatten(1)


def _weights(cosines: Tensor, topk: int, temperature: float) -> Tensor:
    """``[m, s]``, rows sum to 1: softmax over the highest cosines; -inf marks what is out of reach.

    Softmax equals ``exp(cosine / temperature)`` over the sum, and cannot overflow. Where fewer than k pixels are within
    reach the k-th highest is -inf, and all of them count.
    """
    least = cosines.topk(min(topk, cosines.shape[1]), dim=1).values[:, -1:]
    return torch.softmax(cosines.masked_fill(cosines < least, -torch.inf) / temperature, dim=1)


def propagate_video(
    features: Iterable[Tensor],
    first: Tensor,
    *,
    last_frames: int = 7,
    radius: int | None = 12,
    topk: int = 5,
    temperature: float = TEMPERATURE,
    max_affinities: int = MAX_AFFINITIES,
) -> Iterator[Tensor]:
    """Masks of every frame of a video, from those of the first.

    The context of a frame is the first frame and the ``last_frames`` before it (without the first, which is not counted
    twice), with the soft masks found for them.

    Args:
        features: of every frame in order, ``[D, h, w]``; read one at a time.
        first: ``[C, h, w]``, masks of the first frame (``first_masks``).
        last_frames: frames kept besides the first, at least 0.
        radius: see ``propagate``, like the rest.
        topk: see there.
        temperature: see there.
        max_affinities: see there.

    Yields:
        ``[C, h, w]`` soft masks of each frame, of the first too.
    """
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=last_frames)
    start: Tensor | None = None
    for frame in features:
        if start is None:
            start, masks = frame, first
        else:
            context: Sequence[tuple[Tensor, Tensor]] = [(start, first), *recent]
            masks = propagate(
                frame,
                torch.stack([seen for seen, _ in context]),
                torch.stack([mask for _, mask in context]),
                radius=radius,
                topk=topk,
                temperature=temperature,
                max_affinities=max_affinities,
            )
            recent.append((frame, masks))
        yield masks


def stretch_masks(masks: Tensor) -> Tensor:
    """Every channel scaled to the range 0..1, if its maximum is above 0.

    A channel of one positive value becomes 1 everywhere. The official script divides 0 by 0 there, and its NaN wins
    every comparison; 1 wins or draws every one.

    Args:
        masks: ``[C, H, W]``.
    """
    low, high = masks.amin(dim=(1, 2), keepdim=True), masks.amax(dim=(1, 2), keepdim=True)
    span = high - low
    scaled = torch.where(span > 0, (masks - low) / span.clamp(min=torch.finfo(masks.dtype).tiny), 1.0)
    return torch.where(high > 0, scaled, masks)


def labels_of(masks: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Labels at a frame's original size from soft masks on the patch grid.

    Bilinear enlargement by the patch size, every channel stretched to 0..1, the highest channel (the first of equal
    ones), then nearest-neighbour to the original size.

    Args:
        masks: ``[C, h, w]``.
        patch: pixels of a patch's side.
        height: of the original frame.
        width: of the original frame.

    Returns:
        ``[height, width]`` int64 in 0..C-1.
    """
    large = functional.interpolate(masks[None], scale_factor=float(patch), mode="bilinear", align_corners=False)[0]
    return resize_nearest(stretch_masks(large).argmax(dim=0), height, width)
