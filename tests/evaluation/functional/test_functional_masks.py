"""Attention masks, Jaccard, J and F against cases worked by hand and loops over pixels."""

import math

import pytest
import torch

from vissl_like.evaluation.functional import masks
from vissl_like.evaluation.functional.masks import (
    best_heads,
    boundary,
    boundary_f,
    dilate,
    enlarge,
    jaccard,
    keep_mass,
    mean_over_objects,
    score_video,
    split_objects,
)
from vissl_like.utils.errors import UserError


def blobs(seed, *shape):
    """Masks of connected regions: smoothed noise above its median."""
    values = torch.randn(1, math.prod(shape[:-2]), *shape[-2:], generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(values, 5, 1, 2)
    return (smooth > smooth.median()).reshape(shape)


def plain_keep(values, share):
    """Takes the smallest away while what is gone is at most 1 - share of the whole."""
    kept, gone = [True] * len(values), 0.0
    for place in sorted(range(len(values)), key=lambda place: values[place]):
        gone += values[place]
        kept[place] = gone / sum(values) > 1 - share
    return kept


def test_kept_mass_by_hand():
    attention = torch.tensor([2.0, 8.0, 4.0, 6.0])  # shares .1 .4 .2 .3, ascending sums .1 .3 .6 1
    assert keep_mass(attention, 0.6).tolist() == [False, True, False, True]  # above .4
    assert keep_mass(attention, 0.75).tolist() == [False, True, True, True]  # above .25: .3 crosses it
    assert keep_mass(attention, 0.35).tolist() == [False, True, False, False]  # above .65
    assert keep_mass(attention, 1.0).all()
    assert keep_mass(torch.ones(4), 0.5).tolist() == [False, False, True, True]  # of equal ones the later
    assert not keep_mass(torch.zeros(4), 0.5).any()
    with pytest.raises(ValueError, match="got 0"):
        keep_mass(attention, 0)


def test_kept_mass_of_several_heads_equals_loops():
    attention = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(0)).double() ** 3
    expected = [[plain_keep(head.tolist(), 0.6) for head in image] for image in attention]
    assert keep_mass(attention, 0.6).tolist() == expected


def test_enlarged_masks():
    assert enlarge(torch.tensor([[[True, False]]]), 2).tolist() == [[[True, True, False, False]] * 2]


def plain_jaccard(first, second):
    a, b = ({place for place, value in enumerate(mask.flatten().tolist()) if value} for mask in (first, second))
    return len(a & b) / len(a | b) if a | b else 1.0


def test_jaccard_of_pixel_sets():
    empty = torch.zeros(3, 4, dtype=torch.bool)
    full = ~empty
    assert [float(jaccard(*pair)) for pair in [(empty, empty), (full, empty), (full, full)]] == [1, 0, 1]
    first, second = blobs(1, 5, 8, 9), blobs(2, 5, 8, 9)
    assert jaccard(first, second).tolist() == pytest.approx([plain_jaccard(a, b) for a, b in zip(first, second)])


def test_every_object_takes_its_best_head():
    labels = torch.tensor([[0, 1, 1, 255], [0, 1, 7, 7], [0, 0, 7, 7]])
    objects, numbers = split_objects(labels)
    assert numbers == [1, 7] and objects[1].tolist() == (labels == 7).tolist()
    heads = torch.stack([labels > 0, labels == 1, torch.zeros_like(labels) > 0])
    # object 1: 3 pixels of head 0's 8, and all of head 1; object 7: 4 of head 0's 8, and none of head 1
    scores, best = best_heads(heads, objects)
    assert scores.tolist() == [1, 0.5] and best.tolist() == [1, 0]
    heads, objects = blobs(3, 6, 12, 14), blobs(4, 4, 12, 14)
    table = [[plain_jaccard(head, one) for head in heads] for one in objects]
    scores, best = best_heads(heads, objects)
    assert scores.tolist() == pytest.approx([max(row) for row in table])
    assert best.tolist() == [row.index(max(row)) for row in table]
    none = split_objects(torch.zeros(3, 4, dtype=torch.uint8))
    assert none[0].shape == (0, 3, 4) and none[1] == []


def plain_boundary(mask):
    """Right, below and right below inside; the last row and column look along themselves; the last pixel is none."""
    height, width = mask.shape
    border = torch.zeros(height, width, dtype=torch.bool)
    for y in range(height):
        for x in range(width):
            others = []
            if x + 1 < width:
                others.append(mask[y, x + 1])
            if y + 1 < height:
                others.append(mask[y + 1, x])
            if x + 1 < width and y + 1 < height:
                others.append(mask[y + 1, x + 1])
            border[y, x] = any(bool(other) != bool(mask[y, x]) for other in others)
    return border


def plain_dilate(mask, radius):
    points = mask.nonzero().tolist()
    grown = torch.zeros_like(mask)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            grown[y, x] = any((y - b) ** 2 + (x - a) ** 2 <= radius**2 for b, a in points)
    return grown


def plain_f(predicted, truth, tolerance):
    radius = math.ceil(tolerance * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    own, true = plain_boundary(predicted), plain_boundary(truth)
    if not own.any() and not true.any():
        return 1.0
    if not own.any() or not true.any():
        return 0.0
    precision = int((own & plain_dilate(true, radius)).sum()) / int(own.sum())
    recall = int((true & plain_dilate(own, radius)).sum()) / int(true.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_boundary_by_hand():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 1] = True  # seen from itself and from its upper, left and upper left neighbours
    assert boundary(mask).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    corner = torch.zeros(3, 3, dtype=torch.bool)
    corner[2, 2] = True  # the last pixel is no border itself
    assert boundary(corner).nonzero().tolist() == [[1, 1], [1, 2], [2, 1]]
    assert not boundary(torch.ones(3, 3)).any()


def test_boundary_and_disk_equal_loops():
    for mask in blobs(5, 4, 11, 15):
        assert torch.equal(boundary(mask), plain_boundary(mask))
    points = torch.zeros(2, 9, 14, dtype=torch.bool)
    points[0, 4, 6] = points[1, 0, 13] = points[1, 8, 2] = True
    for radius in (0, 1, 2, 3, 5, 12):  # up to more than the height
        grown = dilate(points, radius)
        assert all(torch.equal(one, plain_dilate(point, radius)) for one, point in zip(grown, points))
    assert int(dilate(points[:1], 2).sum()) == 13  # a disk, not a square of 25


@pytest.mark.parametrize("tolerance", [0.008, 0.1])
def test_f_equals_loops(tolerance):
    first, second = blobs(6, 4, 18, 20), blobs(7, 4, 18, 20)
    second[2], first[3] = False, False  # nothing annotated; nothing predicted
    second[1] = first[1].roll(1, 0)
    expected = [plain_f(own, true, tolerance) for own, true in zip(first, second)]
    assert boundary_f(first, second, tolerance).tolist() == pytest.approx(expected, abs=1e-12)
    assert expected[2:] == [0, 0] and 0 < expected[0] < 1
    assert float(boundary_f(torch.zeros(1, 5, 5), torch.zeros(1, 5, 5))) == 1


def test_f_tolerates_eight_pixels_in_a_frame_of_480_lines():
    # ceil(.008 * sqrt(480^2 + 854^2)) = ceil(7.84) = 8. A single pixel has a border of two columns: moved by 9, one of
    # the two is still within 8, so precision = recall = 1/2; by 10, none is.
    moved = torch.zeros(3, 480, 854, dtype=torch.bool)
    truth = torch.zeros(3, 480, 854, dtype=torch.bool)
    truth[:, 100, 200] = True
    moved[0, 100, 208] = moved[1, 100, 209] = moved[2, 100, 210] = True
    assert boundary_f(moved, truth).tolist() == [1, 0.5, 0]


def video(frames=6):
    """Two objects and void; the second is gone from frame 3 on."""
    truth = torch.zeros(frames, 12, 16, dtype=torch.uint8)
    truth[:, 2:7, 3:8] = 1
    truth[:3, 6:11, 9:14] = 4
    truth[:, 0, :4] = 255
    predicted = truth.roll(1, 2)
    predicted[4] = 1
    predicted[predicted == 255] = 0
    return predicted, truth


def test_video_scores_leave_out_the_first_and_the_last_frame(monkeypatch):
    monkeypatch.setattr(masks, "FRAMES_AT_A_TIME", 3)
    predicted, truth = video()
    scores = score_video(predicted, truth)
    assert scores.objects == [1, 4] and scores.region.shape == scores.boundary.shape == (2, 4)
    for row, label in enumerate(scores.objects):
        pairs = [(predicted[frame] == label, truth[frame] == label) for frame in range(1, 5)]
        assert scores.region[row].tolist() == pytest.approx([plain_jaccard(*pair) for pair in pairs])
        assert scores.boundary[row].tolist() == pytest.approx([plain_f(*pair, 0.008) for pair in pairs])
    # object 1 is 5 x 5 moved by one: 20 of 30, and 25 of 192 where the whole frame was predicted
    assert scores.region[0].tolist() == pytest.approx([20 / 30, 20 / 30, 20 / 30, 25 / 192])
    assert scores.region[1].tolist() == pytest.approx([20 / 30, 20 / 30, 1, 1])  # rightly gone
    worse = predicted.clone()
    worse[0], worse[-1] = 0, 0
    assert torch.equal(score_video(worse, truth).region, scores.region)


def test_mean_is_over_objects_of_all_videos_not_over_videos():
    predicted, truth = video()
    two = score_video(predicted, truth)
    one = score_video(torch.where(truth == 1, 1, 0), torch.where(truth == 1, truth, 0))
    result = mean_over_objects([two, one])
    region = [*two.region.mean(1).tolist(), 1.0]
    border = [*two.boundary.mean(1).tolist(), 1.0]
    assert result["J"] == pytest.approx(sum(region) / 3) and result["F"] == pytest.approx(sum(border) / 3)
    assert result["J&F"] == pytest.approx((result["J"] + result["F"]) / 2)


def test_videos_that_cannot_be_scored():
    predicted, truth = video()
    with pytest.raises(UserError, match="frames, height, width"):
        score_video(predicted[:, ::2], truth)
    with pytest.raises(UserError, match="video of 2 frames"):
        score_video(predicted[:2], truth[:2])
    with pytest.raises(UserError, match="no object"):
        score_video(predicted, torch.where(truth == 255, truth, 0))
