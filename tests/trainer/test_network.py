"""The teacher when a run goes on; groups of processes that share BatchNorm statistics; when nothing is sharded."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.models.heads.linear import LinearHead
from vissl_like.models.ssl_model import SSLModel
from vissl_like.registry import TEACHERS
from vissl_like.trainer import network
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


def group_settings(sync, size):
    return OmegaConf.create({"MODEL": {"SYNC_BATCH_NORM": sync, "SYNC_BATCH_NORM_GROUP": size}})


@pytest.fixture
def six_processes(monkeypatch):
    for name, value in (("active", True), ("world_size", 6), ("subgroup", None)):
        monkeypatch.setattr(f"vissl_like.trainer.network.comm.{name}", lambda *_, value=value: value)


def test_groups_of_batch_norm_divide_the_processes(six_processes):
    assert [network._norm_group(group_settings("auto", size)) for size in (None, 1, 3, 6)] == [None, 1, 3, 6]
    with pytest.raises(UserError, match=r"GROUP = 4 does not divide the 6 processes.*Allowed are 1, 2, 3, 6, or null"):
        network._norm_group(group_settings("auto", 4))
    with pytest.raises(UserError, match=r"GROUP = 2 and MODEL\.SYNC_BATCH_NORM = false"):
        network._norm_group(group_settings(False, 2))


def test_in_one_process_there_is_nothing_to_group():
    assert network._norm_group(group_settings("auto", 8)) is None


@pytest.mark.parametrize("size, alike", [(None, True), (6, True), (3, False), (1, False)])
def test_smaller_groups_are_no_place_for_a_teacher(six_processes, size, alike):
    """Their running statistics differ between processes; the main one's go to all before each forward."""
    model = SSLModel(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), LinearHead(4, output_dim=2))
    teacher = TEACHERS.get("ema")(model)
    synchronise_batch_norm(model, "cpu", size)
    assert list(network._buffer_sync(model).values()) == [not alike]
    if alike:
        network.check_teacher(model, teacher)
    else:
        with pytest.raises(UserError, match="other statistics on every process"):
            network.check_teacher(model, teacher)


def test_fp16_is_refused(monkeypatch):
    monkeypatch.setattr("vissl_like.trainer.network.comm.active", lambda: True)
    with pytest.raises(UserError, match=r"fp16.*Allowed are bf16 and fp32"):
        network.wrap(nn.Identity(), None, torch.device("cpu"), "full", "fp16")


def test_one_process_is_not_sharded():
    model = nn.Linear(1, 1)
    assert network.wrap(model, None, torch.device("cpu"), "full", "fp32") is model
