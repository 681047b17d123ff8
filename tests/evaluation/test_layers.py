import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_data import ArrayDataset, random_images
from torch import nn

from vissl_like.evaluation.bench import Bench, Probe
from vissl_like.evaluation.layers import LayersEvaluation, pooled_stage
from vissl_like.evaluation.subjects import Look, Protocol, Source, network_subject
from vissl_like.models.trunks.alexnet import AlexNet
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.utils.errors import UserError

PROTOCOL = Protocol(image_size=16, batch_size=8)
LOOK = Look(1, (0.5,), (0.25,))


def test_a_map_becomes_the_largest_grid_that_fits():
    class Trunk(nn.Module):
        def stage_map(self, images, stage):
            return torch.arange(2 * 3 * 36.0).view(2, 3, 6, 6)

    whole = Trunk().stage_map(None, 1)
    # 3 channels: 12 values leave 2 x 2 places, each the mean of 3 x 3.
    found = pooled_stage(Trunk(), None, stage=1, dims=14)
    expected = whole.view(2, 3, 2, 3, 2, 3).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(pooled_stage(Trunk(), None, stage=1, dims=9216), whole.flatten(1))  # never enlarged
    assert pooled_stage(Trunk(), None, stage=1, dims=1).shape == (2, 3)


def test_each_stage_is_probed_as_scikit_learn_would():
    torch.manual_seed(0)
    trunk = ResNet(1, depth=10, width=0.125, stem="small").eval()
    labels = np.arange(24) % 3
    images = random_images(24) // 2 + (60 * labels)[:, None, None].astype(np.uint8)
    sources = [Source(ArrayDataset(images[part], labels=labels[part])) for part in (slice(0, 15), slice(15, 24))]
    bench = Bench(network_subject("net", "net", trunk, PROTOCOL), PROTOCOL, LOOK, Probe(*sources, 3))
    result = LayersEvaluation(stages=[1, 3], dims=32, costs=[0.05]).run(bench)
    for stage in (1, 3):
        train, test = (_maps(trunk, source, stage) for source in sources)
        mean, deviation = train.mean(0), train.std(0)
        model = LogisticRegression(C=0.05, max_iter=5000).fit((train - mean) / deviation, labels[:15])
        right = (model.predict((test - mean) / deviation) == labels[15:]).mean()
        assert result.metrics[f"top1_stage{stage}"] == pytest.approx(100 * right)
    assert result.details["cost_per_stage"] == {"1": 0.05, "3": 0.05}


def _maps(trunk, source, stage):
    """The maps by hand: 8 pixels wide images enlarged to 16, normalised, pooled with numpy."""
    from vissl_like.evaluation.features import extract_features

    maps = extract_features(
        trunk, source.dataset, image_size=16, encode=lambda net, x: net.stage_map(x, stage).flatten(1)
    ).features
    channels = 8 * 2 ** (stage - 1)
    side = int(np.sqrt(maps.shape[1] // channels))
    wanted = int(np.sqrt(32 // channels)) or 1
    block = side // wanted
    return maps.view(-1, channels, wanted, block, wanted, block).mean(dim=(3, 5)).flatten(1).numpy()


def test_networks_without_stages_are_refused():
    trunk = nn.Sequential(nn.Flatten())
    source = Source(ArrayDataset(random_images(4), labels=[0, 1, 0, 1]))
    bench = Bench(network_subject("n", "n", trunk, PROTOCOL), PROTOCOL, LOOK, Probe(source, source, 2))
    with pytest.raises(UserError, match="stage by stage"):
        LayersEvaluation().run(bench)
    with pytest.raises(UserError, match="stages is empty"):
        LayersEvaluation(stages=[])


def test_plain_networks_give_every_convolution():
    trunk = AlexNet(3).eval()
    assert trunk.strides == (4, 8, 16, 16, 16)
    images = torch.rand(1, 3, 95, 95)
    with torch.no_grad():
        maps = [trunk.stage_map(images, stage) for stage in range(1, 6)]
        assert [tuple(found.shape[1:2]) for found in maps] == [(96,), (256,), (384,), (384,), (256,)]
        # From the last convolution's ReLU one pooling is left, which makes the last map.
        torch.testing.assert_close(nn.functional.max_pool2d(maps[-1], 3, 2), trunk.forward_map(images))
        assert all((found >= 0).all() for found in maps)
    with pytest.raises(UserError, match="at least 63 px"):
        trunk.stage_map(images[..., :40], 1)
