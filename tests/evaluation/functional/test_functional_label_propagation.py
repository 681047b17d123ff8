"""Label propagation against the official algorithm in loops over pixels, and Pillow's nearest neighbours."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from vissl_like.evaluation.functional.label_propagation import (
    first_masks,
    frame_size,
    labels_of,
    propagate,
    propagate_video,
    resize_nearest,
    stretch_masks,
)
from vissl_like.utils.errors import UserError

HEIGHT, WIDTH = 4, 5


def features(seed, frames, dim=3):
    """Few whole numbers, so that many cosines are equal; none of length zero."""
    values = torch.randint(-2, 3, (frames, dim, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(seed))
    values[:, 0][(values == 0).all(dim=1)] = 1
    return values.double()


def soft_masks(seed, frames, classes=3):
    return torch.rand(frames, classes, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


def plain(target, context, masks, radius, topk, temperature=0.1):
    """All context pixels of a target pixel in one list; those at least as high as the k-th share the weight."""
    frames, _, height, width = context.shape
    result = torch.zeros(masks.shape[1:], dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            own, found = target[:, y, x], []
            for n in range(frames):
                for v in range(height):
                    for u in range(width):
                        if radius is None or max(abs(v - y), abs(u - x)) <= radius:
                            other = context[n, :, v, u]
                            cosine = float(own @ other / own.norm() / other.norm())
                            found.append((round(math.exp(cosine / temperature), 6), masks[n, :, v, u]))
            least = sorted((weight for weight, _ in found), reverse=True)[: min(topk, len(found))][-1]
            kept = [(weight, mask) for weight, mask in found if weight >= least]
            result[:, y, x] = sum(weight * mask for weight, mask in kept) / sum(weight for weight, _ in kept)
    return result


@pytest.mark.parametrize("radius", [0, 1, 2, None])
@pytest.mark.parametrize("topk", [1, 5, 200])
def test_propagation_equals_loops(radius, topk):
    # Directions are made unequal by noise far above rounding, so that ties are decided in the next test alone.
    noise = torch.randn(4, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(9)).double() * 0.1
    frames = features(1, 4) + noise
    masks = soft_masks(2, 3)
    expected = plain(frames[3], frames[:3], masks, radius, topk)
    for bound in (1, 300, 2**20):
        ours = propagate(frames[3], frames[:3], masks, radius=radius, topk=topk, max_affinities=bound)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_pixels_equal_to_the_last_of_the_k_count_too():
    context = torch.zeros(1, 2, 1, 4).double()
    context[0, :, 0] = torch.tensor([[1.0, 0.0, 0.0, -1.0], [0.0, 1.0, 1.0, 0.0]])
    masks = torch.eye(4).double().view(1, 4, 1, 4)
    target = torch.tensor([1.0, 0.0]).double().view(2, 1, 1).expand(2, 1, 4)
    # the second highest cosine is 0, twice: weights e^10, 1, 1
    total = math.exp(10) + 2
    ours = propagate(target, context, masks, radius=None, topk=2)
    assert ours[:, 0, 0].tolist() == pytest.approx([math.exp(10) / total, 1 / total, 1 / total, 0])
    assert propagate(target, context, masks, radius=None, topk=1)[:, 0, 0].tolist() == [1, 0, 0, 0]


def test_context_frames_compete_in_one_list():
    context = torch.zeros(2, 2, 1, 2).double()
    context[0, 0], context[1] = 1, torch.tensor([[0.0, 0.0], [1.0, 1.0]])[:, None]  # like the target; across
    masks = torch.zeros(2, 2, 1, 2).double()
    masks[0, 0], masks[1, 1] = 1, 1
    target = torch.tensor([1.0, 0.0]).double().view(2, 1, 1).expand(2, 1, 2)
    assert propagate(target, context, masks, topk=2)[:, 0, 0].tolist() == [1, 0]  # a list per frame would give both


def test_lengths_of_features_do_not_matter_and_small_temperatures_do_not_overflow():
    frames = torch.randn(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    masks = soft_masks(4, 2).float()
    ours = propagate(frames[2], frames[:2], masks, temperature=0.002)
    assert ours.isfinite().all() and ours.dtype == torch.float32
    torch.testing.assert_close(
        propagate(5 * frames[2], 0.1 * frames[:2], masks), propagate(frames[2], frames[:2], masks)
    )


@pytest.mark.parametrize("last", [0, 2, 7])
def test_video_context_is_the_first_frame_and_the_last_ones(last):
    frames = (
        features(5, 6) + 0.1 * torch.randn(6, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    )
    first = soft_masks(6, 1)[0]
    found = [first]
    for number in range(1, 6):
        used = [0, *range(max(1, number - last), number)]
        found.append(plain(frames[number], frames[used], torch.stack([found[n] for n in used]), 1, 5))
    ours = list(propagate_video(iter(frames), first, last_frames=last, radius=1))
    assert len(ours) == 6
    torch.testing.assert_close(torch.stack(ours), torch.stack(found), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3), (7, 2), (10, 5), (4, 9), (1, 1), (13, 31), (49, 27), (10, 85)])
def test_nearest_is_pillows(shape):
    labels = np.random.default_rng(0).integers(0, 250, (10, 14), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(labels).resize(shape[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resize_nearest(torch.from_numpy(labels), *shape).numpy(), theirs)


def test_first_masks_are_one_hot_and_void_is_background():
    labels = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [255, 255, 3, 0], [255, 255, 0, 0]], dtype=torch.uint8)
    masks = first_masks(labels, 2, 2)
    # the pixels taken are those at (1, 1), (1, 3), (3, 1), (3, 3): object 3 is lost, its channel stays
    assert masks.argmax(0).tolist() == [[0, 2], [0, 0]] and masks.shape == (4, 2, 2)
    assert masks.sum(0).eq(1).all() and not masks[3].any()


def test_stretching_by_hand():
    masks = torch.tensor([[[0.2, 0.4], [0.6, 0.2]], [[0.0, 0.0], [0.0, 0.0]], [[0.3, 0.3], [0.3, 0.3]]])
    ours = stretch_masks(masks)
    torch.testing.assert_close(ours[0], torch.tensor([[0.0, 0.5], [1.0, 0.0]]))
    assert not ours[1].any()  # maximum 0: left alone
    assert ours[2].eq(1).all()  # one positive value


def plain_labels(masks, patch, height, width):
    """Bilinear by pixel centres, stretched, highest channel, nearest, with loops."""
    classes, h, w = masks.shape
    large = np.zeros((classes, h * patch, w * patch))
    for y in range(h * patch):
        for x in range(w * patch):
            v, u = (max(0.0, (place + 0.5) / patch - 0.5) for place in (y, x))
            top, left = int(v), int(u)
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = (1 - u + left) * masks[:, top, left] + (u - left) * masks[:, top, right]
            lower = (1 - u + left) * masks[:, below, left] + (u - left) * masks[:, below, right]
            large[:, y, x] = (1 - v + top) * upper + (v - top) * lower
    for channel in large:
        if channel.max() > 0:
            channel -= channel.min()
            channel /= channel.max()
    image = Image.fromarray(large.argmax(0).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


@pytest.mark.parametrize("seed", range(4))
def test_labels_at_the_original_size_equal_loops(seed):
    masks = soft_masks(seed, 1)[0] * torch.tensor([1.0, 0.3, 0.6]).view(3, 1, 1)  # unequal heights: stretching matters
    ours = labels_of(masks, 3, 17, 13)
    assert ours.dtype == torch.int64
    np.testing.assert_array_equal(ours.numpy(), plain_labels(masks.numpy(), 3, 17, 13))


def test_a_video_without_its_object_is_background():
    masks = torch.zeros(2, 3, 3)
    masks[0] = 1
    assert not labels_of(masks, 4, 12, 12).any()
    assert labels_of(masks.flip(0), 4, 12, 12).eq(1).all()


def test_frame_sizes():
    assert frame_size(480, 854) == (480, 832)
    assert frame_size(1080, 1920) == (480, 832)  # 853.3
    assert frame_size(854, 480) == (832, 480)
    assert frame_size(480, 480) == (480, 448)


def test_what_does_not_fit_is_refused():
    frames, masks = features(1, 2), soft_masks(1, 1)
    with pytest.raises(ValueError, match="n, C, h, w"):
        propagate(frames[0], frames, masks)
    with pytest.raises(UserError, match="NaN"):
        propagate(frames[0] * math.nan, frames[:1], masks)
