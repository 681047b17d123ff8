"""Images of several sizes that go through a vision transformer in one call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vissl_like.models.drop_path import DropPath
from vissl_like.models.recompute import recompute_blocks
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.trunks.vit import LONGEST_EXPLICIT, Attention, VisionTransformer
from vissl_like.registry import HEADS


def small(**options: object) -> VisionTransformer:
    """Two blocks with weights that are not all alike."""
    torch.manual_seed(3)
    return VisionTransformer(3, size="tiny", patch_size=4, image_size=16, depth=2, **options).double()


def images() -> list[Tensor]:
    """Two large, five small and three oblong ones."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, 16, 16), (5, 8, 8), (3, 8, 12))
    return [torch.randn(n, 3, height, width, generator=generator, dtype=torch.float64) for n, height, width in shapes]


@pytest.mark.parametrize("attention", ["sdpa", "explicit", "auto"])
def test_packed_equals_size_by_size_in_value_and_gradient(attention):
    trunk = small(attention=attention)
    apart = torch.cat([trunk(size) for size in images()])
    weights = torch.linspace(-1, 1, apart.numel(), dtype=torch.float64).view_as(apart)
    (apart * weights).sum().backward()
    wanted = {name: p.grad.clone() for name, p in trunk.named_parameters()}
    trunk.zero_grad()
    packed = trunk(images())
    (packed * weights).sum().backward()
    torch.testing.assert_close(packed, apart, rtol=0, atol=1e-12)
    for name, parameter in trunk.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-11, msg=name)


def test_an_image_does_not_see_the_others():
    trunk, sizes = small(), images()
    before = trunk(sizes)
    sizes[1][2] += 1.0
    changed = (trunk(sizes) - before).abs().amax(1) > 0
    assert changed.nonzero().flatten().tolist() == [2 + 2]


def test_blocks_that_compute_again_take_packed_tokens():
    trunk = small().train()
    wanted = trunk(images())
    recompute_blocks(trunk)
    found = trunk(images())
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    found.sum().backward()
    assert trunk.patch_embed.proj.weight.grad.abs().sum() > 0


def test_the_model_calls_a_trunk_that_packs_once():
    torch.manual_seed(0)
    trunk = small().float()
    calls = []
    trunk.register_forward_pre_hook(lambda _module, inputs: calls.append(inputs[0]))
    head = HEADS.get("dino")(192, hidden_dim=8, bottleneck_dim=4, num_prototypes=6)
    views = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)]
    output = SSLModel(trunk, head)(views)
    assert [len(size) for size in calls[0]] == [4, 2] and len(calls) == 1
    apart = SSLModel(trunk, head, grouped=False)(views)
    assert len(calls) == 4
    torch.testing.assert_close(output.features, apart.features, rtol=1e-4, atol=1e-5)
    SSLModel(trunk, head)(views[:2])
    assert isinstance(calls[-1], Tensor)


def test_drop_path_keeps_or_drops_all_tokens_of_an_image():
    torch.manual_seed(0)
    layout = [(300, 3), (200, 5)]
    dropped = DropPath(0.25)(torch.ones(300 * 3 + 200 * 5, 7), layout)
    large, small_ones = dropped[:900].view(300, 3, 7), dropped[900:].view(200, 5, 7)
    for stretch in (large, small_ones):
        assert (stretch == stretch[:, :1, :1]).all()
        assert stretch.unique().tolist() == pytest.approx([0.0, 4 / 3])
    kept = torch.cat([large[:, 0, 0], small_ones[:, 0, 0]]) > 0
    # 500 draws with probability 0.75: standard deviation 9.7
    assert abs(int(kept.sum()) - 375) < 40


@pytest.mark.parametrize(
    ("dtype", "tokens", "step_by_step"),
    [(torch.float32, 8, False), (torch.bfloat16, 8, True), (torch.bfloat16, LONGEST_EXPLICIT + 1, False)],
)
def test_auto_takes_what_is_faster_on_this_device(monkeypatch, dtype, tokens, step_by_step):
    attention, fused = Attention(8, 2, None).to(dtype), []
    real = torch.nn.functional.scaled_dot_product_attention

    def noting(*inputs: Tensor) -> Tensor:
        fused.append(1)
        return real(*inputs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    attention(torch.randn(1, tokens, 8, dtype=dtype))
    assert bool(fused) is not step_by_step
