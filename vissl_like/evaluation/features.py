"""Features of a frozen network, or of none at all (raw pixels), for every image of a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vissl_like.data.datasets.base import ImageDataset, evenly_spread
from vissl_like.data.loader import iterate_images
from vissl_like.data.normalise import Normalise
from vissl_like.data.transforms.base import ViewTransform
from vissl_like.data.transforms.center import Center
from vissl_like.data.transforms.whole import Longest, Squashed
from vissl_like.distributed import comm, watchdog
from vissl_like.distributed.sharding import whole
from vissl_like.evaluation.base import Features
from vissl_like.evaluation.collect import all_unreadable, collect, gather, labels_of, require_rows
from vissl_like.records import Batch
from vissl_like.utils.errors import UserError

Encode = Callable[[nn.Module, Tensor], Tensor]
Fit = Literal["crop", "squash", "longest"]
Interpolation = Literal["bilinear", "bicubic"]

CALIBRATION_IMAGES = 1024
MOST_BYTES = 2 * 2**30
"""Features of one set above this are held in a file where there is a folder for it."""


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
    folder: Path | None = None,
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
        folder: features of more than ``MOST_BYTES`` are not held in memory but in a file here, mapped, and with
            ``share`` the main process alone has them, the others get no rows. The file goes when the features do,
            unless a store in this folder takes it. None holds everything in memory.

    Raises:
        UserError: no image can be read, features are not finite, or the file cannot be written; with ``share`` every
            process raises what one does.
    """
    normalise = Normalise(dataset.mean, dataset.std, torch.device(device), channels_last)

    def take(batch: Batch) -> Tensor:
        watchdog.go_on("measuring features")  # amid a training, where silence would be taken for a stall
        images = normalise(batch.views[0])
        return (trunk(images) if encode is None else encode(trunk, images)).float().cpu()

    target, sharing = torch.device(device), share and comm.active()
    order = evenly_spread(len(dataset), len(dataset) if max_images is None else max_images).tolist()
    own = order[comm.rank() :: comm.world_size()] if sharing else order
    batches = _batches(dataset, image_size, resize, fit, interpolation, batch_size, workers, plugins, start_method, own)
    found: Features | None = None
    failure: str | None = None
    try:
        with whole(trunk), frozen(trunk), untouched_randomness(target):
            found = collect(batches, take, dataset, folder, MOST_BYTES // (comm.local_world_size() if sharing else 1))
    except UserError as error:
        if not sharing:
            raise
        # One process of several may have unreadable images only: it brings no rows then, and the run goes on.
        skipped = all_unreadable(dataset, own)
        if skipped is None:
            failure = str(error)
        else:
            nothing = torch.empty(0, dtype=torch.int64)
            found = Features(torch.empty(0, 0), labels_of(dataset, nothing), nothing, skipped)
    if sharing:
        return gather(found, failure, dataset, target, folder, MOST_BYTES)
    assert found is not None
    require_rows(len(found), found.skipped)
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
    order = evenly_spread(len(dataset), len(dataset) if max_images is None else max_images).tolist()
    batches = _batches(
        dataset, image_size, resize, fit, interpolation, batch_size, workers, plugins, start_method, order
    )
    found = collect(batches, lambda batch: batch.views[0].flatten(1).float() / 255, dataset, None, MOST_BYTES)
    require_rows(len(found), found.skipped)
    return found


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
