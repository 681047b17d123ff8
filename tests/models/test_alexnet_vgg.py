"""AlexNet and VGG-16 with Sobel filters: DeepCluster's keys, published sizes, filters against plain sums."""

import pytest
import torch
import torchvision
from torch import nn

from vissl_like.models.sobel import Sobel
from vissl_like.models.trunks.alexnet import AlexNet
from vissl_like.models.trunks.vgg import VGG
from vissl_like.utils.errors import UserError


def on_meta(trunk, channels=3, **options):
    with torch.device("meta"):
        return trunk(channels, **options)


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def plain_sobel(images):
    """Differences of neighbours, written as sums of shifted copies of the zero-padded mean of the channels."""
    grey = torch.nn.functional.pad(images.mean(1), (1, 1, 1, 1))
    rows, columns = images.shape[-2:]

    def at(down, right):
        return grey[:, 1 + down : 1 + down + rows, 1 + right : 1 + right + columns]

    left, right = (at(-1, x) + 2 * at(0, x) + at(1, x) for x in (-1, 1))
    top, bottom = (at(y, -1) + 2 * at(y, 0) + at(y, 1) for y in (-1, 1))
    return torch.stack([left - right, top - bottom], 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_filters(channels):
    images = torch.randn(2, channels, 7, 9)
    torch.testing.assert_close(Sobel(channels)(images), plain_sobel(images), rtol=1e-5, atol=1e-5)


def test_sobel_has_nothing_to_train_and_the_official_keys():
    sobel = Sobel(3)
    assert not list(sobel.requires_grad_(True).parameters())
    assert shapes(sobel) == {"0.weight": (1, 3, 1, 1), "0.bias": (1,), "1.weight": (2, 1, 3, 3), "1.bias": (2,)}
    assert torch.equal(sobel(torch.ones(1, 3, 5, 5))[:, :, 1:-1, 1:-1], torch.zeros(1, 2, 3, 3))


def test_sobel_keeps_full_precision_under_autocast():
    images = 100 + torch.rand(1, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        edges = Sobel(1)(images)
    torch.testing.assert_close(edges, plain_sobel(images), rtol=1e-5, atol=1e-3)


def test_sobel_refuses_other_channels():
    with pytest.raises(UserError, match="4 channels"):
        Sobel(4)


def test_alexnet_is_deepclusters():
    convolutions = {0: (96, 2, 11), 4: (256, 96, 5), 8: (384, 256, 3), 11: (384, 384, 3), 14: (256, 384, 3)}
    expected = {"sobel.0.weight": (1, 3, 1, 1), "sobel.0.bias": (1,)}
    expected |= {"sobel.1.weight": (2, 1, 3, 3), "sobel.1.bias": (2,)}
    for index, (outputs, inputs, size) in convolutions.items():
        expected |= {f"features.{index}.weight": (outputs, inputs, size, size), f"features.{index}.bias": (outputs,)}
        expected |= {f"features.{index + 1}.{key}": (outputs,) for key in ("weight", "bias")}
        expected |= {f"features.{index + 1}.running_{key}": (outputs,) for key in ("mean", "var")}
        expected[f"features.{index + 1}.num_batches_tracked"] = ()
    for index, inputs in {1: 9216, 4: 4096}.items():
        expected |= {f"classifier.{index}.weight": (4096, inputs), f"classifier.{index}.bias": (4096,)}
    trunk = on_meta(AlexNet)
    assert shapes(trunk) == expected and trunk.feature_dim == 4096
    kinds = [type(layer) for layer in trunk.classifier]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU]
    parameters = 2 * 96 * 121 + 96 * 256 * 25 + 256 * 384 * 9 + 384 * 384 * 9 + 384 * 256 * 9
    parameters += 3 * (96 + 256 + 384 + 384 + 256)
    parameters += 9216 * 4096 + 4096 * 4096 + 2 * 4096
    assert sum(p.numel() for p in trunk.parameters()) == parameters


def test_vgg_is_torchvisions_without_sobel_and_deepclusters_with_it():
    with torch.device("meta"):
        reference = torchvision.models.vgg16_bn()
    expected = {key: shape for key, shape in shapes(reference).items() if not key.startswith("classifier.6.")}
    trunk = on_meta(VGG, sobel=False)
    assert shapes(trunk) == expected and trunk.feature_dim == 4096
    assert sum(p.numel() for p in trunk.parameters()) == 138_365_992 - 4_097_000
    trunk = on_meta(VGG)
    assert sum(p.numel() for p in trunk.parameters()) / 1e6 == pytest.approx(134.3, abs=0.05)
    assert shapes(trunk)["features.0.weight"] == (64, 2, 3, 3)
    assert {key for key in shapes(trunk) if not key.startswith("features.")} == {
        *(f"classifier.{index}.{key}" for index in (0, 3) for key in ("weight", "bias")),
        *(f"sobel.{index}.{key}" for index in (0, 1) for key in ("weight", "bias")),
    }
    assert [type(layer) for layer in trunk.classifier] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU]


def test_vgg_features_are_torchvisions():
    torch.manual_seed(0)
    with torch.device("meta"):
        reference = torchvision.models.vgg16_bn().features
    trunk = VGG(3, sobel=False, fc_layers=[])
    reference.load_state_dict(trunk.features.state_dict(), assign=True)
    images = torch.randn(1, 3, 32, 64)
    pooled = torch.nn.functional.adaptive_avg_pool2d(reference.eval()(images), 7).flatten(1)
    torch.testing.assert_close(trunk.eval()(images), pooled)


@pytest.mark.parametrize(
    ("trunk", "map_shape", "smallest"), [(AlexNet, (256, 6, 6), 63), (VGG, (512, 7, 7), 32)], ids=["alexnet", "vgg"]
)
def test_maps_at_224_and_the_smallest_image(trunk, map_shape, smallest):
    network = on_meta(trunk).eval()
    assert network.forward_map(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, *map_shape)
    assert network.forward_map(torch.empty(2, 3, smallest, 224, device="meta")).shape[2] == 1
    assert network(torch.empty(2, 3, smallest, 224, device="meta")).shape == (2, 4096)
    with pytest.raises(UserError, match=f"at least {smallest} px, got 224 x {smallest - 1}"):
        network(torch.empty(2, 3, 224, smallest - 1, device="meta"))


def test_alexnet_pools_nothing_at_224_and_goes_through_every_layer():
    torch.manual_seed(0)
    trunk = AlexNet(1, fc_layers=[8]).eval()
    images = torch.randn(1, 1, 224, 224)
    x = plain_sobel(images)
    for layer in trunk.features:
        x = layer(x)
    linear = trunk.classifier[1]
    expected = torch.relu(x.flatten(1) @ linear.weight.T + linear.bias)
    torch.testing.assert_close(trunk(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trunk", [AlexNet, VGG])
def test_last_relu_off_gives_the_values_before_it(trunk):
    torch.manual_seed(0)
    with_relu = trunk(1, fc_layers=[16, 8]).eval()
    without = trunk(1, fc_layers=[16, 8], last_relu=False).eval()
    without.load_state_dict(with_relu.state_dict())
    images = torch.randn(4, 1, 64, 64)
    values = without(images)
    assert values.min() < 0
    torch.testing.assert_close(with_relu(images), values.clamp(min=0))
    with pytest.raises(UserError, match="last_relu"):
        trunk(1, fc_layers=[], last_relu=False)


@pytest.mark.parametrize(("trunk", "places"), [(AlexNet, 2), (VGG, 1)])
def test_dropout_goes_where_it_belongs_and_only_in_training(trunk, places):
    torch.manual_seed(0)
    network = trunk(1, fc_layers=[16, 8], dropout=0.25)
    assert [layer.p for layer in network.classifier if isinstance(layer, nn.Dropout)] == [0.25] * places
    images = torch.randn(2, 1, 64, 64)
    network.features.eval()
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_initial_weights():
    torch.manual_seed(0)
    trunk = AlexNet(3, sobel=False, fc_layers=[64])
    assert trunk.sobel is None and trunk.features[0].weight.shape == (96, 3, 11, 11)
    assert trunk.features[8].weight.std().item() == pytest.approx((2 / (9 * 384)) ** 0.5, rel=0.02)
    assert trunk.classifier[1].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(not layer.bias.any() for layer in trunk.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))


def test_sobel_weights_of_a_checkpoint_load_and_stay_put_in_training():
    torch.manual_seed(0)
    trunk = AlexNet(3, fc_layers=[8])
    trunk.load_state_dict(trunk.state_dict())
    before = {key: value.clone() for key, value in trunk.sobel.state_dict().items()}
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.1, weight_decay=0.1)
    trunk(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in trunk.sobel.state_dict().items())
