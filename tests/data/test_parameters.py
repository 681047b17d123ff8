"""The laws of the drawn parameters, against torchvision's."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms as tv

from vissl_like.data.transforms.parameters import (
    BlurSpec,
    JitterSpec,
    ViewSpec,
    draw_crop,
    draw_jitter,
    draw_view,
    draw_views,
    sample_generator,
)

DRAWS = 5_000
MANY = 100_000
ALPHA = 1e-3
RATIO = (3 / 4, 4 / 3)


def their_crops(width, height, scale, count):
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    draws = (tv.RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(count))
    return np.array(list(draws))


def our_crops(width, height, scale, count, draw=draw_crop):
    generator = random.Random(1)
    return np.array([draw(width, height, scale, RATIO, generator) for _ in range(count)])


def marginals(crops):
    top, left, height, width = crops.T.astype(float)
    return {"top": top, "left": left, "area": height * width, "aspect": np.log(width / height)}


def p_values(first, second):
    one, other = marginals(first), marginals(second)
    return {name: stats.ks_2samp(one[name], other[name]).pvalue for name in one}


@pytest.mark.parametrize(
    "width, height, scale",
    [
        (300, 300, (0.25, 1.0)),
        (500, 375, (0.14, 1.0)),
        (97, 211, (0.05, 0.14)),
        (200, 60, (0.3, 1.0)),  # most of ten tries do not fit
        (13, 9, (0.05, 0.4)),
    ],
)
@pytest.mark.slow
def test_crops_have_torchvisions_law(width, height, scale):
    theirs, ours = their_crops(width, height, scale, MANY), our_crops(width, height, scale, MANY)
    assert min(p_values(theirs, ours).values()) > ALPHA
    assert (ours[:, 0] >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 1] >= 0).all() and (ours[:, 1] + ours[:, 3] <= width).all()


def test_the_comparison_can_tell_a_wrong_law():
    def aspect_uniform_instead_of_log(width, height, scale, ratio, generator):
        area = width * height * generator.uniform(*scale)
        aspect = generator.uniform(*ratio)
        w, h = min(width, round(math.sqrt(area * aspect))), min(height, round(math.sqrt(area / aspect)))
        return generator.randint(0, height - h), generator.randint(0, width - w), h, w

    theirs = their_crops(300, 300, (0.1, 0.5), DRAWS)
    found = p_values(theirs, our_crops(300, 300, (0.1, 0.5), DRAWS, aspect_uniform_instead_of_log))
    assert found["aspect"] < ALPHA / 10
    assert p_values(theirs, our_crops(300, 300, (0.1, 0.45), DRAWS))["area"] < ALPHA / 10


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (2, 3), (1000, 10), (10, 1000), (300, 224)])
def test_fallback_is_torchvisions_central_crop(size):
    width, height = size
    scale = (40.0, 50.0)  # never fits, so that all tries fail
    theirs = tuple(tv.RandomResizedCrop.get_params(torch.empty(1, height, width), list(scale), list(RATIO)))
    assert draw_crop(width, height, scale, RATIO, random.Random(0)) == theirs


@pytest.mark.slow
def test_jitter_has_torchvisions_law():
    spec = JitterSpec(0.8, 0.4, 1.5, 0.2)
    their = tv.ColorJitter(0.8, 0.4, 1.5, 0.2)
    torch.manual_seed(0)
    names = ("brightness", "contrast", "saturation", "hue")
    theirs = [their.get_params(their.brightness, their.contrast, their.saturation, their.hue) for _ in range(MANY)]
    generator = random.Random(2)
    ours = [draw_jitter(spec, generator) for _ in range(MANY)]
    for number, name in enumerate(names):
        factors = [dict(steps)[name] for steps in ours]
        assert stats.ks_2samp([draw[number + 1] for draw in theirs], factors).pvalue > ALPHA, name
    factors = np.array([dict(steps)["saturation"] for steps in ours])
    assert factors.min() >= 0.0 and factors.max() <= 2.5  # [max(0, 1 - 1.5), 1 + 1.5]
    orders = [tuple(name for name, _ in steps) for steps in ours]
    counts = [orders.count(order) for order in itertools.permutations(names)]
    assert sum(counts) == MANY and stats.chisquare(counts).pvalue > ALPHA


def test_jitter_steps_that_are_off_are_left_out():
    steps = [draw_jitter(JitterSpec(brightness=0.4, hue=0.1), random.Random(n)) for n in range(50)]
    assert {tuple(name for name, _ in drawn) for drawn in steps} == {("brightness", "hue"), ("hue", "brightness")}


def test_probabilities_and_blur():
    spec = ViewSpec(
        count=1,
        size=32,
        scale=(0.2, 1.0),
        flip=0.5,
        vertical_flip=0.3,
        jitter=JitterSpec(brightness=0.4, p=0.8),
        grayscale=0.2,
        blur=BlurSpec(0.1, (0.1, 2.0)),
        solarize=0.25,
    )
    views = [draw_view(spec, 100, 80, sample_generator(0, 0, index)) for index in range(MANY)]
    for got, expected in (
        ([view.flip for view in views], 0.5),
        ([view.vertical_flip for view in views], 0.3),
        ([bool(view.jitter) for view in views], 0.8),
        ([view.grayscale for view in views], 0.2),
        ([view.blur is not None for view in views], 0.1),
        ([view.solarize for view in views], 0.25),
    ):
        assert stats.binomtest(sum(got), MANY, expected).pvalue > ALPHA
    radii = [view.blur for view in views if view.blur is not None]
    assert stats.kstest(radii, stats.uniform(0.1, 1.9).cdf).pvalue > ALPHA
    # Independent of each other: a flip says nothing about a blur.
    table = np.histogram2d([view.flip for view in views], [view.solarize for view in views], bins=2)[0]
    assert stats.chi2_contingency(table).pvalue > ALPHA


def test_views_follow_each_other_kind_by_kind_and_differ():
    specs = (ViewSpec(2, 64, (0.25, 1.0)), ViewSpec(3, 32, (0.05, 0.14)))
    views = draw_views(specs, 200, 100, sample_generator(3, 1, 7))
    assert [view.size for view in views] == [64, 64, 32, 32, 32]
    assert len({(view.top, view.left, view.height, view.width) for view in views}) == 5
    shares = [view.height * view.width / 20_000 for view in views]
    assert min(shares[:2]) > 0.24 and max(shares[2:]) < 0.145


def test_views_of_an_image_are_independent():
    spec = (ViewSpec(2, 64, (0.2, 0.3)),)
    pairs = np.array(
        [[(v.left, v.top) for v in draw_views(spec, 300, 300, sample_generator(0, 0, n))] for n in range(3000)]
    )
    for first, second in itertools.product(range(2), repeat=2):
        assert stats.pearsonr(pairs[:, 0, first], pairs[:, 1, second]).pvalue > ALPHA


def test_generator_is_keyed_by_seed_epoch_and_index():
    keys = list(itertools.product((0, 1, 2**40), (0, 1, 5), (0, 1, 2**33)))
    first = [sample_generator(*key).random() for key in keys]
    assert first == [sample_generator(*key).random() for key in keys] and len(set(first)) == len(keys)
    neighbours = [sample_generator(0, 0, index).random() for index in range(DRAWS)]
    assert stats.kstest(neighbours, "uniform").pvalue > ALPHA
    assert abs(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1]) < 4 / math.sqrt(DRAWS)
