"""What an evaluation works with: one subject, and ways to bring images to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vissl_like.data.named import Box, NamedImages
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Features, LeftOut
from vissl_like.evaluation.keeper import Keeper
from vissl_like.evaluation.scoring import centred, train_and_test
from vissl_like.evaluation.store import FeatureStore, cache_key
from vissl_like.evaluation.subjects import OUTPUT, Encoding, Look, Protocol, Source, Subject, subject_features
from vissl_like.utils.errors import UserError

MOST_PIXEL_BYTES = 2 * 2**30


@dataclass
class Probe:
    """Labelled images to learn from and to be scored on (None: a share of the former)."""

    train: Source
    test: Source | None
    num_classes: int

    def facts(self) -> dict[str, Any]:
        """What the record says of them."""
        classes = self.train.dataset.classes
        return {
            "train": self.train.settings,
            "test": None if self.test is None else self.test.settings,
            "held_out_of_train": self.test is None,
            "num_classes": self.num_classes,
            "classes": None if classes is None else list(classes),
        }


@dataclass
class Bench:
    """A subject and all that is needed to measure it. What asks for features must be called by every process.

    Attributes:
        subject: what is measured.
        protocol: how images are brought to it, unless an evaluation says otherwise.
        look: images as the network wants them.
        probe: the labelled images; None for evaluations that have images of their own.
        store: where features are kept; None keeps none.
        holdout: share of the labelled images that is scored on where there are no test images.
        folder: where an evaluation may leave files of its own, such as pictures; made by it.
        code: digest of the code that the evaluation is made by.
        kept: states of trainings that are to be forgotten once the result is on disk.
    """

    subject: Subject
    protocol: Protocol
    look: Look
    probe: Probe | None = None
    store: FeatureStore | None = None
    holdout: float = 0.25
    folder: Path | None = None
    code: str = ""
    kept: list[Keeper] = field(default_factory=list)

    @property
    def labelled(self) -> Probe:
        """The labelled images.

        Raises:
            UserError: there are none.
        """
        if self.probe is None:
            raise UserError(
                "this evaluation needs labelled images: give config.DATA.PROBE_TRAIN a folder with one sub-folder "
                "per class"
            )
        return self.probe

    @property
    def num_classes(self) -> int:
        """C, of the labelled images."""
        return self.labelled.num_classes

    def images(
        self,
        files: Sequence[str],
        *,
        boxes: Sequence[Box | None] | None = None,
    ) -> Source:
        """Images of some files, or the parts of them that ``boxes`` name, in the colours that the network wants."""
        mean, std = list(self.look.mean), list(self.look.std)
        named = NamedImages(files, boxes=boxes, channels=self.look.channels, mean=mean, std=std)
        return Source(named, {"boxes": boxes})

    def features(self, source: Source, encoding: Encoding | None = None, **changes: Any) -> Features:
        """Features of some images, from the store where they are there.

        Args:
            source: the images.
            encoding: what is taken of the network, None for its output; pixels are pixels.
            changes: fields of ``Protocol`` that differ (``image_size``, ``resize``, ...).
        """
        protocol = dataclasses.replace(self.protocol, **changes)
        taken = OUTPUT if encoding is None or self.subject.pixels else encoding
        return subject_features(self.subject, source, protocol, self.store, taken)

    def require_room(self, *sets: Source, image_size: int | None = None, max_images: int | None = None) -> None:
        """Looks whether the pixels of all sets fit into memory together, if pixels are measured.

        Args:
            sets: the images.
            image_size: side of the square that they become, in pixels; None for the protocol's.
            max_images: that are taken of each set; None takes all.

        Raises:
            LeftOut: they do not.
        """
        if not self.subject.pixels:
            return
        side = self.protocol.image_size if image_size is None else image_size
        sizes = [len(source.dataset) for source in sets]
        images = sum(size if max_images is None else min(size, max_images) for size in sizes)
        needed = 4 * images * self.look.channels * side**2
        if needed > MOST_PIXEL_BYTES:
            raise LeftOut(
                f"raw pixels are left out: {images:,d} images of {side} px would take {needed / 2**30:.1f} GiB. "
                "Smaller or fewer images would have them."
            )

    def probe_features(self, encoding: Encoding | None = None, **changes: Any) -> tuple[Features, Features]:
        """Features of the labelled images, to learn from and to be scored on; empty but on the main process.

        Pixels come without their mean, which makes them the stronger floor.

        Raises:
            LeftOut: pixels are too many for memory.
        """
        probe = self.labelled
        sets = [probe.train] if probe.test is None else [probe.train, probe.test]
        self.require_room(*sets, max_images=self.protocol.max_images)
        train = self.features(probe.train, encoding, **changes)
        test = None if probe.test is None else self.features(probe.test, encoding, **changes)
        if not comm.is_main():
            return train, train
        train, test = train_and_test(train, test, self.holdout, self.protocol.seed)
        return centred(train, test) if self.subject.pixels else (train, test)

    def probe_identity(self) -> str:
        """Digest of the labelled images, their labels, and what is held out."""
        probe = self.labelled
        sets = [probe.train] + ([] if probe.test is None else [probe.test])
        facts: dict[str, Any] = {"images": [source.identity for source in sets], "classes": probe.num_classes}
        facts["labels"] = [_digest(source.labels) for source in sets]
        facts["holdout"] = None if probe.test is not None else [self.holdout, self.protocol.seed]
        return cache_key(facts)


def _digest(labels: torch.Tensor | None) -> str:
    return "none" if labels is None else cache_key({"labels": np.asarray(labels).tolist()})
