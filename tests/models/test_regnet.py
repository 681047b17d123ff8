"""RegNetY against the published widths and counts, and against torchvision where it has the same network."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import regnet

from vissl_like.models.trunks.regnet_y import RULES, RegNetY, stages

PUBLISHED = {
    "400MF": ((48, 104, 208, 440), (1, 3, 6, 6), 3.90),
    "800MF": ((64, 128, 320, 768), (1, 3, 8, 2), 5.49),
    "1.6GF": ((48, 120, 336, 888), (2, 6, 17, 2), 10.31),
    "3.2GF": ((72, 216, 576, 1512), (2, 5, 13, 1), 17.92),
    "8GF": ((168, 448, 896, 2016), (2, 4, 10, 1), 37.16),
    "16GF": ((224, 448, 1232, 3024), (2, 4, 11, 1), 80.57),
    "32GF": ((232, 696, 1392, 3712), (2, 5, 12, 1), 141.33),
    "64GF": ((328, 984, 1968, 4920), (2, 5, 12, 1), 276.46),
    "128GF": ((528, 1056, 2904, 7392), (2, 7, 17, 1), 637.42),
    "256GF": ((746, 1492, 4103, 10444), (2, 7, 17, 1), 1272.16),
}
SAME_IN_TORCHVISION = ["400MF", "1.6GF", "3.2GF", "16GF", "32GF", "128GF"]


def on_meta(size):
    with torch.device("meta"):
        return RegNetY(3, size=size)


def torchvision_regnet(size):
    return getattr(torchvision.models, f"regnet_y_{size.lower().replace('.', '_')}")()


@pytest.fixture
def torchvision_on_meta(monkeypatch):
    """torchvision computes its widths with tensors, which the meta device cannot read back: keep those on the CPU."""
    original = regnet.BlockParams.from_init_params

    def on_cpu(**rule):
        with torch.device("cpu"):
            return original(**rule)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", on_cpu)

    def build(size):
        with torch.device("meta"):
            return torchvision_regnet(size)

    return build


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if not key.startswith("fc.")}


def count_by_hand(widths, depths, group):
    """Sum over layers of RegNetY: stem, then per block a, b, c, squeeze-excitation, projection and their norms."""
    total, inputs = 32 * 3 * 9 + 2 * 32, 32
    for width, depth in zip(widths, depths, strict=True):
        for position in range(depth):
            total += inputs * width + width * group * 9 + width * width + 3 * 2 * width
            squeezed = round(inputs / 4)
            total += 2 * width * squeezed + squeezed + width
            total += inputs * width + 2 * width if position == 0 else 0
            inputs = width
    return total


@pytest.mark.parametrize("size", PUBLISHED)
def test_widths_depths_and_parameter_counts(size):
    widths, depths, millions = PUBLISHED[size]
    found = stages(RULES[size])
    assert tuple(stage.width for stage in found) == widths and tuple(stage.depth for stage in found) == depths
    trunk = on_meta(size)
    assert sum(p.numel() for p in trunk.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert trunk.feature_dim == widths[-1]


def test_ten_billion_parameters_without_memory():
    widths, depths = (2020, 4040, 11110, 28280), (2, 7, 17, 1)
    trunk = on_meta("10B")
    parameters = sum(p.numel() for p in trunk.parameters())
    assert parameters == count_by_hand(widths, depths, 1010)
    assert parameters / 1e9 == pytest.approx(10, rel=0.1) and trunk.feature_dim == 28280


@pytest.mark.parametrize("size", SAME_IN_TORCHVISION)
def test_keys_and_shapes_are_torchvisions(size, torchvision_on_meta):
    assert shapes(on_meta(size)) == shapes(torchvision_on_meta(size))


@pytest.mark.parametrize(("size", "theirs"), [("800MF", (64, 144, 320, 784)), ("8GF", (224, 448, 896, 2016))])
def test_two_sizes_are_the_papers_and_not_torchvisions(size, theirs, torchvision_on_meta):
    reference = torchvision_on_meta(size).trunk_output
    assert tuple(stage[0].f.c[0].out_channels for stage in reference) == theirs
    assert tuple(stage[0].f.c[0].out_channels for stage in on_meta(size).trunk_output) == PUBLISHED[size][0]


def test_torchvision_weights_give_torchvision_features():
    torch.manual_seed(0)
    reference = torchvision_regnet("400MF")
    reference.fc = nn.Identity()
    trunk = RegNetY(3, size="400MF")
    trunk.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(trunk.eval()(images), reference.eval()(images), rtol=1e-5, atol=1e-6)
    assert trunk.forward_map(images).shape == (2, 440, 2, 3)


def test_maps_of_stages():
    """As torchvision's blocks give them; the last one pooled is the output."""
    torch.manual_seed(0)
    reference = torchvision_regnet("400MF").eval()
    trunk = RegNetY(3, size="400MF").eval()
    reference.fc = nn.Identity()
    trunk.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 96)
    x = reference.stem(images)
    for number, (stride, stage) in enumerate(zip(trunk.strides, reference.trunk_output, strict=True), 1):
        x = stage(x)
        found = trunk.stage_map(images, number)
        assert found.shape == (2, PUBLISHED["400MF"][0][number - 1], 64 // stride, 96 // stride)
        torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean(dim=(2, 3)), trunk(images))
    trunk.train()
    trunk.stage_map(images, 2).square().sum().backward()
    assert trunk.trunk_output.block2[0].f.a[0].weight.grad.any()
    assert trunk.trunk_output.block3[0].f.a[0].weight.grad is None


def test_initial_weights():
    torch.manual_seed(0)
    trunk = RegNetY(1, size="400MF")
    assert trunk.stem[0].weight.shape == (32, 1, 3, 3)
    grouped = trunk.trunk_output.block4[1].f.b[0].weight
    assert grouped.shape == (440, 8, 3, 3)
    assert grouped.std().item() == pytest.approx((2 / (9 * 440)) ** 0.5, rel=0.05)
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
