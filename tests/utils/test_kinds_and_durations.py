"""Ranges and durations."""

import pytest

from vissl_like.records import Progress
from vissl_like.utils.duration import parse_duration
from vissl_like.utils.errors import nearest
from vissl_like.utils.kinds import Range


@pytest.mark.parametrize(
    ("text", "steps"),
    [("10 epochs", 70), ("1 epoch", 7), ("1.5 epochs", 10), ("500 steps", 500), ("5%", 35), (" 2 steps ", 2)],
)
def test_durations_in_steps(text, steps):
    assert Progress(0, 700, 7).steps_of(text) == steps


@pytest.mark.parametrize("text", ["10", "ten epochs", "-1 epochs", "1.5 steps", "150%", "", "3 parsecs", 7])
def test_other_texts_are_refused_with_the_way_to_write_them(text):
    with pytest.raises(ValueError, match=r"(a number with a unit|whole number|more than the whole)"):
        parse_duration(text)


def test_a_percentage_of_nothing():
    with pytest.raises(ValueError, match="run length"):
        parse_duration("5%").steps(10)


def test_ranges():
    assert Range(0, 1).holds(0) and Range(0, 1).holds(1) and not Range(0, 1).holds(1.1)
    assert not Range(0, open_low=True).holds(0) and not Range().holds(float("nan"))
    assert str(Range(0, open_low=True)) == "> 0" and str(Range(0, 1)) == ">= 0 and <= 1"


def test_nearest_name():
    assert nearest("Learning_rat", ["learning_rate", "momentum"]) == " Did you mean 'learning_rate'?"
    assert nearest("xyz", ["learning_rate"]) == ""
