import numpy as np
import pytest

from vissl_like.evaluation.compare import paired_interval


def test_mean_and_per_seed_by_hand():
    a = np.array([[1, 1, 0, 1], [1, 0, 0, 1]])
    b = np.array([[1, 0, 0, 0], [1, 1, 0, 1]])
    found = paired_interval(a, b)
    assert found.per_seed == (50.0, -25.0)
    assert found.mean == pytest.approx(12.5)
    assert found.images == 4
    assert found.low <= found.mean <= found.high


def test_a_clear_difference_excludes_zero_and_no_difference_does_not():
    generator = np.random.default_rng(0)
    b = generator.random((3, 600)) < 0.7
    a = b | (generator.random((3, 600)) < 0.2)
    assert paired_interval(a, b).excludes_zero
    assert paired_interval(a, b).low > 0
    c = generator.random((3, 600)) < 0.7
    assert not paired_interval(c, b).excludes_zero
    assert paired_interval(a, a).low == paired_interval(a, a).high == 0


def test_pairing_narrows_the_interval():
    generator = np.random.default_rng(1)
    hard = generator.random(800) < 0.3
    b = np.tile(~hard, (3, 1))
    a = b ^ (generator.random((3, 800)) < 0.02)  # differs from B on 2 % of the images
    paired = paired_interval(a, b)
    shuffled = paired_interval(a, b[:, generator.permutation(800)])
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_width_against_the_binomial_formula():
    # One seed, B always wrong: the difference is A's accuracy, with standard error sqrt(p (1 - p) / M).
    a = np.arange(400) % 4 != 0
    found = paired_interval(a, np.zeros(400), resamples=20000)
    error = 100 * np.sqrt(0.75 * 0.25 / 400)
    assert found.mean == 75.0
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.06)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.06)


def test_equals_a_plain_bootstrap():
    generator = np.random.default_rng(4)
    a, b = generator.random((3, 60)) < 0.8, generator.random((3, 60)) < 0.6
    difference = 100 * (a.astype(float) - b)
    draws = [difference[generator.integers(0, 3, 3)][:, generator.integers(0, 60, 60)].mean() for _ in range(8000)]
    found = paired_interval(a, b, resamples=40000)
    np.testing.assert_allclose([found.low, found.high], np.quantile(draws, [0.025, 0.975]), atol=1.2)


def test_many_images_take_no_time():
    import time

    generator = np.random.default_rng(5)
    start = time.process_time()
    paired_interval(generator.random((3, 100000)) < 0.8, generator.random((3, 100000)) < 0.7)
    assert time.process_time() - start < 5


def test_seeds_that_differ_widen_it():
    steady = np.repeat((np.arange(400) % 10 != 0)[None], 3, axis=0)
    floor = np.zeros(400)
    jumping = steady.copy()
    jumping[0, :80] = False
    same = paired_interval(steady, floor)
    varied = paired_interval(jumping, floor)
    assert varied.high - varied.low > 1.5 * (same.high - same.low)


def test_a_method_without_chance_is_compared_with_every_seed():
    a = np.random.default_rng(2).random((3, 50)) < 0.8
    b = np.random.default_rng(3).random(50) < 0.5
    assert paired_interval(a, b) == paired_interval(a, np.tile(b, (3, 1)))


def test_repeats_and_depends_on_its_seed():
    a = np.random.default_rng(2).random((3, 501)) < 0.8
    b = np.random.default_rng(3).random((3, 501)) < 0.5
    assert paired_interval(a, b, resamples=200) == paired_interval(a, b, resamples=200)
    assert paired_interval(a, b, resamples=200, seed=1) != paired_interval(a, b, resamples=200)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[seeds, images\]"):
        paired_interval(np.ones((2, 5)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="level"):
        paired_interval(np.ones((2, 5)), np.ones((2, 5)), level=95)


def test_prints_readably():
    assert str(paired_interval(np.ones((2, 5)), np.zeros((2, 5)))) == "+100.0 [+100.0, +100.0]"
