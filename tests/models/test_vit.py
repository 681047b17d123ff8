"""Vision transformers against a plain re-implementation of the official formulas, timm, and known parameter counts."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vissl_like.models.drop_path import DropPath
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.utils.errors import UserError

SMALL = {"size": "tiny", "patch_size": 8, "image_size": 32, "depth": 2}
HEADS = 3


def filled(seed=0, channels=3, **options):
    """A float64 network in eval mode whose every weight is an arbitrary number; positions are large."""
    trunk = VisionTransformer(channels, **{**SMALL, **options}).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in trunk.state_dict().items():
        scale = 1.0 if name in ("pos_embed", "cls_token") else 0.08
        value.copy_(scale * torch.randn(value.shape, generator=generator, dtype=torch.float64))
        if "norm" in name and name.endswith("weight"):
            value.add_(1.0)
    return trunk


def images(height, width, count=2, channels=3, seed=5):
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed)).double()


# --- a plain reference: the official formulas once more, from a state dict ---


def cubic_weights(distance):
    """Keys' cubic kernel with a = -0.75 at 1 + t, t, 1 - t, 2 - t."""

    def near(x):
        return (1.25 * x - 2.25) * x * x + 1

    def far(x):
        return -0.75 * (((x - 5) * x + 8) * x - 4)

    return np.array([far(1 + distance), near(distance), near(1 - distance), far(2 - distance)])


def sampled(table, count, scale):
    """``[M, ...]`` sampled at ``count`` places along the first axis; neighbours are 1 / scale apart, ends repeated."""
    rows = []
    for place in range(count):
        source = (place + 0.5) / scale - 0.5
        base = math.floor(source)
        where = np.clip(np.arange(base - 1, base + 3), 0, len(table) - 1)
        rows.append(np.tensordot(cubic_weights(source - base), table[where], axes=1))
    return np.stack(rows)


def reference_positions(table, patch, height, width, offset=0.1):
    """Official: as it is if counts agree and the image is square, else sampled with (count + 0.1) / M as the scale."""
    side = math.isqrt(table.shape[1] - 1)
    rows, columns = height // patch, width // patch
    if rows * columns == side * side and height == width:
        return table
    grid = table[0, 1:].numpy().reshape(side, side, -1)
    grid = sampled(grid, rows, (rows + offset) / side)
    grid = sampled(grid.transpose(1, 0, 2), columns, (columns + offset) / side).transpose(1, 0, 2)
    return torch.cat([table[:, :1], torch.from_numpy(grid.reshape(1, rows * columns, -1))], dim=1)


def reference(weights, pictures, patch, heads=HEADS, offset=0.1):
    """All tokens after every block (normalised), and the last block's attention; loops over patches and heads."""
    n, _, height, width = pictures.shape
    kernel = weights["patch_embed.proj.weight"].flatten(1)
    tokens = [weights["cls_token"][0, 0].expand(n, -1)]
    for row in range(height // patch):
        for column in range(width // patch):
            cut = pictures[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(cut.flatten(1) @ kernel.T + weights["patch_embed.proj.bias"])
    x = torch.stack(tokens, dim=1) + reference_positions(weights["pos_embed"], patch, height, width, offset)
    d = x.shape[-1]
    size = d // heads

    def norm(values, name):
        centred = values - values.mean(-1, keepdim=True)
        spread = (centred**2).mean(-1, keepdim=True) + 1e-6
        return centred / spread.sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(values, name):
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    outputs, attention = [], None
    for block in range(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))):
        lead = f"blocks.{block}"
        packed = linear(norm(x, f"{lead}.norm1"), f"{lead}.attn.qkv")
        mixed, attention = [], []
        for head in range(heads):
            query, key, value = (packed[..., part * d + head * size :][..., :size] for part in range(3))
            scores = (query @ key.transpose(1, 2)) / math.sqrt(size)
            shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
            attention.append(shares)
            mixed.append(shares @ value)
        x = x + linear(torch.cat(mixed, dim=-1), f"{lead}.attn.proj")
        inner = linear(norm(x, f"{lead}.norm2"), f"{lead}.mlp.fc1")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + linear(inner, f"{lead}.mlp.fc2")
        outputs.append(norm(x, "norm"))
    return outputs, torch.stack(attention, dim=1)


# --- the network against it ---


@pytest.mark.parametrize(
    ("height", "width"),
    [(32, 32), (39, 39), (16, 16), (48, 48), (24, 48), (48, 16), (35, 21), (8, 8), (16, 64), (32, 36)],
)
def test_official_output_at_every_size(height, width):
    """39 px floor to the table's own grid; 16 x 64 and 32 x 36 have its number of patches and are not square."""
    trunk, pictures = filled(), images(height, width)
    expected, attention = reference(trunk.state_dict(), pictures, 8)
    torch.testing.assert_close(trunk(pictures), expected[-1][:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(trunk.last_attention(pictures), attention, rtol=1e-9, atol=1e-9)
    layers = trunk.intermediate_layers(pictures, 2)
    assert len(layers) == 2
    for found, wanted in zip(layers, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("patch", "image_size", "given"), [(16, 32, 48), (8, 28, 33), (5, 24, 37)])
def test_official_output_with_other_patches(patch, image_size, given):
    trunk, pictures = filled(patch_size=patch, image_size=image_size), images(given, given - 6)
    expected, _ = reference(trunk.state_dict(), pictures, patch)
    torch.testing.assert_close(trunk(pictures), expected[-1][:, 0], rtol=1e-9, atol=1e-9)


def test_the_offset_matters():
    """Sampling for the wanted size, without 0.1, is another network: the comparison above would notice."""
    trunk, pictures = filled(), images(24, 24)
    right, _ = reference(trunk.state_dict(), pictures, 8)
    wrong, _ = reference(trunk.state_dict(), pictures, 8, offset=0.0)
    assert (right[-1][:, 0] - wrong[-1][:, 0]).abs().max() > 1e-3
    table = trunk.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    by_size = nn.functional.interpolate(table, size=(3, 3), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    plain = reference_positions(trunk.pos_embed.detach(), 8, 24, 24, offset=0.0)[:, 1:]
    torch.testing.assert_close(by_size, plain, rtol=1e-9, atol=1e-9)
    assert (trunk.positions(24, 24)[:, 1:] - by_size).abs().max() > 1e-2


def test_as_many_patches_in_another_shape_are_interpolated():
    """112 x 448 for a network of 224: as many patches, yet not the table as it is."""
    trunk = VisionTransformer(3, size="tiny", depth=1)
    with torch.no_grad():
        assert trunk.positions(224, 224) is trunk.pos_embed
        assert trunk.positions(239, 239) is trunk.pos_embed
        for height, width in ((112, 448), (224, 230)):
            positions = trunk.positions(height, width)
            assert positions.shape == trunk.pos_embed.shape
            assert torch.equal(positions[:, 0], trunk.pos_embed[:, 0])
            assert (positions - trunk.pos_embed).abs().max() > 1e-3


@pytest.mark.parametrize(("options", "count"), [({"patch_size": 16}, 37), ({"patch_size": 8}, 145)])
def test_small_crops_of_a_network_of_224(options, count):
    trunk = VisionTransformer(3, size="tiny", depth=1, **options)
    assert trunk.intermediate_layers(torch.randn(1, 3, 96, 96), 1)[0].shape == (1, count, 192)
    assert trunk.grid(96, 48) == (96 // options["patch_size"], 48 // options["patch_size"])


# --- timm, torch ---


@pytest.mark.parametrize(
    ("name", "patch", "image_size", "depth"),
    [("vit_tiny_patch16_224", 16, 64, 12), ("vit_small_patch8_224", 8, 32, 2)],
)
def test_timm_weights_give_timm_features(name, patch, image_size, depth):
    theirs = timm.create_model(name, img_size=image_size, num_classes=0, depth=depth).eval()
    for value in theirs.state_dict().values():
        value.add_(0.02 * torch.randn_like(value))
    size = name.split("_")[1]
    ours = VisionTransformer(3, size=size, patch_size=patch, image_size=image_size, depth=depth).eval()
    assert set(ours.state_dict()) == set(theirs.state_dict()) and len(ours.state_dict()) == 6 + 12 * depth
    ours.load_state_dict(theirs.state_dict())
    pictures = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(pictures), theirs(pictures), rtol=1e-5, atol=1e-5)


def total(**options):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VisionTransformer(3, **options).parameters())


def test_parameter_counts():
    assert total(size="tiny") == 5_524_416
    assert total(size="small") == 21_665_664
    assert total(size="base") == 85_798_656
    assert total(size="large") == 303_301_632
    assert total(size="small", patch_size=8) == 21_665_664 + 4608


def test_five_pixel_patches_at_224():
    with torch.device("meta"):
        trunk = VisionTransformer(3, size="small", patch_size=5)
    assert trunk.grid(224, 224) == (44, 44) and trunk.pos_embed.shape == (1, 1937, 384)
    assert trunk.feature_dim == 384


def test_initial_values():
    torch.manual_seed(0)
    trunk = VisionTransformer(3, size="tiny", depth=2)
    for values in (trunk.pos_embed, trunk.blocks[1].mlp.fc1.weight, trunk.blocks[0].attn.qkv.weight):
        assert values.std().item() == pytest.approx(0.02, rel=0.02) and abs(values.mean().item()) < 1e-3
    assert trunk.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not any(value.any() for name, value in trunk.named_parameters() if name.endswith("bias") and "fc" in name)
    bound = 1 / math.sqrt(3 * 16 * 16)  # torch's own for a convolution
    weights = trunk.patch_embed.proj.weight
    assert 0.98 * bound < weights.abs().max() <= bound
    assert all(module.eps == 1e-6 for module in trunk.modules() if isinstance(module, nn.LayerNorm))


# --- attention ---


@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
def test_both_ways_of_attention_are_one(size):
    fused, explicit = filled(attention="sdpa"), filled(attention="explicit")
    pictures = images(*size)
    torch.testing.assert_close(fused(pictures), explicit(pictures), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fused.last_attention(pictures), explicit.last_attention(pictures), rtol=0, atol=1e-12)
    for trunk in (fused, explicit):
        trunk(pictures).square().sum().backward()
    for (name, left), right in zip(fused.named_parameters(), explicit.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_last_attention_is_a_distribution_for_every_token(attention):
    trunk = filled(attention=attention)
    found = trunk.last_attention(images(24, 40))
    assert found.shape == (2, HEADS, 16, 16)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, HEADS, 16).double())
    assert (
        found.min() > 0 and found.max() > 0.2
    )  # far from uniform, so the comparison with the reference says something


def test_intermediate_layers_end_with_the_features():
    trunk, pictures = filled(depth=3), images(32, 32)
    (last,) = trunk.intermediate_layers(pictures, 1)
    torch.testing.assert_close(last[:, 0], trunk(pictures), rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="4 last blocks were asked for; this network has 1 to 3"):
        trunk.intermediate_layers(pictures, 4)


# --- drop path ---


def test_drop_path_rises_from_nothing_in_the_first_block():
    trunk = VisionTransformer(3, size="tiny", drop_path=0.22, patch_size=16, image_size=32)
    rates = [block.drop_path.drop_prob for block in trunk.blocks]
    assert rates == pytest.approx([0.02 * block for block in range(12)])
    assert trunk.blocks[0].drop_path.drop_prob == 0.0
    assert [b.drop_path.drop_prob for b in VisionTransformer(3, **{**SMALL, "depth": 1}, drop_path=0.5).blocks] == [0.0]


def test_drop_path_only_while_training():
    trunk = filled(drop_path=1.0)
    plain, pictures = filled(), images(32, 32)
    assert torch.equal(trunk(pictures), plain(pictures))
    state = torch.get_rng_state()
    trunk.blocks[0].train()
    assert torch.equal(trunk(pictures), plain(pictures))  # the first block never drops
    assert torch.equal(torch.get_rng_state(), state)
    trunk.train()
    only_first = filled()
    only_first.blocks = only_first.blocks[:1]
    torch.testing.assert_close(trunk(pictures), only_first(pictures))  # the last is dropped for certain


def test_drop_path_keeps_the_expectation_and_treats_an_image_as_one():
    torch.manual_seed(0)
    drop = DropPath(0.3)
    found = drop(torch.full((20_000, 2, 3), 1.5))
    assert torch.equal(found, found[:, :1, :1].expand_as(found))
    assert sorted(set(found.flatten().tolist())) == pytest.approx([0.0, 1.5 / 0.7])
    kept = (found[:, 0, 0] > 0).double().mean().item()
    assert kept == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 20_000))
    assert found.mean().item() == pytest.approx(1.5, rel=0.02)
    assert torch.equal(DropPath(1.0)(torch.ones(3, 2)), torch.zeros(3, 2))
    whole = torch.ones(3, 2)
    assert DropPath(0.0)(whole) is whole and drop.eval()(whole) is whole


def test_the_branches_of_a_block_are_dropped_by_themselves():
    torch.manual_seed(0)
    trunk = filled(drop_path=0.5).train()
    for name, value in trunk.blocks[1].named_parameters():
        if name.startswith(("attn.proj", "mlp.fc2")):  # each branch adds a number of its own to every token
            nn.init.constant_(value, 0.0 if name.endswith("weight") else 1.0 if name.startswith("attn") else 10.0)
    with torch.no_grad():
        tokens = trunk.blocks[1](torch.zeros(400, 2, 192).double())[:, 0, 0]
    values, counts = tokens.unique(return_counts=True)
    assert values.tolist() == [0.0, 2.0, 20.0, 22.0] and counts.min() > 60


# --- other things ---


def test_channels_follow_the_data():
    assert VisionTransformer(1, **SMALL)(torch.randn(2, 1, 32, 16)).shape == (2, 192)


def test_gradients_reach_every_weight_through_interpolated_positions():
    trunk = filled(attention="explicit").train()
    trunk(images(24, 40)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trunk.parameters())


def test_images_without_room_for_a_patch_are_refused():
    trunk = VisionTransformer(3, **SMALL)
    with pytest.raises(UserError, match=r"7 x 40 pixels.*no room for a patch of 8"):
        trunk(torch.randn(1, 3, 7, 40))
    with pytest.raises(UserError, match="image_size is 4, below the side 8"):
        VisionTransformer(3, size="tiny", patch_size=8, image_size=4)
