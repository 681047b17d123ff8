import random

import numpy as np
import pytest
import torch
from tiny_data import ArrayDataset, random_images
from torch import nn

from vissl_like.evaluation.features import calibrate_batch_norm, extract_features, raw_pixel_features
from vissl_like.utils.errors import UserError


class SmallNet(nn.Module):
    """Convolution, BatchNorm, dropout and a random number: everything that could leave a trace."""

    def __init__(self, channels=1, width=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.feature_dim = width

    def forward(self, images):
        torch.rand(1)
        return self.drop(self.norm(self.conv(images)).relu()).mean(dim=(2, 3))


def net(seed=0, **options):
    torch.manual_seed(seed)
    return SmallNet(**options)


def extract(trunk, dataset, **options):
    return extract_features(trunk, dataset, **{"image_size": 8, "batch_size": 4, **options})


def test_values_are_the_normalised_pixels():
    pixels = random_images(3)
    dataset = ArrayDataset(pixels, labels=[2, 0, 1], mean=[0.4], std=[0.2])
    found = extract(nn.Flatten(), dataset)
    expected = (pixels.reshape(3, -1) / 255 - 0.4) / 0.2
    np.testing.assert_allclose(found.features.numpy(), expected, atol=1e-5)
    assert found.features.dtype == torch.float32
    assert found.labels.tolist() == [2, 0, 1] and found.indices.tolist() == [0, 1, 2] and found.skipped == []


def test_every_batch_tells_the_watchdog_that_it_goes_on(monkeypatch):
    told = []
    monkeypatch.setattr("vissl_like.distributed.watchdog.go_on", told.append)
    extract(nn.Flatten(), ArrayDataset(random_images(9)))
    assert told == ["measuring features"] * 3


def test_resizes_and_cuts_the_centre():
    pixels = np.zeros((1, 16, 16), dtype=np.uint8)
    pixels[0, 4:12, 4:12] = 255
    found = extract(nn.Flatten(), ArrayDataset(pixels, mean=[0.0], std=[1.0]), image_size=8, resize=16)
    assert torch.equal(found.features, torch.ones(1, 64))


def test_the_module_and_random_states_are_untouched():
    trunk = net().train()
    trunk.norm.eval()  # a mixed state must come back as it was
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = extract(trunk, ArrayDataset(random_images(9)))
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()
    assert (trunk.training, trunk.conv.training, trunk.norm.training, trunk.drop.training) == (True, True, False, True)
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())
    assert torch.equal(found.features, extract(trunk.eval(), ArrayDataset(random_images(9))).features)  # no dropout


def test_the_mode_comes_back_after_an_error_too():
    trunk = net().train()
    with pytest.raises(RuntimeError):
        extract(trunk, ArrayDataset(random_images(2, channels=3)))
    assert trunk.training and trunk.norm.training


def test_features_can_be_trained_on():
    found = extract(net(), ArrayDataset(random_images(5)))
    layer = nn.Linear(4, 2)
    layer(found.features).sum().backward()
    assert layer.weight.grad is not None


def test_unreadable_images_have_no_row():
    dataset = ArrayDataset(random_images(7), labels=range(7), broken=[0, 4, 5, 6])
    found = extract(net(), dataset, batch_size=2)
    assert found.indices.tolist() == found.labels.tolist() == [1, 2, 3]
    assert {item.path for item in found.skipped} == {"memory[0]", "memory[4]", "memory[5]", "memory[6]"}
    rows = extract(net(), ArrayDataset(random_images(7))).features
    torch.testing.assert_close(found.features, rows[[1, 2, 3]])


def test_a_subset_is_always_the_same_and_meets_every_class():
    dataset = ArrayDataset(random_images(60), labels=np.repeat(np.arange(3), 20))
    first, second = (extract(net(), dataset, max_images=12) for _ in range(2))
    assert len(first) == 12 and torch.equal(first.indices, second.indices)
    assert (first.indices.diff() > 0).all()
    assert first.labels.bincount().tolist() == [4, 4, 4]
    assert len(extract(net(), dataset, max_images=1000)) == 60


@pytest.mark.parametrize("options", [{"channels_last": True}, {"batch_size": 3}, {"workers": 2}])
def test_how_it_is_computed_does_not_matter(options):
    dataset = ArrayDataset(random_images(8, channels=3), labels=range(8))
    plain, other = extract(net(channels=3), dataset), extract(net(channels=3), dataset, **options)
    torch.testing.assert_close(plain.features, other.features, atol=1e-5, rtol=1e-5)
    assert torch.equal(plain.labels, other.labels)


def test_broken_weights_are_reported():
    trunk = net()
    trunk.conv.weight.data[:] = float("nan")
    with pytest.raises(UserError, match="features of 5 of 5 images are not finite"):
        extract(trunk, ArrayDataset(random_images(5)))


def test_raw_pixels():
    pixels = random_images(5, channels=3)
    found = raw_pixel_features(ArrayDataset(pixels, labels=range(5)), image_size=8, batch_size=2)
    expected = pixels.transpose(0, 3, 1, 2).reshape(5, -1) / 255
    np.testing.assert_allclose(found.features.numpy(), expected, atol=1e-7)
    assert found.labels.tolist() == list(range(5))


def test_batch_norm_gets_the_population_statistics():
    dataset = ArrayDataset(random_images(10), mean=[0.3], std=[0.5])
    trunk = net()
    used = calibrate_batch_norm(trunk, dataset, image_size=8, batch_size=4)
    assert used == 10
    with torch.no_grad():
        pixels = torch.from_numpy(dataset.pixels)[:, None] / 255
        maps = trunk.conv((pixels - 0.3) / 0.5)
    torch.testing.assert_close(trunk.norm.running_mean, maps.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trunk.norm.running_var, maps.var(dim=(0, 2, 3), unbiased=False), atol=1e-5, rtol=1e-4)


def test_calibration_leaves_weights_modes_and_randomness():
    trunk = net().train()
    trunk.drop.eval()
    weights = {name: value.clone() for name, value in trunk.named_parameters()}
    state, momentum = torch.get_rng_state(), trunk.norm.momentum
    calibrate_batch_norm(trunk, ArrayDataset(random_images(9)), image_size=8, batch_size=4)
    assert torch.equal(state, torch.get_rng_state()) and trunk.norm.momentum == momentum
    assert (trunk.training, trunk.norm.training, trunk.drop.training) == (True, True, False)
    assert all(torch.equal(value, weights[name]) for name, value in trunk.named_parameters())
    first = trunk.norm.running_mean.clone()
    calibrate_batch_norm(trunk, ArrayDataset(random_images(9)), image_size=8, batch_size=4)
    assert torch.equal(first, trunk.norm.running_mean)  # nothing of the earlier statistics is left
    trunk(torch.rand(2, 1, 8, 8)).sum().backward()  # and it can be trained on


def test_calibration_without_norms_or_images():
    assert calibrate_batch_norm(nn.Flatten(), ArrayDataset(random_images(3)), image_size=8) == 0
    with pytest.raises(UserError, match="at least two"):
        calibrate_batch_norm(net(), ArrayDataset(random_images(1)), image_size=8)
