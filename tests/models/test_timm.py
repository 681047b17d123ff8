"""timm's models as trunks: same names and values as timm's own, and what is said when it cannot be done."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vissl_like.component import REQUIRED, scan_file
from vissl_like.config.annotations import parse_kind
from vissl_like.models.trunks import timm as module
from vissl_like.models.trunks.timm import TimmTrunk
from vissl_like.utils.errors import UserError


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="needs timm: pip install vissl_like[timm]")


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_files_are_exchanged_with_timm_under_its_names(timm, name):
    trunk, reference = TimmTrunk(1, model=name), timm.create_model(name, num_classes=0, in_chans=1)
    assert list(trunk.state_dict()) == list(reference.state_dict())
    assert len(trunk.load_state_dict(reference.state_dict()).missing_keys) == 0
    images = torch.randn(2, 1, 64, 80)
    with torch.no_grad():
        expected = reference.eval()(images)
        assert torch.equal(trunk.eval()(images), expected)
        other = timm.create_model(name, num_classes=0, in_chans=1).eval()
        assert not torch.equal(other(images), expected)
        other.load_state_dict(trunk.state_dict())
        assert torch.equal(other(images), expected)


def test_names_hold_inside_a_larger_model_and_for_a_copy(timm):
    whole = nn.ModuleDict({"trunk": TimmTrunk(3, model="test_resnet"), "head": nn.Linear(2, 2)})
    names = [f"trunk.{key}" for key in timm.create_model("test_resnet", num_classes=0).state_dict()]
    assert list(whole.state_dict()) == [*names, "head.weight", "head.bias"]
    twin = copy.deepcopy(whole)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    whole.load_state_dict(twin.state_dict())
    for mine, other in zip(whole.parameters(), twin.parameters()):
        assert torch.equal(mine, other)


def test_a_key_too_few_is_an_error(timm):
    trunk = TimmTrunk(3, model="test_resnet")
    state = trunk.state_dict()
    state.pop("layer1.0.conv1.weight")
    with pytest.raises(RuntimeError, match=r"Missing key.*layer1\.0\.conv1\.weight"):
        trunk.load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "dim"), [("test_resnet", 96), ("test_vit", 64), ("test_mambaout", 256), ("mobilenetv3_small_050", 1024)]
)
def test_feature_dim_is_what_comes_out(timm, name, dim):
    """The last two give something else than their ``num_features`` (64 and 288)."""
    trunk = TimmTrunk(3, model=name)
    assert trunk.feature_dim == dim
    assert trunk.training
    size = timm.create_model(name).pretrained_cfg["input_size"][-1]
    assert trunk.eval()(torch.randn(2, 3, size, size)).shape == (2, dim)


def test_finding_the_width_leaves_numbers_alone(timm):
    torch.manual_seed(0)
    reference = timm.create_model("test_resnet", num_classes=0)
    after = torch.rand(1)
    torch.manual_seed(0)
    trunk = TimmTrunk(3, model="test_resnet")
    assert torch.equal(torch.rand(1), after)
    for key, value in reference.state_dict().items():
        assert torch.equal(trunk.state_dict()[key], value), key


def test_a_model_that_remembers_what_it_saw_still_runs(timm):
    """ConViT keeps a table of positions on the device of its first image."""
    trunk = TimmTrunk(3, model="convit_tiny", options={"img_size": 32, "depth": 2})
    assert trunk(torch.randn(1, 3, 32, 32)).shape == (1, trunk.feature_dim)


def test_options_reach_timm(timm):
    trunk = TimmTrunk(3, model="test_vit", options={"drop_path_rate": 0.5, "img_size": [32, 64], "patch_size": 8})
    assert max(getattr(part, "drop_prob", None) or 0.0 for part in trunk.modules()) == 0.5
    assert trunk(torch.randn(2, 3, 32, 64)).shape == (2, trunk.feature_dim)


def test_a_view_of_the_wrong_size_is_explained(timm):
    trunk = TimmTrunk(3, model="swin_tiny_patch4_window7_224", options={"depths": [1, 1, 1, 1], "img_size": 224})
    with pytest.raises(UserError, match=r"96 x 64 pixels.*options\.img_size.*strict_img_size"):
        trunk(torch.randn(1, 3, 96, 64))
    loose = {"depths": [1, 1, 1, 1], "strict_img_size": False}
    trunk = TimmTrunk(3, model="swin_tiny_patch4_window7_224", options=loose)
    assert trunk(torch.randn(1, 3, 96, 64)).shape == (1, 768)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet5o", {}, r"no model 'resnet5o'\. Did you mean 'resnet50'\?"),
        ("resnet18.a1_in1k", {}, r"Did you mean 'resnet18'\?.*without the tag"),
        ("hf-hub:timm/resnet18", {}, "no model"),
        ("test_resnet", {"pretrained": True}, r"options\.pretrained cannot be given: nothing is downloaded"),
        ("test_resnet", {"num_classes": 5}, r"options\.num_classes cannot be given"),
        ("test_resnet", {"in_chans": 1}, "follows the data"),
        ("test_resnet", {"img_size": 64}, "cannot build 'test_resnet'.*img_size"),
        ("test_vit", {"patch_size": 0}, "cannot build 'test_vit'.*ZeroDivisionError"),
        ("test_vit", {"global_pool": ""}, r"gives shape \[2, 101, 64\] for 2 images"),
        ("test_resnet", {"features_only": True}, "gives a list for 2 images"),
    ],
)
def test_what_cannot_be_built_is_explained(timm, model, options, message):
    with pytest.raises(UserError, match=message):
        TimmTrunk(3, model=model, options=options)


def test_a_model_that_gives_something_else_in_training_is_explained(timm):
    trunk = TimmTrunk(3, model="deit_tiny_distilled_patch16_224", options={"img_size": 32, "depth": 1})
    trunk.net.set_distilled_training(True)
    assert trunk.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 192)
    with pytest.raises(UserError, match="gives a tuple for 2 images"):
        trunk.train()(torch.randn(2, 3, 32, 32))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'pip install "vissl_like\[timm\]"'):
        TimmTrunk(3, model="resnet18")


def test_settings_are_read_without_timm():
    (component,) = scan_file(Path(module.__file__))
    assert component.name == "timm" and component.options["model"].default == REQUIRED
    kinds = {name: parse_kind(option.annotation) for name, option in component.options.items()}
    assert set(kinds) == {"model", "options"} and all(kind.understood() for kind in kinds.values())
