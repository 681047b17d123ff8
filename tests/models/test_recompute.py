"""Blocks of trunks, and computing them again in the backward pass: nothing but memory changes."""

import copy

import pytest
import torch
from torch import nn

from vissl_like.models.batch_norm import AllReduceBatchNorm, synchronise_batch_norm
from vissl_like.models.blocks import blocks_of
from vissl_like.models.recompute import recompute_blocks
from vissl_like.models.trunks.regnet_y import RegNetY
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.models.trunks.vgg import VGG
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.models.trunks.xcit import XCiT
from vissl_like.utils.errors import UserError

MAKERS = {
    "resnet": lambda: ResNet(1, depth=18, width=0.125),
    "bottlenecks": lambda: ResNet(1, depth=50, width=0.125),
    "regnet_y": lambda: RegNetY(1, size="400MF"),
    "vit": lambda: VisionTransformer(1, size="tiny", image_size=32, drop_path=0.5, depth=3),
    "xcit": lambda: XCiT(1, size="nano12", drop_path=0.3),
}
EXPECTED = {
    "resnet": {"BasicBlock": 8},
    "bottlenecks": {"Bottleneck": 16},
    "regnet_y": {"YBlock": 16},
    "vit": {"Block": 3},
    "xcit": {"PatchBlock": 12, "ClassBlock": 2},
}


def made(name):
    torch.manual_seed(0)
    return MAKERS[name]()


@pytest.mark.parametrize("name", MAKERS)
def test_blocks_are_what_repeats(name):
    kinds = [type(block).__name__ for block in blocks_of(made(name))]
    assert {kind: kinds.count(kind) for kind in kinds} == EXPECTED[name]


@pytest.mark.parametrize(
    "model, kind, count", [("convnext_atto", "ConvNeXtBlock", 12), ("vit_tiny_patch16_224", "Block", 12)]
)
def test_blocks_of_timm_networks(model, kind, count):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        blocks = blocks_of(timm.create_model(model))
    assert [type(block).__name__ for block in blocks] == [kind] * count


@pytest.mark.parametrize("name", ["resnet", "regnet_y", "vit", "xcit"])
def test_gradients_statistics_and_random_numbers_are_the_same(name):
    """Drop path draws the same in both passes; running statistics move once; a second step goes on the same."""
    plain, saving = made(name), made(name)
    assert recompute_blocks(saving) == sum(EXPECTED[name].values())
    assert list(saving.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 2, 1, 32, 32)
    for trunk in (plain, saving):
        torch.manual_seed(1)
        for step in range(2):
            trunk(images[step]).square().sum().backward()
    for (key, expected), got in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(got.grad, expected.grad), key
    for (key, expected), got in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert torch.equal(got[1], expected), key
    torch.testing.assert_close(saving.eval()(images[0]), plain.eval()(images[0]))


def test_less_is_kept_and_it_can_be_gone_through_twice():
    trunk = synchronise_batch_norm(made("regnet_y"), "cpu")
    images, kept = torch.randn(2, 1, 32, 32), []
    for saving in (False, True):
        if saving:
            recompute_blocks(trunk)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            features = trunk(images)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3
    norm = trunk.trunk_output.block4[5].f.c[1]
    assert isinstance(norm, AllReduceBatchNorm)
    before = copy.deepcopy(norm.state_dict())
    features.sum().backward(retain_graph=True)
    first = trunk.stem[0].weight.grad.clone()
    features.sum().backward()
    torch.testing.assert_close(trunk.stem[0].weight.grad, 2 * first)
    assert norm.momentum == 0.1
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_copies_are_networks_of_their_own():
    """As a teacher is made: the copy must not run the original's blocks."""
    trunk = made("vit")
    recompute_blocks(trunk)
    copied, images = copy.deepcopy(trunk), torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.zero_()
    assert copied.eval()(images).any() and not trunk.eval()(images).any()
    assert all(isinstance(block, type(made("vit").blocks[0])) for block in copied.blocks)


@pytest.mark.parametrize("network", [VGG(1, fc_layers=[]), nn.Flatten()])
def test_a_trunk_without_blocks_is_refused(network):
    assert blocks_of(network) == []
    with pytest.raises(UserError, match=r"ACTIVATION_CHECKPOINTING: (VGG|Flatten) has no repeated blocks"):
        recompute_blocks(network)
