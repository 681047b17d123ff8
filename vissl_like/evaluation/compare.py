"""Is A better than B? Paired intervals over seeds and test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10000
BLOCK_NUMBERS = 4_000_000


@dataclass(frozen=True)
class PairedInterval:
    """Difference in accuracy (or in another mean over test items), A - B, in percentage points.

    Attributes:
        mean: over seeds and images.
        low, high: ends of the interval.
        level: its level, such as 0.95.
        per_seed: difference of each seed.
        images: number of test images.
    """

    mean: float
    low: float
    high: float
    level: float
    per_seed: tuple[float, ...]
    images: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def paired_interval(
    a: np.ndarray, b: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> PairedInterval:
    """Percentile bootstrap of the difference that resamples seeds and images, both with replacement.

    Seeds and images are crossed (every seed is scored on the same images), so one draw of images serves all seeds of a
    resample, and A and B are compared image by image: what makes an image hard for both cancels. With few seeds the
    interval is somewhat too narrow (a bootstrap of S values has (S - 1) / S of their variance).

    Args:
        a: ``[S, M]`` whether A is right (or what it scores, in 0..1), for S seeds and M test images in one order.
        b: ``[S, M]``, row s paired with row s of ``a``; or ``[M]`` (or one row) for a method without chance.
        level: probability that the interval covers, in (0, 1).
        resamples: number of resamples.
        seed: of the resampling.

    Raises:
        ValueError: shapes do not fit.
    """
    a, b = np.atleast_2d(np.asarray(a)), np.atleast_2d(np.asarray(b))
    if b.shape[0] == 1:
        b = np.broadcast_to(b, a.shape)
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"correctness of A {a.shape} and B {b.shape} must be [seeds, images] with equal sizes")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    difference = 100 * (a.astype(np.float64) - b.astype(np.float64))  # [S, M]
    draws = _resampled_means(difference, resamples, np.random.default_rng(seed))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    per_seed = tuple(float(value) for value in difference.mean(axis=1))
    return PairedInterval(float(difference.mean()), float(low), float(high), level, per_seed, a.shape[1])


def _resampled_means(difference: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means ``[resamples]`` of resampled seeds and images.

    How often each image is drawn is all that matters, and images on which all seeds fared alike (there are at most 3^S
    such kinds) are drawn together: as many as there are of a kind, in proportion.
    """
    seeds, images = difference.shape
    kinds, counts = np.unique(difference, axis=1, return_counts=True)  # [S, U], [U]
    means = []
    block = max(1, BLOCK_NUMBERS // len(counts))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        seed_draws = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)  # [count, S]
        image_draws = generator.multinomial(images, counts / images, size=count)  # [count, U]
        means.append(np.einsum("rs,rs->r", seed_draws, image_draws @ kinds.T) / (seeds * images))
    return np.concatenate(means)
