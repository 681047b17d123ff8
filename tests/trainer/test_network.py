"""The teacher when a run goes on."""

import pytest
from torch import nn

from vissl_like.models.heads.linear import LinearHead
from vissl_like.models.ssl_model import SSLModel
from vissl_like.registry import TEACHERS
from vissl_like.trainer.build import changed_settings
from vissl_like.trainer.network import resume_teacher
from vissl_like.utils.errors import UserError


def student():
    return SSLModel(nn.Flatten(), LinearHead(4, output_dim=2))


def weight(model):
    return model.head.projection_head.weight


def test_a_checkpoint_without_a_teacher_lets_it_begin_from_the_student():
    teacher, model, said = TEACHERS.get("ema")(student()), student(), []
    resume_teacher(teacher, model, {}, say=lambda text, level: said.append((text, level)))
    assert weight(teacher.network).equal(weight(model))
    assert said == [("the checkpoint has no teacher: it starts as a copy of the student", "warning")]


def test_another_kind_of_teacher_is_refused():
    saved = TEACHERS.get("previous_iteration")(student()).state_dict()
    with pytest.raises(UserError, match=r"another kind than MODEL\.TEACHER"):
        resume_teacher(TEACHERS.get("ema")(student()), student(), saved, say=print)


def test_settings_that_are_newer_than_the_checkpoint_count_as_their_defaults():
    """A run saved before ``TRAIN.clip`` or ``MODEL.TEACHER`` existed goes on, unless they are set to something else."""
    saved, now = {"TRAIN": {"length": "1 epochs"}}, {"TRAIN": {"length": "1 epochs", "clip": "whole"}}
    assert changed_settings(saved, now) == []
    assert changed_settings(saved, {**now, "MODEL": {"TEACHER": None}}) == []
    now["TRAIN"]["clip"] = "tensor"
    assert changed_settings(saved, now) == ["TRAIN.clip: absent -> tensor"]
    assert changed_settings({}, {"CHECKPOINT": {"backbone": "student"}}) == ["CHECKPOINT.backbone: absent -> student"]
