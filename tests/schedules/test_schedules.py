"""Schedules against the published arrays."""

import numpy as np
import pytest

from vissl_like.records import Progress
from vissl_like.registry import SCHEDULES
from vissl_like.utils.errors import UserError


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (40, 0), (7, 1)])
def test_cosine_equals_the_published_arrays(total, warmup):
    base, final, start = 4.8, 0.0048, 0.3
    rise = np.linspace(start, base, warmup)
    t = np.arange(total - warmup)
    fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * t / (total - warmup)))
    schedule = SCHEDULES.get("cosine")(
        base, final_ratio=final / base, warmup=f"{warmup} steps", warmup_start_ratio=start / base
    )
    ours = [schedule(Progress(step, total, 10)) for step in range(total)]
    expected = np.concatenate([rise, fall])
    if warmup == 1:  # linspace of one point is its start; a one-step warm-up has nowhere to rise from
        expected[0] = start
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_base_is_reached_twice_around_the_end_of_the_warm_up():
    schedule = SCHEDULES.get("cosine")(1.0, warmup="1 epochs")
    assert schedule(Progress(9, 100, 10)) == schedule(Progress(10, 100, 10)) == 1.0


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="the run has only 20 steps"):
        SCHEDULES.get("cosine")(1.0, warmup="2 epochs")(Progress(0, 20, 10))


def test_drops_at_given_places():
    schedule = SCHEDULES.get("steps")(0.8, at=["2 epochs", "35 steps", "80%"], factor=0.5)
    values = [schedule(Progress(step, 50, 10)) for step in (0, 19, 20, 34, 35, 39, 40, 49)]
    np.testing.assert_allclose(values, [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
    with pytest.raises(UserError, match="must increase, got 30 steps, 2 epochs"):
        SCHEDULES.get("steps")(0.8, at=["30 steps", "2 epochs"])(Progress(0, 50, 10))


def test_constant():
    assert SCHEDULES.get("constant")(0.3)(Progress(5, 10, 2)) == 0.3


def test_cosine_to_a_value_that_is_not_scaled():
    """Weight decay of DINO: 0.04 -> 0.4, and a final rate that does not follow the batch."""
    schedule = SCHEDULES.get("cosine")(0.04, final=0.4)
    expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(50) / 50))
    np.testing.assert_allclose([schedule(Progress(step, 50, 10)) for step in range(50)], expected, rtol=1e-9)
    with pytest.raises(UserError, match="not both"):
        SCHEDULES.get("cosine")(0.1, final=0.01, final_ratio=0.1)
