"""ResNets against torchvision: same keys, same output, known parameter counts."""

import pytest
import torch
import torchvision

from vissl_like.models.trunks.resnet import ResNet
from vissl_like.utils.errors import UserError


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvision_weights_give_torchvision_features(depth):
    reference = getattr(torchvision.models, f"resnet{depth}")()
    reference.fc = torch.nn.Identity()
    ours = ResNet(3, depth=depth)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 80)
    torch.testing.assert_close(ours.eval()(images), reference.eval()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "millions", "dim"),
    [
        ({"depth": 50}, 23.508032, 2048),
        ({"depth": 50, "width": 2}, 93.907072, 4096),
        ({"depth": 50, "width": 4}, 375.378176, 8192),
        ({"depth": 50, "width": 5}, 586.450240, 10240),
        ({"depth": 101, "groups": 32, "width_per_group": 8}, 86.742336, 2048),
        ({"depth": 101}, 42.500160, 2048),
        ({"depth": 18}, 11.176512, 512),
    ],
)
def test_parameter_counts(options, millions, dim):
    with torch.device("meta"):
        trunk = ResNet(3, **options)
    assert sum(p.numel() for p in trunk.parameters()) / 1e6 == pytest.approx(millions, abs=1e-6)
    assert trunk.feature_dim == dim


def test_small_stem_keeps_resolution_and_channels_follow_the_data():
    trunk = ResNet(1, depth=10, width=0.25, stem="small")
    assert trunk.forward_map(torch.randn(2, 1, 32, 32)).shape == (2, 128, 4, 4)
    assert ResNet(1, depth=10, width=0.25).forward_map(torch.randn(2, 1, 64, 64)).shape == (2, 128, 2, 2)


def test_zero_init_residual_starts_blocks_as_identity():
    trunk = ResNet(3, depth=50, zero_init_residual=True)
    assert not trunk.layer1[0].bn3.weight.any() and trunk.layer1[0].bn2.weight.all()


def test_wrong_number_of_stages_is_refused():
    with pytest.raises(UserError, match="4 stages"):
        ResNet(3, depth=18, blocks=[1, 1])


def test_resnext_has_torchvisions_keys_and_shapes():
    with torch.device("meta"):
        reference = torchvision.models.resnext101_32x8d()
        ours = ResNet(3, depth=101, groups=32, width_per_group=8)
    expected = {key: value.shape for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize(("groups", "width_per_group"), [(4, 8), (1, 128)])
def test_small_resnext_gives_torchvision_features(groups, width_per_group):
    options = {"groups": groups, "width_per_group": width_per_group}
    reference = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], **options)
    reference.fc = torch.nn.Identity()
    ours = ResNet(3, depth=50, blocks=[1, 1, 1, 1], **options)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 80)
    torch.testing.assert_close(ours.eval()(images), reference.eval()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"groups": 2}, {"width_per_group": 8}])
def test_groups_need_bottleneck_blocks(options):
    with pytest.raises(UserError, match="depth 50, 101 or 152"):
        ResNet(3, depth=18, **options)
