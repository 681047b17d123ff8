"""XCiT against timm's independent modules, published sizes, and the key names of the released files."""

import re

import pytest
import torch
from torch import nn

from vissl_like.models.drop_path import DropPath
from vissl_like.models.trunks.xcit import XCiT


def filled(trunk, seed=0):
    """Arbitrary numbers in every parameter and statistic: nothing stays at a start value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in trunk.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.ndim > 1 and tensor.shape[-1] > 1 and "cls_token" not in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + 0.5)
    return trunk.eval()


def renamed_for_timm(state):
    """The two places where timm's names differ from the official ones."""
    found = {}
    for key, value in state.items():
        key = key.replace("pos_embeder", "pos_embed")
        match = re.fullmatch(r"(cls_attn_blocks\.\d+\.attn\.)qkv(\..*)", key)
        if match:
            for letter, part in zip("qkv", value.chunk(3)):
                found[f"{match[1]}{letter}{match[2]}"] = part
        else:
            found[key] = value
    return found


@pytest.mark.parametrize(
    ("size", "patch", "name", "channels"),
    [
        ("nano12", 16, "xcit_nano_12_p16_224", 3),
        ("tiny12", 8, "xcit_tiny_12_p8_224", 1),
    ],
)
def test_same_features_as_timm(size, patch, name, channels):
    timm = pytest.importorskip("timm", reason="the reference is timm's model: pip install vissl_like[dev]")
    ours = filled(XCiT(channels, size=size, patch_size=patch))
    reference = timm.create_model(name, num_classes=0, in_chans=channels).eval()
    reference.load_state_dict(renamed_for_timm(ours.state_dict()))
    images = torch.randn(2, channels, 4 * patch, 4 * patch, generator=torch.Generator().manual_seed(1))
    wide = torch.randn(2, channels, 3 * patch, 5 * patch, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for batch in (images, wide):
            expected = reference(batch)
            assert expected.std() > 0.1
            torch.testing.assert_close(ours(batch), expected, rtol=1e-4, atol=1e-5)
            assert (ours(batch)[0] - ours(batch)[1]).abs().max() > 1e-3


def test_training_step_equals_timm():
    """BatchNorm on batch statistics and every gradient, in the one variant that norms the class token alone."""
    timm = pytest.importorskip("timm", reason="the reference is timm's model: pip install vissl_like[dev]")
    ours = filled(XCiT(3, size="nano12")).double().train()
    reference = timm.create_model("xcit_nano_12_p16_224", num_classes=0).double().train()
    reference.load_state_dict(renamed_for_timm(ours.state_dict()))
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours(images).square().mean().backward()
    reference(images).square().mean().backward()
    gradients = renamed_for_timm({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-7, msg=name)
    statistics = renamed_for_timm(dict(ours.named_buffers()))
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(statistics[name], buffer, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("size", "patch", "millions", "keys"),
    [("small12", 16, 25.87, 381), ("small12", 8, 25.83, 375), ("medium24", 16, 83.88, 705), ("medium24", 8, None, 699)],
)
def test_published_parameter_counts_and_numbers_of_keys(size, patch, millions, keys):
    with torch.device("meta"):
        trunk = XCiT(3, size=size, patch_size=patch)
    assert len(trunk.state_dict()) == keys  # of DINO's released files
    if millions is not None:
        assert sum(p.numel() for p in trunk.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("nano12", "xcit_nano_12_p16_224"),
        ("tiny12", "xcit_tiny_12_p16_224"),
        ("small12", "xcit_small_12_p16_224"),
        ("small24", "xcit_small_24_p16_224"),
        ("medium24", "xcit_medium_24_p16_224"),
    ],
)
def test_every_size_has_published_shapes(size, name):
    timm = pytest.importorskip("timm", reason="the reference is timm's model: pip install vissl_like[dev]")
    with torch.device("meta"):
        trunk, reference = XCiT(3, size=size), timm.create_model(name, num_classes=0)
    wanted = {key: value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in renamed_for_timm(trunk.state_dict()).items()} == wanted
    assert trunk.feature_dim == reference.num_features
    assert [b.norm_all_tokens for b in trunk.cls_attn_blocks] == [b.tokens_norm for b in reference.cls_attn_blocks]


def test_start_values():
    """LayerScale starts at 1 with 12 blocks and at 1e-5 with 24."""
    torch.manual_seed(0)
    trunk = XCiT(3, size="small24")
    state = trunk.state_dict()
    gammas = torch.cat([value for key, value in state.items() if "gamma" in key])
    assert torch.equal(gammas, torch.full_like(gammas, 1e-5))
    assert torch.equal(XCiT(3, size="nano12").blocks[3].gamma3.detach(), torch.ones(128))
    assert state["blocks.0.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["cls_attn_blocks.1.mlp.fc2.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["cls_token"].std().item() == pytest.approx(0.02, rel=0.15)
    assert not any(value.any() for key, value in state.items() if re.search(r"(qkv|attn\.proj|fc[12])\.bias", key))
    assert (state["blocks.5.attn.temperature"] == 1).all()


def test_batch_norms_are_plain_so_that_they_can_be_synchronised():
    trunk = XCiT(3, size="nano12")
    norms = [module for module in trunk.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {type(norm) for norm in norms} == {nn.BatchNorm2d}
    assert len(norms) == 4 + 12  # the stem's and one per local interaction


def test_drop_path_is_constant_and_can_be_switched_off():
    trunk = XCiT(3, size="nano12", drop_path=0.3)
    drops = [module for module in trunk.modules() if isinstance(module, DropPath)]
    assert [drop.drop_prob for drop in drops] == [0.3] * 12
    for block in trunk.blocks:  # otherwise the small start values of branches hide a dropped one
        for gamma in (block.gamma1, block.gamma2, block.gamma3):
            nn.init.constant_(gamma, 3.0)
    images = torch.randn(4, 3, 32, 32)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    torch.manual_seed(0)
    first, second = trunk(images), trunk(images)
    assert not torch.allclose(first, second)
    for drop in drops:
        drop.drop_prob = 0.0
    assert torch.equal(trunk(images), trunk(images))


def test_all_branches_dropped_leaves_only_stem_positions_and_class_blocks():
    """With every branch of the patch blocks dropped, the blocks' weights have no influence."""
    trunk = XCiT(3, size="nano12", drop_path=1.0).train()
    images = torch.randn(2, 3, 32, 32)
    features = trunk(images)
    # The plain sum of what a LayerNorm gives is constant.
    (features * torch.randn_like(features)).sum().backward()
    assert not any(p.grad.any() for p in trunk.blocks.parameters())
    assert trunk.patch_embed.proj[0][0].weight.grad.any() and trunk.pos_embeder.token_projection.weight.grad.any()


def test_any_image_size_and_all_tokens():
    trunk = filled(XCiT(3, size="nano12"))
    with torch.no_grad():
        assert trunk(torch.randn(2, 3, 50, 33)).shape == (2, 128)  # rounded up to 4 x 3 patches
        tokens = trunk.forward_tokens(torch.randn(1, 3, 50, 33))
    assert tokens.shape == (1, 1 + 4 * 3, 128)


@pytest.mark.parametrize("size", [(64, 96), (50, 33)])
def test_maps_of_blocks_are_timms(size):
    timm = pytest.importorskip("timm", reason="the reference is timm's model: pip install vissl_like[dev]")
    ours = filled(XCiT(3, size="nano12"))
    reference = timm.create_model("xcit_nano_12_p16_224", num_classes=0).eval()
    reference.load_state_dict(renamed_for_timm(ours.state_dict()))
    assert ours.strides == (16,) * 12
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference.forward_intermediates(images, indices=12, norm=True, intermediates_only=True)
        for stage in (1, 7, 12):
            found = ours.stage_map(images, stage)
            assert found.shape == (2, 128, -(-size[0] // 16), -(-size[1] // 16))
            torch.testing.assert_close(found, expected[stage - 1], rtol=1e-4, atol=1e-5)
