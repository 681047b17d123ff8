import itertools

import numpy as np
import pytest

from vissl_like.registry import SAMPLERS
from vissl_like.utils.errors import UserError

SIZE = 103


def sampler(name="shuffled", size=SIZE, batch=4, accumulation=1, rank=0, world=1, seed=5):
    return SAMPLERS.get(name)(size, batch, accumulation, rank, world, seed)


def steps(one, start=0, total=None):
    """Micro-batches of each step."""
    total = 2 * one.steps_per_epoch + 3 if total is None else total
    batches = list(one.batches(start, total))
    return [batches[i : i + one.accumulation] for i in range(0, len(batches), one.accumulation)]


@pytest.mark.parametrize("name", ["shuffled", "sequential"])
def test_an_epoch_takes_every_image_at_most_once(name):
    one = sampler(name)
    assert one.steps_per_epoch == 25 and one.global_batch == 4
    keys = [key for step in steps(one, total=50) for micro in step for key in micro]
    for epoch in (0, 1):
        indices = [index for e, index in keys if e == epoch]
        assert len(indices) == 100 == len(set(indices)) and 0 <= min(indices) <= max(indices) < SIZE
    assert all(isinstance(value, int) for key in keys for value in key)


def test_sequential_is_in_order_and_shuffled_is_not():
    assert [index for _, index in next(iter(sampler("sequential").batches(0, 1)))] == [0, 1, 2, 3]
    orders = [sampler(seed=seed).order(epoch).tolist() for seed, epoch in itertools.product((0, 1), (0, 1))]
    assert all(sorted(order) == list(range(SIZE)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert sampler(seed=1).order(1).tolist() == orders[3]


def test_shuffling_is_uniform():
    firsts = np.array([sampler(size=10, batch=1, seed=seed).order(0)[0] for seed in range(2000)])
    counts = np.bincount(firsts, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square with 9 degrees of freedom at .001


@pytest.mark.parametrize("world, accumulation", [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4), (4, 2), (3, 1), (8, 1)])
def test_a_step_takes_the_same_images_however_it_is_divided(world, accumulation):
    total = 24 if 24 % (world * accumulation) == 0 else world * accumulation
    whole = steps(sampler(batch=total))
    parts = [
        steps(sampler(batch=total // (world * accumulation), accumulation=accumulation, rank=rank, world=world))
        for rank in range(world)
    ]
    for number, (expected,) in enumerate(whole):
        ours = [key for micro in range(accumulation) for rank in range(world) for key in parts[rank][number][micro]]
        assert ours == expected  # micro-batch by micro-batch in rank order, so even the places agree
        assert len({index for _, index in ours}) == total


def test_ranks_together_see_what_one_process_sees_in_each_micro_batch():
    alone = steps(sampler(batch=6, accumulation=2))
    first, second = (steps(sampler(batch=3, accumulation=2, rank=rank, world=2)) for rank in (0, 1))
    for one, a, b in zip(alone, first, second, strict=True):
        assert [x + y for x, y in zip(a, b, strict=True)] == one


@pytest.mark.parametrize("start", [0, 1, 7, 24, 25, 26, 49, 52, 53])
def test_resuming_gives_the_rest(start):
    one = sampler(accumulation=2, batch=2)
    assert steps(one, start, 53) == steps(one, 0, 53)[start:]


def test_a_dataset_smaller_than_the_batch():
    with pytest.raises(UserError, match=r"has 103 images, fewer than one global batch of 128 .*at most 103"):
        sampler(batch=16, accumulation=4, world=2)
    assert sampler(batch=103).steps_per_epoch == 1
