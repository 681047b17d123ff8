"""Small training sets drawn from labelled images: k shots of every class, and VISSL's low-shot VOC07."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

POSITIVE, NEGATIVE, UNUSED = 1, 0, -1


@dataclass(frozen=True)
class KShot:
    """A drawn training set with one label for each image.

    Attributes:
        indices: ``[m]`` int64, increasing positions of the chosen images.
        short: class -> number of its images, for the classes with fewer than k; all of these are in the set.
    """

    indices: Tensor
    short: dict[int, int]


def k_shot(labels: Tensor, k: int, *, num_classes: int, seed: int, draw: int) -> KShot:
    """Draws k images of each class without replacement.

    The choice within a class depends on (seed, k, draw, class) and on that class's images alone, so another class more
    or less changes nothing, and every machine chooses the same.

    Args:
        labels: ``[n]`` int64 in 0..C-1.
        k: images of each class, at least 1.
        num_classes: C; a class without any image is reported too.
        seed: of the experiment, at least 0.
        draw: number of the independent repetition, from 0.

    Raises:
        ValueError: a label is not in 0..C-1.
    """
    own = labels.detach().cpu().numpy()
    if len(own) and not (own.min() >= 0 and own.max() < num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {own.min()}..{own.max()}")
    chosen, short = [], {}
    for label in range(num_classes):
        members = np.flatnonzero(own == label)
        if len(members) < k:
            short[label] = len(members)
        chosen.append(_draw(members, k, seed, k, draw, label))
    return KShot(torch.from_numpy(np.sort(np.concatenate(chosen))), short)


@dataclass(frozen=True)
class MultiLabelShots:
    """A drawn training set of a multi-label problem: every class has its own images.

    Attributes:
        targets: ``[n, C]`` int8: 1 a positive of the class, 0 a negative, -1 not used for the class.
        short_positives: class -> positives found, for the classes with fewer than k.
        short_negatives: class -> negatives found, for the classes with fewer than (C - 1) k.
    """

    targets: Tensor
    short_positives: dict[int, int]
    short_negatives: dict[int, int]


def multi_label_shots(
    labels: Tensor, k: int, *, seed: int, draw: int, negatives: Literal["each class", "all"]
) -> MultiLabelShots:
    """Low-shot VOC07: for each of C classes, k positives and (C - 1) k negatives, without replacement.

    Images that are difficult for a class are neither its positives nor its negatives. The choice for a class depends on
    (seed, k, draw, class) and the labels alone. What is missing is reported, never replaced.

    Args:
        labels: ``[n, C]``: 1 the class is there, 0 it is not, -1 difficult. (VOC's own files say -1 for "not there" and
            0 for "difficult".)
        k: positives of each class, at least 1; 1, 2, 4, 8, 16, 32, 64, 96 in the protocol.
        seed: of the experiment, at least 0.
        draw: number of the independent sample, from 0; 5 samples in the protocol.
        negatives: ``each class`` = k images of each other class that are not yet drawn; ``all`` = (C - 1) k of all
            images without the class, as VISSL's script draws them.

    Raises:
        ValueError: the labels are not a matrix of 1, 0 and -1, or ``negatives`` is neither rule.
    """
    own = labels.detach().cpu().numpy()
    if own.ndim != 2 or not np.isin(own, (POSITIVE, NEGATIVE, UNUSED)).all():
        raise ValueError(f"labels must be a matrix of 1, 0 and -1, got shape {own.shape} with {np.unique(own)[:5]}")
    if negatives not in ("each class", "all"):
        raise ValueError(f"negatives must be 'each class' or 'all', got {negatives!r}")
    num_classes = own.shape[1]
    targets = np.full(own.shape, UNUSED, dtype=np.int8)
    short_positives, short_negatives = {}, {}
    for label in range(num_classes):
        positives = _draw(np.flatnonzero(own[:, label] == POSITIVE), k, seed, k, draw, label)
        absent = own[:, label] == NEGATIVE
        if negatives == "all":
            drawn = _draw(np.flatnonzero(absent), (num_classes - 1) * k, seed, k, draw, label, num_classes)
        else:
            drawn = _of_each_other_class(own, label, absent, k, (seed, k, draw, label))
        targets[positives, label], targets[drawn, label] = POSITIVE, NEGATIVE
        if len(positives) < k:
            short_positives[label] = len(positives)
        if len(drawn) < (num_classes - 1) * k:
            short_negatives[label] = len(drawn)
    return MultiLabelShots(torch.from_numpy(targets), short_positives, short_negatives)


def _of_each_other_class(own: np.ndarray, label: int, absent: np.ndarray, k: int, key: tuple[int, ...]) -> np.ndarray:
    """k images of each other class among those without the class, none twice; other classes in increasing order."""
    free, parts = absent.copy(), [np.empty(0, dtype=np.int64)]
    for other in range(own.shape[1]):
        if other != label:
            part = _draw(np.flatnonzero(free & (own[:, other] == POSITIVE)), k, *key, other)
            free[part] = False
            parts.append(part)
    return np.concatenate(parts)


def _draw(members: np.ndarray, count: int, *key: int) -> np.ndarray:
    """Up to ``count`` of the members, at random from the key.

    Raw 64-bit words are sorted instead of asking for a permutation: numpy promises the words of a bit generator for all
    versions, but not what is made of them.
    """
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(len(members))
    return members[np.argsort(words, kind="stable")[:count]]
