"""What gives features: the trained network, and the floors that it must beat."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Features
from vissl_like.evaluation.features import (
    Encode,
    Fit,
    Interpolation,
    calibrate_batch_norm,
    extract_features,
    raw_pixel_features,
    untouched_randomness,
)
from vissl_like.evaluation.names import PIXELS, RANDOM, slug_of
from vissl_like.evaluation.store import FeatureStore, cache_key, dataset_identity


@dataclass(frozen=True)
class Protocol:
    """How images are brought to a network.

    Attributes:
        image_size: side of the centre square, in pixels.
        resize: shorter side before cutting; None for ``image_size``.
        fit: how images become squares, see ``extract_features``.
        interpolation: filter of the resizing.
        batch_size: images per forward.
        max_images: at most so many of each set; None for all.
        device: where networks run.
        workers: loading processes.
        plugins: what they load first.
        start_method: how they start; None for the platform's way.
        channels_last: memory order of images.
        seed: of the untrained network and of the hold-out.
        folder: where features are written that are too many for memory, see ``extract_features``; no part of what
            distinguishes features.
    """

    image_size: int
    resize: int | None = None
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    batch_size: int = 64
    max_images: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    plugins: tuple[str, ...] = ()
    start_method: str | None = None
    channels_last: bool = False
    seed: int = 0
    folder: Path | None = None

    def loading(self) -> dict[str, Any]:
        """Arguments that every extraction takes."""
        return {
            "image_size": self.image_size,
            "resize": self.resize,
            "fit": self.fit,
            "interpolation": self.interpolation,
            "batch_size": self.batch_size,
            "workers": self.workers,
            "plugins": self.plugins,
            "start_method": self.start_method,
        }

    def running(self) -> dict[str, Any]:
        """Arguments that running a network takes besides."""
        return {**self.loading(), "device": self.device, "channels_last": self.channels_last}


@dataclass(frozen=True)
class Look:
    """Images as a network wants them.

    Attributes:
        channels: 3 or 1.
        mean, std: one value per channel that normalise them, in units of the 0..1 range.
    """

    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass
class Source:
    """A dataset and what distinguishes its images from others, for the cache.

    Attributes:
        dataset: the images.
        settings: the section it was built from.
    """

    dataset: ImageDataset
    settings: dict[str, Any] = field(default_factory=dict)
    _identity: str | None = None

    @property
    def identity(self) -> str:
        """Digest of which images they are, and how they are normalised."""
        if self._identity is None:
            look = [list(self.dataset.mean), list(self.dataset.std), self.settings]
            self._identity = cache_key({"images": dataset_identity(self.dataset), "look": look})
        return self._identity

    @property
    def labels(self) -> Tensor | None:
        """Labels of all images, in order."""
        return None if self.dataset.labels is None else torch.from_numpy(np.asarray(self.dataset.labels)).long()


@dataclass(frozen=True)
class Encoding:
    """What is taken of a network.

    Attributes:
        name: text that differs whenever features would.
        encode: see ``extract_features``; None for the network's output.
    """

    name: str
    encode: Encode | None = None


OUTPUT = Encoding("output")
Extract = Callable[[ImageDataset, Protocol, Encoding], Features]


@dataclass
class Subject:
    """Something that is measured.

    Attributes:
        name: shown in tables.
        identity: text that differs whenever its features would.
        extract: features of a dataset.
        network: the network itself, on its device, which must be left as it is (``copy.deepcopy`` to train it); built
            when first asked for. None where there is none: pixels.
        shared: whether the processes of the run extract together, each calling ``extract``; else only one calls it.
    """

    name: str
    identity: str
    extract: Extract
    network: Callable[[], nn.Module] | None = None
    shared: bool = True

    @property
    def pixels(self) -> bool:
        """Whether its features are pixels, which are stored as such."""
        return self.network is None

    @property
    def slug(self) -> str:
        """The name as it appears in files."""
        return slug_of(self.name)


def network_subject(name: str, identity: str, trunk: nn.Module, protocol: Protocol, *, share: bool = True) -> Subject:
    """A network, frozen; with ``share`` the processes of the run divide the images among them."""
    trunk = _placed(trunk, protocol)
    return Subject(name, identity, _extractor(lambda: trunk, share), lambda: trunk, shared=share)


def untrained_subject(
    build: Callable[[], nn.Module], identity: str, calibration: ImageDataset | None, protocol: Protocol
) -> Subject:
    """The same network with fresh weights drawn from the seed, its BatchNorm statistics taken from the data.

    It is built when it is first asked for: not at all if its features are in the cache.

    Args:
        build: makes the network; its random numbers come from torch's global generator.
        identity: of the network's settings.
        calibration: images whose statistics are taken, without labels; None leaves them as they start.
        protocol: see ``Protocol``.
    """
    made: list[nn.Module] = []

    def network() -> nn.Module:
        if not made:
            with untouched_randomness(protocol.device):
                torch.manual_seed(protocol.seed)
                trunk = _placed(build(), protocol)
            if calibration is not None:
                calibrate_batch_norm(trunk, calibration, **protocol.running(), seed=protocol.seed)
            made.append(trunk)
        return made[0]

    identity = f"{identity} seed {protocol.seed} torch {torch.__version__}"
    if calibration is not None:  # the statistics depend on how images were brought to it
        brought = (protocol.image_size, protocol.resize, protocol.fit, protocol.interpolation, protocol.batch_size)
        identity = f"{identity} calibrated at {brought}"
    return Subject(RANDOM, identity, _extractor(network, share=True), network)


def _extractor(network: Callable[[], nn.Module], share: bool) -> Extract:
    def extract(dataset: ImageDataset, protocol: Protocol, encoding: Encoding) -> Features:
        return extract_features(
            network(),
            dataset,
            **protocol.running(),
            max_images=protocol.max_images,
            encode=encoding.encode,
            share=share,
            folder=protocol.folder,
        )

    return extract


def pixel_subject() -> Subject:
    """The pixels themselves. Only the main process reads them: there is nothing to compute."""

    def extract(dataset: ImageDataset, protocol: Protocol, encoding: Encoding) -> Features:
        if not comm.is_main():
            return _nothing()
        return raw_pixel_features(dataset, **protocol.loading(), max_images=protocol.max_images)

    return Subject(PIXELS, "pixels", extract)


def feature_key(subject: Subject, source: Source, protocol: Protocol, encoding: Encoding = OUTPUT) -> str:
    """Name of a subject's features of some images in the store."""
    facts = {
        "subject": subject.identity,
        "encoding": encoding.name,
        "images": source.identity,
        "size": protocol.image_size,
        "resize": protocol.resize,
        "fit": protocol.fit,
        "interpolation": protocol.interpolation,
        "max_images": protocol.max_images,
    }
    return cache_key(facts)


def subject_features(
    subject: Subject,
    source: Source,
    protocol: Protocol,
    store: FeatureStore | None,
    encoding: Encoding = OUTPUT,
) -> Features:
    """Features of a subject, from the store if they are there; every process must call this if the subject is shared.

    A store that cannot be written is no reason to fail: the features are used and not kept.
    """
    key = feature_key(subject, source, protocol, encoding)
    found = store.get(key, source.labels) if store is not None and comm.is_main() else None
    if comm.broadcast_object(found is not None) if subject.shared else found is not None:
        return found if found is not None else _nothing()
    if store is not None:
        protocol = dataclasses.replace(protocol, folder=store.folder)
    features = subject.extract(source.dataset, protocol, encoding)
    if store is not None and comm.is_main():
        try:
            store.put(key, features, subject.pixels)
        except OSError as error:
            warnings.warn(f"the features of {subject.name} are not kept in {store.folder}: {error}", stacklevel=2)
    return features


def _placed(trunk: nn.Module, protocol: Protocol) -> nn.Module:
    trunk = trunk.to(protocol.device)
    return trunk.to(memory_format=torch.channels_last) if protocol.channels_last else trunk  # type: ignore[call-overload]


def _nothing() -> Features:
    """What processes other than the main one have where the main one alone knows."""
    return Features(torch.empty(0, 0), None, torch.empty(0, dtype=torch.int64))
