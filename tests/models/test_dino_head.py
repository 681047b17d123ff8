"""DINO's head against the formula written out in float64: every ablation, its start, freezing, the teacher's copy."""

import copy
import math

import pytest
import torch
from torch import nn

from vissl_like.models.heads.dino import DINOHead
from vissl_like.records import Progress
from vissl_like.utils.errors import UserError

FEATURES, HIDDEN, BOTTLENECK, OUTPUTS, ROWS = 7, 9, 5, 11, 6
WITHOUT_NORM = {1: [""], 2: ["0", "2"], 3: ["0", "2", "4"], 4: ["0", "2", "4", "6"]}
WITH_NORM = {1: [""], 2: ["0", "3"], 3: ["0", "3", "6"], 4: ["0", "3", "6", "9"]}
NORM_AND_ACTIVATION = [(norm, activation) for norm in (False, True) for activation in ("gelu", "relu")]
LATE, EARLY = Progress(5, 10, 5), Progress(4, 10, 5)


def small(**options):
    torch.manual_seed(0)
    sizes = {"hidden_dim": HIDDEN, "bottleneck_dim": BOTTLENECK, "num_prototypes": OUTPUTS}
    return DINOHead(FEATURES, **{**sizes, **options})


def scrambled(head):
    """All parameters replaced by plain noise, so that no layer is negligible; float64."""
    generator = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return head.double()


def rows():
    return torch.randn(ROWS, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def plain_linear(state, key, x):
    y = x @ state[f"{key}.weight"].t()
    return y + state[f"{key}.bias"] if f"{key}.bias" in state else y


def plain_hidden(state, key, norm_key, x, activation):
    x = plain_linear(state, key, x)
    if norm_key:
        centred = x - x.sum(0) / len(x)
        x = centred / torch.sqrt((centred * centred).sum(0) / len(x) + 1e-5)
        x = x * state[f"{norm_key}.weight"] + state[f"{norm_key}.bias"]
    return x * (x > 0) if activation == "relu" else x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def plain_mlp(state, x, places, activation, norm, last_is_plain):
    for position, place in enumerate(places):
        key = f"mlp.{place}" if place else "mlp"
        if last_is_plain and position == len(places) - 1:
            return plain_linear(state, key, x)
        x = plain_hidden(state, key, f"mlp.{int(place) + 1}" if norm else None, x, activation)
    return x


def plain_weight(state):
    g, v = state["last_layer.weight_g"], state["last_layer.weight_v"]
    return torch.stack([float(g[k, 0]) * v[k] / math.sqrt(float(v[k] @ v[k])) for k in range(len(v))])


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize(("norm", "activation"), NORM_AND_ACTIVATION)
def test_scores_with_bottleneck_equal_the_formula(layers, norm, activation):
    head = scrambled(small(layers=layers, batch_norm=norm, activation=activation))
    output, state = head(rows()), head.state_dict()
    x = plain_mlp(state, rows(), (WITH_NORM if norm else WITHOUT_NORM)[layers], activation, norm, True)
    z = x / torch.sqrt((x * x).sum(1, keepdim=True))
    torch.testing.assert_close(output.embedding, z, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.prototypes[0], plain_weight(state), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.logits[0], z @ plain_weight(state).t(), rtol=1e-10, atol=1e-12)
    assert (head.embedding_dim, head.num_prototypes) == (BOTTLENECK, (OUTPUTS,))
    assert output.embedding.shape == (ROWS, BOTTLENECK) and len(output.logits) == 1


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize(("norm", "activation"), NORM_AND_ACTIVATION)
def test_scores_without_bottleneck_are_a_plain_mlp(layers, norm, activation):
    head = scrambled(small(layers=layers, batch_norm=norm, activation=activation, l2_bottleneck=False))
    output, state = head(rows()), head.state_dict()
    places = (WITH_NORM if norm else WITHOUT_NORM)[layers][:-1]
    x = plain_mlp(state, rows(), places, activation, norm, False)
    torch.testing.assert_close(output.embedding, x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.logits[0], x @ state["last_layer.weight"].t(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.embedding @ output.prototypes[0].t(), output.logits[0])
    assert head.embedding_dim == output.embedding.shape[1] == (FEATURES if layers == 1 else HIDDEN)
    assert sum(isinstance(module, nn.Linear) for module in head.modules()) == layers


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "mlp.4.weight", "mlp.4.bias"]),
        ({"layers": 1}, ["mlp.weight", "mlp.bias"]),
        ({"layers": 2, "activation": "relu"}, ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]),
    ],
)
def test_official_key_names(options, keys):
    state = small(**options).state_dict()
    assert sorted(state) == sorted([*keys, "last_layer.weight_g", "last_layer.weight_v"])
    assert state["last_layer.weight_g"].shape == (OUTPUTS, 1)
    assert state["last_layer.weight_v"].shape == (OUTPUTS, BOTTLENECK)


def test_official_key_names_with_batch_norm():
    state = small(batch_norm=True).state_dict()
    linear, norm = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = [f"mlp.{place}.{name}" for place in (0, 3, 6) for name in linear]
    expected += [f"mlp.{place}.{name}" for place in (1, 4) for name in norm]
    assert sorted(state) == sorted([*expected, "last_layer.weight_g", "last_layer.weight_v"])


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 22_352_128),
        ({"num_prototypes": 4096}, 384 * 2048 + 2048 + 2048 * 2049 + 2048 * 256 + 256 + 4096 * 257),
        ({"layers": 1}, 385 * 256 + 65536 * 257),
        ({"layers": 4, "l2_bottleneck": False, "num_prototypes": 4096}, 385 * 2048 + 2 * 2049 * 2048 + 2048 * 4096),
    ],
)
def test_parameter_counts(options, count):
    with torch.device("meta"):
        head = DINOHead(384, **options)
    assert sum(parameter.numel() for parameter in head.parameters()) == count


@pytest.mark.parametrize("bottleneck", [True, False])
def test_start(bottleneck):
    torch.manual_seed(0)
    head = DINOHead(64, hidden_dim=512, num_prototypes=2000, l2_bottleneck=bottleneck, predictor_dim=300 * bottleneck)
    for module in [*head.mlp.modules(), *head.predictor.modules()]:
        if isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
            assert float(module.weight.detach().abs().max()) > 0.06, (
                "the cut of the normal is at +-2, far beyond any weight"
            )
            assert not module.bias.any()
    if bottleneck:
        assert torch.equal(head.last_layer.weight_g, torch.ones(2000, 1))
        v = head.last_layer.weight_v.detach()
        assert float(v.std()) == pytest.approx(1 / math.sqrt(3 * 256), rel=0.01) and float(v.abs().max()) <= 1 / 16
    else:
        assert float(head.last_layer.weight.detach().std()) == pytest.approx(0.02, rel=0.01)


def gradients(head, target):
    scores = head(rows()).logits[0]
    (scores * target).sum().backward()
    return scores


def test_gradients_of_lengths_and_directions():
    """Against torch's own parametrisation, and d/dv = g/|v| (I - v v^T / |v|^2) applied to the weight's gradient."""
    head = scrambled(small(layers=1, norm_last_layer=False))
    target = torch.randn(ROWS, OUTPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scores = gradients(head, target)
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(BOTTLENECK, OUTPUTS, bias=False).double(), dim=0)
    originals = reference.parametrizations.weight
    originals.original0.data, originals.original1.data = head.last_layer.weight_g.data, head.last_layer.weight_v.data
    embedding = head(rows()).embedding.detach()
    expected = reference(embedding)
    (expected * target).sum().backward()
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(head.last_layer.weight_g.grad, originals.original0.grad)
    torch.testing.assert_close(head.last_layer.weight_v.grad, originals.original1.grad)
    g, v, of_weight = head.last_layer.weight_g.detach(), head.last_layer.weight_v.detach(), target.t() @ embedding
    for k in range(OUTPUTS):
        length = float(v[k].norm())
        projector = torch.eye(BOTTLENECK, dtype=torch.float64) - torch.outer(v[k], v[k]) / length**2
        torch.testing.assert_close(head.last_layer.weight_v.grad[k], float(g[k]) / length * projector @ of_weight[k])
        torch.testing.assert_close(head.last_layer.weight_g.grad[k, 0], of_weight[k] @ v[k] / length)


@pytest.mark.parametrize("fixed", [True, False])
def test_norm_last_layer_keeps_the_lengths(fixed):
    head = small(norm_last_layer=fixed, freeze_last_layer="0 steps")
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        head(rows().float()).logits[0].square().sum().backward()
        assert (head.last_layer.weight_g.grad is None) == fixed
        assert head.last_layer.weight_v.grad.any()
        head.before_update(LATE)
        optimizer.step()
    lengths = head.last_layer.weight.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(OUTPUTS), atol=1e-5) == fixed


@pytest.mark.parametrize(
    "options", [{}, {"norm_last_layer": False}, {"l2_bottleneck": False}, {"layers": 1, "l2_bottleneck": False}]
)
def test_last_layer_thaws_exactly_after_the_first_epoch(options):
    head = small(**options)
    for progress, frozen in [(Progress(0, 10, 5), True), (EARLY, True), (LATE, False)]:
        head(rows().float()).logits[0].square().sum().backward()
        assert all(p.grad is not None for p in head.parameters() if p.requires_grad)
        head.before_update(progress)
        assert [p.grad is None for p in head.last_layer.parameters() if p.requires_grad] == [frozen] * (
            2 if options.get("norm_last_layer") is False else 1
        )
        assert all(p.grad is not None for p in head.mlp.parameters())


@pytest.mark.parametrize("norm", [False, True])
def test_predictor_sits_between_mlp_and_normalisation_and_leaves_with_the_teacher(norm):
    student = scrambled(small(layers=1, predictor_dim=4, batch_norm=norm))
    teacher = copy.deepcopy(student)
    teacher.become_teacher()
    state = student.state_dict()
    x = plain_linear(state, "mlp", rows())
    places = ("predictor.0", "predictor.1" if norm else None, "predictor.3" if norm else "predictor.2")
    predicted = plain_linear(state, places[2], plain_hidden(state, places[0], places[1], x, "gelu"))
    torch.testing.assert_close(student(rows()).embedding, predicted / predicted.norm(dim=1, keepdim=True))
    torch.testing.assert_close(teacher(rows()).embedding, x / x.norm(dim=1, keepdim=True))
    names = {name for name, _ in teacher.named_parameters()}
    left = {name for name, _ in student.named_parameters()} - names
    assert names == {"mlp.weight", "mlp.bias", "last_layer.weight_g", "last_layer.weight_v"}
    assert left and all(name.startswith("predictor.") for name in left)


def test_a_copy_is_independent():
    head = small()
    twin = copy.deepcopy(head)
    torch.testing.assert_close(twin(rows().float()).logits[0], head(rows().float()).logits[0], rtol=0, atol=0)
    twin(rows().float()).logits[0].square().sum().backward()
    assert all(parameter.grad is None for parameter in head.parameters())
    with torch.no_grad():
        twin.last_layer.weight_v.add_(1.0)
    assert not torch.allclose(twin(rows().float()).logits[0], head(rows().float()).logits[0])
    assert not twin.last_layer.weight_g.requires_grad


def test_autocast_gives_the_same_scores_to_its_precision():
    head = small(activation="relu")
    expected = head(rows().float()).logits[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = head(rows().float()).logits[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


def test_predictor_without_bottleneck_is_refused():
    with pytest.raises(UserError, match="predictor_dim is 8 and l2_bottleneck is false"):
        small(l2_bottleneck=False, predictor_dim=8)
