"""Features of a frozen network, or of none at all (raw pixels), for every image of a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from vissl_like.data.datasets.base import ImageDataset, evenly_spread
from vissl_like.data.loader import iterate_images
from vissl_like.data.normalise import Normalise
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.transforms.center import Center
from vissl_like.data.transforms.whole import Longest, Squashed
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Features
from vissl_like.records import Batch, Skipped
from vissl_like.utils.errors import UserError

Encode = Callable[[nn.Module, Tensor], Tensor]
Fit = Literal["crop", "squash", "longest"]
Interpolation = Literal["bilinear", "bicubic"]

CALIBRATION_IMAGES = 1024
GATHER_ROWS = 4096


def extract_features(
    trunk: nn.Module,
    dataset: ImageDataset,
    *,
    image_size: int,
    resize: int | None = None,
    fit: Fit = "crop",
    interpolation: Interpolation = "bilinear",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    plugins: Iterable[str] = (),
    start_method: str | None = None,
    max_images: int | None = None,
    channels_last: bool = False,
    encode: Encode | None = None,
    share: bool = False,
) -> Features:
    """Features of a dataset's images in float32, without augmentation, in the dataset's order.

    The network is run in eval mode and comes back as it was: modes, buffers and random states are untouched.

    Args:
        trunk: ``[n, C, H, W] -> [n, F]``, on ``device`` already.
        dataset: images; its mean and std normalise them.
        image_size: side of the square, in pixels.
        resize: shorter side before cutting, in pixels; None for ``image_size``.
        fit: how images become squares: ``crop`` cuts out the centre, ``squash`` changes the shape; ``longest`` leaves
            the shape and makes the longer side ``image_size`` at most, one image per forward.
        interpolation: filter of the resizing, with antialiasing (``longest`` has its own).
        batch_size: images per forward.
        device: where the network is.
        workers: loading processes.
        plugins: what they must load first.
        start_method: how they start; None for the platform's way.
        max_images: use so many images, evenly spread over the dataset, always the same ones.
        channels_last: memory order of the images.
        encode: what is taken of the network, ``(trunk, images [n, C, H, W]) -> [n, F]``; None for its output.
        share: the processes of the run divide the images among them and each returns all features; every process must
            call this then.

    Raises:
        UserError: no image can be read, or features are not finite.
    """
    normalise = Normalise(dataset.mean, dataset.std, torch.device(device), channels_last)

    def take(batch: Batch) -> Tensor:
        images = normalise(batch.views[0])
        return (trunk(images) if encode is None else encode(trunk, images)).float().cpu()

    batches = _batches(
        dataset,
        image_size,
        resize,
        fit,
        interpolation,
        batch_size,
        workers,
        plugins,
        start_method,
        _order(dataset, max_images, share),
    )
    with frozen(trunk), untouched_randomness(torch.device(device)):
        found = _collect(batches, take)
    if share and comm.active():
        found = _gather(found, torch.device(device))
    return found


def raw_pixel_features(
    dataset: ImageDataset,
    *,
    image_size: int,
    resize: int | None = None,
    fit: Fit = "crop",
    interpolation: Interpolation = "bilinear",
    batch_size: int = 64,
    workers: int = 0,
    plugins: Iterable[str] = (),
    start_method: str | None = None,
    max_images: int | None = None,
) -> Features:
    """The pixels themselves, ``[N, C * image_size * image_size]`` in [0, 1]: the floor that any feature must beat.

    Arguments as in ``extract_features``.

    Raises:
        UserError: no image can be read.
    """
    batches = _batches(
        dataset,
        image_size,
        resize,
        fit,
        interpolation,
        batch_size,
        workers,
        plugins,
        start_method,
        _order(dataset, max_images, share=False),
    )
    return _collect(batches, lambda batch: batch.views[0].flatten(1).float() / 255)


def calibrate_batch_norm(
    trunk: nn.Module,
    dataset: ImageDataset,
    *,
    image_size: int,
    resize: int | None = None,
    fit: Fit = "crop",
    interpolation: Interpolation = "bilinear",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    plugins: Iterable[str] = (),
    start_method: str | None = None,
    max_images: int = CALIBRATION_IMAGES,
    channels_last: bool = False,
    seed: int = 0,
) -> int:
    """Sets the statistics of every BatchNorm to those of the data, in place.

    It makes an untrained network a fair floor. Population statistics over shuffled batches ("Rethinking Batch in
    BatchNorm", arXiv:2105.07576, section 3). Weights, modes and random states are untouched. Other arguments as in
    ``extract_features``.

    Args:
        seed: of the order of the images.

    Returns:
        images used; 0 if the network has no BatchNorm that keeps statistics.

    Raises:
        UserError: fewer than two images can be read.
    """
    norms = [module for module in trunk.modules() if _keeps_statistics(module)]
    if not norms:
        return 0
    order = torch.from_numpy(evenly_spread(len(dataset), max_images))
    order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
    views = [
        batch.views[0].clone()
        for batch in _batches(
            dataset, image_size, resize, fit, interpolation, batch_size, workers, plugins, start_method, order.tolist()
        )
    ]
    # One image has no variance over the batch where the map is 1 x 1.
    views = [view for view in views if len(view) > 1]
    if not views:
        raise UserError("BatchNorm statistics need at least two readable images in a batch of at least two")
    normalise = Normalise(dataset.mean, dataset.std, torch.device(device), channels_last)
    update = _precise_statistics()
    with frozen(trunk), untouched_randomness(torch.device(device)):
        for norm in norms:
            norm.train()
        update(trunk, (normalise(view) for view in views), num_iters=len(views))
    return sum(len(view) for view in views)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; every submodule has its own mode again afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def untouched_randomness(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, torch's generators of the CPU and of ``device`` are as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats


def _precise_statistics() -> Callable[..., None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
        from fvcore.nn.precise_bn import update_bn_stats
    return update_bn_stats


def _order(dataset: ImageDataset, max_images: int | None, share: bool) -> list[int]:
    order = evenly_spread(len(dataset), len(dataset) if max_images is None else max_images)
    return (order[comm.rank() :: comm.world_size()] if share else order).tolist()


def _batches(
    dataset: ImageDataset,
    image_size: int,
    resize: int | None,
    fit: Fit,
    interpolation: Interpolation,
    batch_size: int,
    workers: int,
    plugins: Iterable[str],
    start_method: str | None,
    order: list[int],
) -> Iterator[Batch]:
    transform: ViewTransform
    if fit == "crop":
        transform = Center(dataset.channels, size=image_size, resize=resize, interpolation=interpolation)
    elif fit == "squash":
        transform = Squashed(dataset.channels, image_size, resize, interpolation)
    else:
        transform, batch_size = Longest(dataset.channels, image_size), 1
    return iterate_images(
        dataset, transform, batch_size, workers, plugins=plugins, indices=order, start_method=start_method
    )


def _collect(batches: Iterable[Batch], encode: Callable[[Batch], Tensor]) -> Features:
    features, labels, indices = [], [], []
    skipped: list[Skipped] = []
    with torch.inference_mode():
        for batch in batches:
            features.append(encode(batch))
            indices.append(batch.index)
            skipped += batch.skipped
            if batch.label is not None:
                labels.append(batch.label)
    if not features:
        raise UserError("there is no image to take features of")
    # Outside of inference mode, so that the joined tensors are ordinary ones.
    joined, index = torch.cat(features), torch.cat(indices)
    broken = ~joined.isfinite().all(dim=1)
    if broken.any():
        raise UserError(
            f"the features of {int(broken.sum())} of {len(joined)} images are not finite, the first is image "
            f"{int(index[broken][0])} of the dataset. The weights are broken (a diverged run?); use an earlier "
            "checkpoint."
        )
    return Features(joined, torch.cat(labels) if labels else None, index, skipped)


def _gather(local: Features, device: torch.device) -> Features:
    """All processes' rows in the dataset's order."""
    index = _gather_rows(local.indices, device)
    order = index.argsort()
    labels = None if local.labels is None else _gather_rows(local.labels, device)[order]
    skipped = [item for part in comm.all_gather_object(local.skipped) for item in part]
    return Features(_gather_rows(local.features, device)[order], labels, index[order], skipped)


def _gather_rows(rows: Tensor, device: torch.device) -> Tensor:
    """Rows of all processes on the CPU, which may have different numbers of them; a bounded part at a time."""
    counts = comm.all_gather_object(len(rows))
    parts: list[list[Tensor]] = [[] for _ in counts]
    for start in range(0, max(counts), GATHER_ROWS):
        height = min(GATHER_ROWS, max(counts) - start)
        padded = rows.new_zeros(height, *rows.shape[1:])
        own = rows[start : start + height]
        padded[: len(own)] = own
        gathered = comm.all_gather(padded.to(device)).cpu().split(height)
        for part, block, count in zip(parts, gathered, counts, strict=True):
            part.append(block[: max(0, min(height, count - start))])
    return torch.cat([block for part in parts for block in part])
