"""SwAV's head: official names, unit sphere, freezing, several sets of prototypes, deeper projections."""

import copy

import pytest
import torch

from vissl_like.config.annotations import parse_kind
from vissl_like.config.values import find_problems
from vissl_like.models.heads.swav import SwAVHead
from vissl_like.records import Progress
from vissl_like.registry import HEADS
from vissl_like.utils.errors import UserError


def test_official_key_names():
    keys = set(SwAVHead(2048).state_dict())
    assert {"projection_head.0.weight", "projection_head.1.running_mean", "projection_head.3.bias"} <= keys
    assert "prototypes.weight" in keys and "prototypes.bias" not in keys


def test_logits_are_cosines_with_normalised_prototypes():
    head = SwAVHead(6, hidden_dim=0, output_dim=4, num_prototypes=3)
    head.before_forward(Progress(0, 10, 5))
    output = head(torch.randn(5, 6))
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(3))
    expected = torch.nn.functional.cosine_similarity(output.embedding[:, None], head.prototypes.weight[None], dim=2)
    torch.testing.assert_close(output.logits[0], expected)


def test_prototypes_thaw_exactly_after_the_first_epoch():
    head = SwAVHead(6, hidden_dim=0, output_dim=4, num_prototypes=3, freeze_prototypes="1 epochs")
    for step, frozen in [(0, True), (4, True), (5, False)]:
        head(torch.randn(5, 6)).logits[0].sum().backward()
        head.before_update(Progress(step, 10, 5))
        assert (head.prototypes.weight.grad is None) == frozen


def test_without_batch_norm_keys_keep_their_places():
    keys = set(SwAVHead(6, hidden_dim=5, batch_norm=False).state_dict())
    assert "projection_head.3.weight" in keys and "projection_head.1.weight" not in keys


def several(counts=(3, 5, 2), **options):
    torch.manual_seed(0)
    return SwAVHead(6, hidden_dim=7, output_dim=4, num_prototypes=list(counts), **options)


def test_several_sets_of_prototypes_have_official_names():
    with torch.device("meta"):
        head = SwAVHead(2048, num_prototypes=[3000, 3000, 3000])
    shapes = {key: tuple(value.shape) for key, value in head.state_dict().items() if key.startswith("prototypes")}
    assert shapes == {f"prototypes.prototypes{number}.weight": (3000, 128) for number in range(3)}
    projection = 2048 * 2049 + 2 * 2048 + 2049 * 128
    assert sum(parameter.numel() for parameter in head.parameters()) == projection + 3 * 3000 * 128
    assert head.num_prototypes == (3000, 3000, 3000)


def test_a_list_of_one_keeps_the_official_name_of_a_list():
    assert "prototypes.prototypes0.weight" in several([3]).state_dict()


def test_every_set_gives_cosines_and_is_normalised():
    head = several().double()
    features = torch.randn(9, 6, dtype=torch.float64)
    head.before_forward(Progress(0, 10, 5))
    output, state = head(features), head.state_dict()
    hidden = features @ state["projection_head.0.weight"].t() + state["projection_head.0.bias"]
    hidden = (hidden - hidden.mean(0)) / torch.sqrt(hidden.var(0, unbiased=False) + 1e-5)
    z = hidden.clamp(min=0) @ state["projection_head.3.weight"].t() + state["projection_head.3.bias"]
    z = z / torch.sqrt((z * z).sum(1, keepdim=True))
    torch.testing.assert_close(output.embedding, z)
    assert len(output.logits) == len(output.prototypes) == 3
    for number, count in enumerate((3, 5, 2)):
        weight = state[f"prototypes.prototypes{number}.weight"]
        torch.testing.assert_close((weight * weight).sum(1), torch.ones(count, dtype=torch.float64))
        torch.testing.assert_close(output.logits[number], z @ weight.t())
        assert output.prototypes[number].data_ptr() == weight.data_ptr()


def test_every_set_is_frozen_and_thawed():
    head = several()
    for step, frozen in [(0, True), (4, True), (5, False)]:
        sum(logits.sum() for logits in head(torch.randn(9, 6)).logits).backward()
        assert all(weight.grad is not None for weight in head.prototypes.parameters())
        head.before_update(Progress(step, 10, 5))
        assert [weight.grad is None for weight in head.prototypes.parameters()] == [frozen] * 3
        assert head.projection_head[0].weight.grad is not None


def test_a_copy_is_independent():
    head = several()
    twin = copy.deepcopy(head)
    with torch.no_grad():
        twin.prototypes["prototypes1"].weight.zero_()
    assert head(torch.randn(9, 6)).logits[1].any() and not twin(torch.randn(9, 6)).logits[1].any()


@pytest.mark.parametrize("norm", [False, True])
def test_deeper_projection_like_seer(norm):
    torch.manual_seed(0)
    head = SwAVHead(6, hidden_dim=[8, 5], output_dim=4, num_prototypes=3, batch_norm=norm).double().eval()
    features, state = torch.randn(7, 6, dtype=torch.float64), head.state_dict()
    x = features
    for place in (0, 3, 6):
        x = x @ state[f"projection_head.{place}.weight"].t() + state[f"projection_head.{place}.bias"]
        if place < 6:
            x = (x / (1 + 1e-5) ** 0.5 if norm else x).clamp(min=0)  # statistics at their start: mean 0, variance 1
    torch.testing.assert_close(head(features).embedding, x / torch.sqrt((x * x).sum(1, keepdim=True)))
    assert ("projection_head.4.running_var" in state) == norm


def test_seer_head_has_the_published_size():
    with torch.device("meta"):
        head = SwAVHead(7392, hidden_dim=[8192, 8192], output_dim=256, num_prototypes=16000, batch_norm=False)
    assert sum(p.numel() for p in head.parameters()) == 7393 * 8192 + 8193 * 8192 + 8193 * 256 + 16000 * 256


def test_one_hidden_layer_as_number_and_as_list_are_the_same():
    assert list(SwAVHead(6, hidden_dim=[5]).state_dict()) == list(SwAVHead(6, hidden_dim=5).state_dict())
    assert list(SwAVHead(6, hidden_dim=[]).state_dict()) == list(SwAVHead(6, hidden_dim=0).state_dict())


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("num_prototypes", [3000, [3000], [3000, 1]], [0, [0], [3000, "x"], None, 1.5, "3000"]),
        ("hidden_dim", [0, 2048, [8192, 8192]], [-1, [0], [8192, 1.5], None, "2048"]),
    ],
)
def test_numbers_and_lists_are_checked_before_the_run(option, good, bad):
    kind = parse_kind(HEADS.describe("swav").options[option].annotation)
    assert kind.understood()
    assert [value for value in good if find_problems(kind, value)] == []
    assert [value for value in bad if not find_problems(kind, value)] == []


def test_no_prototypes_at_all_are_refused():
    with pytest.raises(UserError, match="num_prototypes is an empty list"):
        several([])
