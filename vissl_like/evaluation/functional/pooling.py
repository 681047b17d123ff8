"""From a network's outputs to one descriptor per image: GeM, several scales, and two whitenings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vissl_like.utils.errors import UserError

EIGENVALUE_FLOOR = 1e-5
"""Eigenvalues below this share of the largest are raised to it, so that directions of noise are not blown up."""
COVARIANCE_ROWS = 8192
"""Rows that are turned into float64 at a time."""
SCALES = (1.0, 2**-0.5, 0.5)


def gem(features: Tensor, p: float, *, floor: float = 1e-6) -> Tensor:
    """Generalised mean over positions (Radenovic et al. 2018): ``(mean x^p)^(1/p)``, after ``x >= floor``.

    p = 1 is the mean (of what is not negative), large p nears the maximum. Copy detection with transformers uses 4,
    on patch tokens without the class token.

    Args:
        features: tokens ``[n, T, D]`` or feature maps ``[n, D, H, W]``.
        p: above 0.
        floor: lower bound of the values.

    Returns:
        ``[n, D]`` in float32 or wider.

    Raises:
        ValueError: another number of dimensions.
    """
    if features.ndim not in (3, 4):
        raise ValueError(f"GeM pools tokens [n, T, D] or maps [n, D, H, W], got {tuple(features.shape)}")
    positions = (1,) if features.ndim == 3 else (2, 3)
    wide = features.to(torch.promote_types(features.dtype, torch.float32))  # the fourth power overflows float16
    return wide.clamp(min=floor).pow(p).mean(dim=positions).pow(1 / p)


def multi_scale(network: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """Mean of the descriptors of an image at several sizes (bilinear, unpadded), of length 1.

    Descriptors are not normalised before the mean. Every image's mean is divided by its own length. The official script
    divides by the length of the whole tensor instead, which is the same for one image at a time only: in a batch it
    would make every image's length depend on its neighbours.

    Args:
        network: ``[n, C, H, W] -> [n, D]``, for any size among the scaled ones.
        images: ``[n, C, H, W]``.
        scales: factors of both sides; sizes are rounded down.

    Returns:
        ``[n, D]``, rows of length 1 (0 for a row of zeros).

    Raises:
        ValueError: no scale.
    """
    total: Tensor | None = None
    for scale in scales:
        scaled = images
        if scale != 1:
            scaled = functional.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        descriptors = network(scaled)
        total = descriptors if total is None else total + descriptors
    if total is None:
        raise ValueError("multi-scale pooling needs one scale at least")
    return functional.normalize(total / len(scales), dim=1)


@dataclass(frozen=True)
class Whitening:
    """Subtract a mean, project, and scale to length 1.

    Attributes:
        mean: ``[D]``.
        projection: ``[D, k]``, columns by falling eigenvalue.
    """

    mean: Tensor
    projection: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """``[n, D] -> [n, k]`` float32, rows of length 1. The sign of a column is arbitrary; inner products are not."""
        mean, projection = self.mean.to(features.device), self.projection.to(features.device)
        return functional.normalize((features.to(mean.dtype) - mean) @ projection, dim=1).float()


@dataclass(frozen=True)
class CopyDetectionWhitening(Whitening):
    """The whitening of DINO's Copydays script, with its mixture of centred data and an uncentred covariance."""

    @classmethod
    def learn(cls, features: Tensor) -> CopyDetectionWhitening:
        """Learns on a set of its own (20 000 random images in the script).

        The mean is taken from the data, but the covariance is ``X^T X / N`` of X with its mean still in it: the
        direction of the mean is damped too. Eigenvalues below 1e-5 of the largest are raised to that; all dimensions
        are kept; the scale is ``eigenvalue^-0.5``.

        Args:
            features: ``[N, D]``, not normalised.

        Raises:
            UserError: no features, all zero, or not finite.
        """
        _check_set(features, 1)
        mean = features.double().mean(dim=0)
        return cls(mean, _scaled_directions(_second_moment(features, torch.zeros_like(mean)), features.shape[1]))


@dataclass(frozen=True)
class PcaWhitening(Whitening):
    """PCA-whitening (Jegou and Chum 2012): k directions of largest variance, each scaled to variance 1."""

    @classmethod
    def learn(cls, features: Tensor, dims: int) -> PcaWhitening:
        """Learns on a set of its own; mean and covariance are those of the set, the latter about the mean.

        Args:
            features: ``[N, D]``.
            dims: k, at most D and at most N - 1 (N images span no more).

        Raises:
            UserError: more dimensions than there can be, no variance, or not finite.
        """
        _check_set(features, 2)
        most = min(features.shape[1], len(features) - 1)
        if not 1 <= dims <= most:
            raise UserError(
                f"PCA-whitening to {dims} dimensions was asked for, but {len(features)} features of "
                f"{features.shape[1]} dimensions allow 1 to {most}. Ask for fewer, or learn it on more images."
            )
        mean = features.double().mean(dim=0)
        return cls(mean, _scaled_directions(_second_moment(features, mean), dims))


def _check_set(features: Tensor, fewest: int) -> None:
    if features.ndim != 2:
        raise ValueError(f"whitening is learnt on [N, D], got {tuple(features.shape)}")
    if len(features) < fewest or not features.isfinite().all():
        raise UserError(
            f"whitening needs {fewest} or more images with finite features, got {len(features)} with "
            f"{int((~features.isfinite()).any(dim=1).sum())} not finite"
        )


def _second_moment(features: Tensor, centre: Tensor) -> Tensor:
    """``[D, D]`` float64: mean of ``(x - centre)(x - centre)^T``."""
    moment = torch.zeros(len(centre), len(centre), dtype=torch.float64, device=features.device)
    for rows in features.split(COVARIANCE_ROWS):
        rows = rows.double() - centre
        moment += rows.T @ rows
    return moment / len(features)


def _scaled_directions(moment: Tensor, dims: int) -> Tensor:
    """``[D, dims]``: the first eigenvectors as columns, each over the root of its (raised) eigenvalue."""
    values, vectors = torch.linalg.eigh(moment)
    if values[-1] <= 0:
        raise UserError("whitening has nothing to learn: all images have the same features")
    values = values.clamp(min=EIGENVALUE_FLOOR * float(values[-1]))
    return vectors.flip(1)[:, :dims] * values.flip(0)[:dims].rsqrt()
