"""A teacher where it is needed, none where nobody listens."""

import pytest

from vissl_like.config import load_settings
from vissl_like.utils.errors import SettingsError

DINO = ["config.MODEL.HEAD={name: dino}", "config.LOSS={name: dino}"]


def problems(*more):
    with pytest.raises(SettingsError) as caught:
        load_settings(["config=quick/synthetic", *more])
    return str(caught.value)


def test_a_loss_that_needs_a_teacher_gets_one():
    text = problems(*DINO)
    assert "the loss 'dino' needs a teacher: set MODEL.TEACHER to one of ema, previous_epoch" in text
    load_settings(["config=quick/synthetic", *DINO, "config.MODEL.TEACHER=ema"])


def test_a_teacher_that_nobody_uses_is_refused():
    text = problems(
        "config.MODEL.TEACHER=ema", "config.MODEL.HEAD={name: mlp}", "config.LOSS={name: deepcluster_v2, heads: 1}"
    )
    assert "the loss 'deepcluster_v2' makes no use of a teacher: set MODEL.TEACHER to null" in text
    assert "swav" in text and "dino" in text
    load_settings(["config=quick/synthetic", "config.MODEL.TEACHER=ema"])  # SwAV takes one


def test_a_teachers_name_and_options_are_checked():
    assert "Did you mean 'ema'" in problems("config.MODEL.TEACHER=emma")
    assert "MODEL.TEACHER.momentum = 1.5" in problems("config.MODEL.TEACHER={name: ema, momentum: 1.5}")
