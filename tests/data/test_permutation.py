"""The computed order of an epoch: a bijection, well mixed, the same however it is divided and wherever it starts."""

import math
import tracemalloc

import numpy as np
import pytest

from vissl_like.data.samplers.permutation import BlockwiseOrder, KeyedPermutation
from vissl_like.registry import SAMPLERS

SIZES = [1, 2, 3, 5, 16, 17, 1000, 65535, 65536, 65537]
HUGE = [10**9, 10**9 + 7, 2**30, 2**40, 2**48]


def sampler(size=103, batch=4, accumulation=1, rank=0, world=1, seed=5, **options):
    return SAMPLERS.get("permutation")(size, batch, accumulation, rank, world, seed, **options)


def keys(one, start, total):
    return [key for micro in one.batches(start, total) for key in micro]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [(0, 0), (0, 1), (7, 0)])
def test_every_number_comes_once_and_the_inverse_finds_its_place(size, key):
    one = KeyedPermutation(size, *key)
    values = one(np.arange(size))
    assert values.dtype == np.int64 and np.array_equal(np.sort(values), np.arange(size))
    assert np.array_equal(one.inverse(values), np.arange(size))


@pytest.mark.parametrize("size", HUGE)
def test_sizes_that_cannot_be_held(size):
    one = KeyedPermutation(size, 3, 1)
    places = np.unique(np.random.default_rng(0).integers(0, size, 100_000))
    values = one(places)
    assert len(np.unique(values)) == len(places) and values.min() >= 0 and values.max() < size
    assert np.array_equal(one.inverse(values), places)
    ends = np.array([0, 1, size - 2, size - 1])
    assert np.array_equal(one.inverse(one(ends)), ends) and np.array_equal(one(one.inverse(ends)), ends)


def test_a_place_does_not_depend_on_what_else_is_asked_for():
    one, order = KeyedPermutation(50_000, 1, 2), sampler(50_000).order(3)
    whole = one(np.arange(50_000))
    assert all(one(np.array([place]))[0] == whole[place] for place in (0, 1, 16_383, 16_384, 49_999))
    assert np.array_equal(order[:][12_345:40_000], order[12_345:40_000]) and len(order) == 50_000


@pytest.mark.parametrize("size, each", [(3, 60), (4, 30), (5, 8)])
def test_small_permutations_are_all_equally_likely(size, each):
    """Chi-square over all size! permutations at .001."""
    trials = each * math.factorial(size)
    seen = {}
    for seed in range(trials):
        order = tuple(KeyedPermutation(size, seed, 0)(np.arange(size)).tolist())
        seen[order] = seen.get(order, 0) + 1
    chi_square = sum((count - each) ** 2 / each for count in seen.values()) + each * (math.factorial(size) - len(seen))
    free = math.factorial(size) - 1
    # Wilson and Hilferty's approximation of the .999 quantile.
    assert chi_square < free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3


@pytest.mark.parametrize("size", [1000, 100_000, 10**9])
def test_no_structure_is_left(size):
    count = min(size, 100_000)
    values = KeyedPermutation(size, 11, 0)(np.arange(count)).astype(np.float64) / size
    limit = 4 / math.sqrt(count)
    for lag in (1, 2, 3, math.isqrt(size - 1) + 1):
        if lag < count:
            assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < limit
    assert abs(np.corrcoef(np.arange(count), values)[0, 1]) < limit
    # A stretch of a tenth of the places falls evenly into twenty parts of the values (19 degrees of freedom, .001).
    stretch = values[: count // 10]
    counts = np.histogram(stretch, bins=20, range=(0, 1))[0]
    assert ((counts - len(stretch) / 20) ** 2 / (len(stretch) / 20)).sum() < 43.8
    # No more and no fewer neighbours stay neighbours than chance has it: about 2 in a random permutation.
    if count == size:
        assert (np.abs(np.diff(values)) * size < 1.5).sum() <= 9


def test_where_an_image_goes_is_uniform_over_seeds_and_epochs():
    firsts = np.array([KeyedPermutation(10, seed, 0)(np.array([0]))[0] for seed in range(1000)])
    later = np.array([KeyedPermutation(70_000, 5, epoch)(np.array([9]))[0] * 10 // 70_000 for epoch in range(1000)])
    for places in (firsts, later):
        counts = np.bincount(places, minlength=10)
        assert ((counts - 100) ** 2 / 100).sum() < 27.9  # chi-square with 9 degrees of freedom at .001


def test_every_part_of_the_key_counts():
    size, places = 70_000, np.arange(70_000)
    orders = [KeyedPermutation(size, *key)(places) for key in ((0, 0), (1, 0), (0, 1), (0, 0, 1), (2**63, 0))]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            assert (one == other).sum() < 12  # 1 expected (Poisson)
    variants = KeyedPermutation(size, 0, 0)(places, np.full(size, 77, np.uint64))
    assert np.array_equal(np.sort(variants), places) and (variants == orders[0]).sum() < 12


@pytest.mark.parametrize("options", [{}, {"block": 10}, {"block": 7, "mixed": 3}])
def test_shards_are_equal_disjoint_and_complete(options):
    world, batch = 2, 4
    shards = [keys(sampler(96, batch, rank=rank, world=world, **options), 0, 12) for rank in range(world)]
    indices = [{index for _, index in shard} for shard in shards]
    assert [len(shard) for shard in shards] == [48, 48] and not indices[0] & indices[1]
    assert indices[0] | indices[1] == set(range(96))


@pytest.mark.parametrize("world, accumulation", [(1, 2), (2, 1), (2, 2), (4, 1), (3, 1), (8, 1)])
def test_a_step_takes_the_same_images_however_it_is_divided(world, accumulation):
    whole = sampler(103, 24)
    batch = 24 // (world * accumulation)
    parts = [list(sampler(103, batch, accumulation, rank, world).batches(0, 9)) for rank in range(world)]
    for step, expected in enumerate(whole.batches(0, 9)):
        micros = range(step * accumulation, (step + 1) * accumulation)
        assert [key for micro in micros for part in parts for key in part[micro]] == expected


@pytest.mark.parametrize("size, start", [(103, 0), (103, 24), (103, 25), (103, 26), (103, 60), (10**9, 7)])
@pytest.mark.parametrize("block", [None, 10])
def test_resuming_gives_the_rest(size, start, block):
    one = sampler(size, block=block)
    assert keys(one, start, 70) == keys(one, 0, 70)[start * 4 :]


def test_resuming_at_a_billion_takes_an_integer_only():
    one = sampler(10**9, 17, rank=300, world=512)
    last = one.steps_per_epoch
    assert last == 10**9 // 8704
    batches = list(one.batches(5 * last - 1, 5 * last + 1))
    assert [batch[0][0] for batch in batches] == [4, 5] and all(len(batch) == 17 for batch in batches)


def test_a_billion_images_take_no_memory():
    next(iter(sampler(10**6).batches(0, 1)))
    tracemalloc.start()
    for options in ({}, {"block": 10_000}):
        next(iter(sampler(10**9, 64, **options).batches(10**6, 10**6 + 1)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 99, 100, 101, 1000, 1003])
@pytest.mark.parametrize("block, mixed", [(1, 1), (10, 1), (10, 3), (7, 64), (2000, 2)])
def test_blockwise_orders_are_bijections_that_stay_near(size, block, mixed):
    order = BlockwiseOrder(size, block, mixed, 4, 2)
    values = order(np.arange(size))
    assert np.array_equal(np.sort(values), np.arange(size))
    for begin in range(0, size, block * mixed):
        # One more block where a window begins within one: the short block shifts those after it.
        assert len(np.unique(values[begin : begin + block * mixed] // block)) <= mixed + 1
    pieces = np.concatenate([order(np.arange(size)[begin : begin + 13]) for begin in range(0, size, 13)])
    assert np.array_equal(pieces, values)


def test_blockwise_orders_shuffle_blocks_and_windows():
    values = BlockwiseOrder(100_000, 100, 10, 1, 0)(np.arange(100_000))
    blocks = values // 100
    assert len(np.unique(blocks[:1000])) == 10 and len(np.unique(blocks[:50])) > 5  # blocks of a window are mixed
    assert not np.array_equal(np.argsort(values[:1000]), np.argsort(values[1000:2000]))  # windows have their own order
    assert abs(np.corrcoef(blocks[:-1000:1000], blocks[1000::1000])[0, 1]) < 0.4
    other = BlockwiseOrder(100_000, 100, 10, 1, 1)(np.arange(100_000))
    assert set(blocks[:1000]) != set(other[:1000] // 100)
