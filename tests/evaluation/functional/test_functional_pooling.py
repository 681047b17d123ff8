"""GeM, multi-scale descriptors and whitenings against loops, scikit-learn and the published steps in numpy."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from vissl_like.evaluation.functional import pooling
from vissl_like.evaluation.functional.pooling import CopyDetectionWhitening, PcaWhitening, gem, multi_scale
from vissl_like.utils.errors import UserError


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gem_by_hand():
    tokens = torch.tensor([[[1.0, -3.0], [2.0, 4.0]]])  # one image, two tokens, two channels
    # p = 3: ((1 + 8) / 2)^(1/3) = 4.5^(1/3); (-3 counts as 1e-6: (64 / 2)^(1/3)
    assert gem(tokens, 3)[0].tolist() == pytest.approx([4.5 ** (1 / 3), 32 ** (1 / 3)])
    assert gem(tokens, 1)[0].tolist() == pytest.approx([1.5, (4 + 1e-6) / 2])
    assert gem(torch.full((1, 5, 1), -1.0), 4).item() == pytest.approx(1e-6)


def test_gem_of_maps_is_that_of_their_positions():
    maps = noise(2, 3, 4, 5)
    expected = [
        [(sum(max(float(v), 1e-6) ** 4 for v in channel.flatten()) / 20) ** 0.25 for channel in image] for image in maps
    ]
    torch.testing.assert_close(gem(maps, 4), torch.tensor(expected))
    torch.testing.assert_close(gem(maps.flatten(2).transpose(1, 2), 4), torch.tensor(expected))
    with pytest.raises(ValueError, match=r"got \(2, 3\)"):
        gem(torch.zeros(2, 3), 4)


def test_gem_of_half_precision_does_not_overflow():
    assert gem(torch.full((1, 2, 1), 100.0, dtype=torch.float16), 4).item() == pytest.approx(100)  # 100^4 > 65504


def resized(image, scale):
    """Bilinear by pixel centres, the scale itself as the step, edges repeated."""
    height, width = (math.floor(side * scale) for side in image.shape)
    result = torch.empty(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            v, u = (max(0.0, (place + 0.5) / scale - 0.5) for place in (y, x))
            top, left = int(v), int(u)
            below, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            a, b = v - top, u - left
            upper = (1 - b) * image[top, left] + b * image[top, right]
            lower = (1 - b) * image[below, left] + b * image[below, right]
            result[y, x] = (1 - a) * upper + a * lower
    return result


def network(images):
    """Three statistics, not linear in the pixels, in lengths that differ by size."""
    squares = images.square().sum((1, 2, 3))
    return torch.stack([images.mean((1, 2, 3)), squares, images.amax((1, 2, 3))], dim=1)


def test_multi_scale_is_the_mean_of_descriptors_of_each_image():
    images = noise(3, 1, 9, 12).double()
    expected = []
    for image in images[:, 0]:
        sizes = [image, resized(image, 2**-0.5), resized(image, 0.5)]
        descriptor = sum(network(size[None, None])[0] for size in sizes) / 3
        expected.append(descriptor / descriptor.norm())
    ours = multi_scale(network, images)
    torch.testing.assert_close(ours, torch.stack(expected))
    torch.testing.assert_close(ours[1:2], multi_scale(network, images[1:2]))  # neighbours do not matter
    seen = []
    multi_scale(lambda scaled: (seen.append(tuple(scaled.shape[2:])), network(scaled))[1], images)
    assert seen == [(9, 12), (6, 8), (4, 6)]
    with pytest.raises(ValueError, match="one scale"):
        multi_scale(network, images, [])


def skewed(rows=60, dim=6, seed=1):
    """Features far from zero, with unequal and mixed directions."""
    scales = torch.linspace(0.2, 3, dim)
    return (noise(rows, dim, seed=seed) * scales) @ noise(dim, dim, seed=5) + torch.linspace(1, 4, dim)


def published(features, data, centred=False, power=0.5, floor=1e-5, subtract=True):
    """The copy-detection script's steps, in numpy."""
    x, y = features.double().numpy(), data.double().numpy()
    mean = x.mean(0)
    z = x - mean if centred else x
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    values = np.maximum(values, values.max() * floor)
    out = ((y - mean) if subtract else y) @ vectors / values**power
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def gram(vectors):
    """Inner products: what a ranking sees, whatever the signs of the directions."""
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors @ vectors.T


def test_copy_detection_whitening_equals_the_published_steps(monkeypatch):
    monkeypatch.setattr(pooling, "COVARIANCE_ROWS", 17)  # several stretches
    features, data = skewed(), skewed(seed=2)[:9]
    whitened = CopyDetectionWhitening.learn(features).apply(data)
    assert whitened.shape == (9, 6) and whitened.dtype == torch.float32
    np.testing.assert_allclose(gram(whitened), gram(published(features, data)), atol=1e-5)
    for mistake in ({"centred": True}, {"power": 1}, {"subtract": False}):
        assert np.abs(gram(whitened) - gram(published(features, data, **mistake))).max() > 0.01


def test_small_eigenvalues_are_raised():
    features, data = skewed(), skewed(seed=2)[:9]
    features[:, 5] = data[:, 5] = 0  # no energy at all: without a floor this would divide by zero
    data[0, 5] = 0.05
    whitened = CopyDetectionWhitening.learn(features).apply(data)
    np.testing.assert_allclose(gram(whitened), gram(published(features, data)), atol=1e-4)
    assert np.abs(gram(whitened) - gram(published(features, data, floor=1e-3))).max() > 0.01


def test_pca_whitening_equals_scikit_learn():
    features, data = skewed(), skewed(seed=2)[:9]
    reference = PCA(3, whiten=True, svd_solver="full").fit(features.double().numpy())
    expected = reference.transform(data.double().numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ours = PcaWhitening.learn(features, 3)
    np.testing.assert_allclose(ours.apply(data).abs(), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(gram(ours.apply(data)), gram(expected), atol=1e-5)
    projected = (features.double() - ours.mean) @ ours.projection  # variance 1 in every direction, none shared
    torch.testing.assert_close(projected.T @ projected / len(features), torch.eye(3, dtype=torch.float64))


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(UserError, match=r"to 6 dimensions .* 5 features of 6 dimensions allow 1 to 4"):
        PcaWhitening.learn(skewed(rows=5), 6)
    with pytest.raises(UserError, match="got 60 with 1 not finite"):
        CopyDetectionWhitening.learn(skewed().index_fill_(0, torch.tensor([3]), torch.inf))
    with pytest.raises(UserError, match="same features"):
        PcaWhitening.learn(torch.ones(4, 3), 2)
    with pytest.raises(UserError, match="got 0"):
        CopyDetectionWhitening.learn(torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        CopyDetectionWhitening.learn(torch.ones(3))
