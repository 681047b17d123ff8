"""Heads without prototypes (mlp, linear, predictor) against formulas written out in float64."""

import copy
import math

import pytest
import torch

from vissl_like.config.annotations import parse_kind
from vissl_like.models.heads.linear import LinearHead
from vissl_like.models.heads.mlp import MLPHead
from vissl_like.models.heads.predictor import PredictorHead
from vissl_like.registry import HEADS

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ROWS, FEATURES = 8, 6


def noisy(head):
    generator = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return head.double()


def rows(width=FEATURES):
    return torch.randn(ROWS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def linear(state, key, x):
    y = x @ state[f"{key}.weight"].t()
    return y + state[f"{key}.bias"] if f"{key}.bias" in state else y


def batch_norm(state, key, x):
    centred = x - x.sum(0) / len(x)
    x = centred / torch.sqrt((centred * centred).sum(0) / len(x) + 1e-5)
    return x * state[f"{key}.weight"] + state[f"{key}.bias"]


def active(x, activation="relu"):
    return x * (x > 0) if activation == "relu" else x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def unit(x):
    return x / torch.sqrt((x * x).sum(1, keepdim=True))


def plain_mlp(state, x, layers, norm=True, activation="relu", prefix="projection_head"):
    for layer in range(layers - 1):
        x = linear(state, f"{prefix}.{3 * layer}", x)
        x = active(batch_norm(state, f"{prefix}.{3 * layer + 1}", x) if norm else x, activation)
    return linear(state, f"{prefix}.{3 * (layers - 1)}" if layers > 1 else prefix, x)


def size(head):
    return sum(parameter.numel() for parameter in head.parameters())


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("norm", "activation"), [(True, "relu"), (False, "gelu"), (False, "relu")])
@pytest.mark.parametrize("sphere", [True, False])
def test_mlp_equals_the_formula(layers, norm, activation, sphere):
    options = {"layers": layers, "batch_norm": norm, "activation": activation, "normalize": sphere}
    head = noisy(MLPHead(FEATURES, hidden_dim=9, output_dim=4, **options))
    expected = plain_mlp(head.state_dict(), rows(), layers, norm, activation)
    output = head(rows())
    torch.testing.assert_close(output.embedding, unit(expected) if sphere else expected, rtol=1e-10, atol=1e-12)
    assert output.logits == () and output.prototypes == () and not head.gives_logits
    assert head.embedding_dim == 4 and head.num_prototypes == ()


@pytest.mark.parametrize("layers", [1, 2])
def test_last_batch_norm_comes_after_the_last_linear_layer(layers):
    head = noisy(MLPHead(FEATURES, layers=layers, hidden_dim=9, output_dim=4, last_batch_norm=True))
    state = head.state_dict()
    x = plain_mlp(state, rows(), 2) if layers == 2 else linear(state, "projection_head.0", rows())
    expected = unit(batch_norm(state, "projection_head.4" if layers == 2 else "projection_head.1", x))
    torch.testing.assert_close(head(rows()).embedding, expected, rtol=1e-10, atol=1e-12)


def test_biases_are_left_out_where_asked():
    def biased(**options):
        keys = MLPHead(FEATURES, hidden_dim=9, output_dim=4, layers=3, **options).state_dict()
        return [f"projection_head.{place}.bias" in keys for place in (0, 3, 6)]

    assert biased() == [True, True, True]
    assert biased(bias=False) == [False, False, False]
    assert biased(last_bias=False) == [True, True, False]
    assert biased(bias=False, last_bias=True) == [False, False, True]


def test_projection_of_an_official_deepcluster_v2_checkpoint_fits():
    """The projection head of the official class has these names and shapes (2048-2048-128 with BatchNorm)."""
    official = {
        "projection_head.0.weight": torch.randn(2048, 2048),
        "projection_head.0.bias": torch.randn(2048),
        "projection_head.3.weight": torch.randn(128, 2048),
        "projection_head.3.bias": torch.randn(128),
    }
    official |= {f"projection_head.1.{name}": torch.ones(2048 if index < 4 else ()) for index, name in enumerate(NORM)}
    with torch.device("meta"):
        head = MLPHead(2048)
    head.load_state_dict(official, strict=True, assign=True)
    assert size(head) == 2048 * 2049 + 2 * 2048 + 2049 * 128


def test_linear_equals_the_formula():
    for sphere in (True, False):
        head = noisy(LinearHead(FEATURES, output_dim=4, normalize=sphere))
        expected = linear(head.state_dict(), "projection_head", rows())
        torch.testing.assert_close(head(rows()).embedding, unit(expected) if sphere else expected)
    assert sorted(head.state_dict()) == ["projection_head.bias", "projection_head.weight"]
    assert (head.embedding_dim, size(head)) == (4, FEATURES * 4 + 4)


@pytest.mark.parametrize(("norm", "activation"), [(True, "relu"), (False, "relu"), (False, "gelu")])
def test_student_predicts_and_teacher_projects(norm, activation):
    options = {"hidden_dim": 9, "output_dim": 4, "predictor_hidden_dim": 7, "batch_norm": norm}
    student = noisy(PredictorHead(FEATURES, activation=activation, **options))
    teacher = copy.deepcopy(student)
    teacher.become_teacher()
    state = student.state_dict()
    projection = plain_mlp(state, rows(), 2, norm, activation)
    prediction = plain_mlp(state, projection, 2, norm, activation, "predictor")
    torch.testing.assert_close(student(rows()).embedding, prediction, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(teacher(rows()).embedding, projection, rtol=1e-10, atol=1e-12)
    names, kept = dict(student.named_parameters()), dict(teacher.named_parameters())
    assert set(kept) < set(names) and {name for name in names if name not in kept} == {
        name for name in names if name.startswith("predictor.")
    }
    assert student.embedding_dim == teacher.embedding_dim == 4


def test_predictor_has_the_size_of_byol():
    """Linear with bias, BatchNorm, ReLU, linear without bias; 2048-4096-256 and 256-4096-256."""
    with torch.device("meta"):
        head = PredictorHead(2048)
    assert size(head.projection_head) == 2048 * 4096 + 4096 + 2 * 4096 + 4096 * 256
    assert size(head.predictor) == 256 * 4096 + 4096 + 2 * 4096 + 4096 * 256
    assert "predictor.3.bias" not in head.state_dict() and "predictor.0.bias" in head.state_dict()
    assert "projection_head.3.bias" in PredictorHead(4, hidden_dim=3, output_dim=2, last_bias=True).state_dict()


@pytest.mark.parametrize("name", ["dino", "mlp", "linear", "predictor", "swav"])
def test_options_can_be_checked_without_importing_torch(name):
    component = HEADS.describe(name)
    assert not component.open_options and component.facts["gives_logits"] == (name in ("dino", "swav"))
    for option in component.options.values():
        assert parse_kind(option.annotation).understood(), option
        assert option.doc and not option.required
