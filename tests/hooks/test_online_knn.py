"""On images whose class is their brightness pattern; the trunk is a tiny network with BatchNorm and dropout."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.hooks.online_knn import OnlineKnnHook
from vissl_like.utils.errors import UserError


class Patterns(ImageDataset):
    """Class 0 is bright on the left, class 1 at the top; reading draws from global generators, as plugins might."""

    def __init__(self, count, labelled=True, classes=("left", "top"), channels=1):
        super().__init__(channels=channels)
        self.count = count
        self.labels = np.arange(count) % 2 if labelled else None
        self.classes = list(classes) if labelled else None

    def __len__(self):
        return self.count

    def path(self, index):
        return f"{index}.png"

    def read(self, index):
        random.random(), np.random.rand(), torch.rand(1)
        pixels = np.random.default_rng(index).integers(0, 60, (16, 16), dtype=np.uint8)
        if index % 2:
            pixels[:8] += 150
        else:
            pixels[:, :8] += 150
        image = Image.fromarray(pixels)
        return image if self.channels == 1 else image.convert("RGB")


def trunk():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )


def settings(train="train", test="test", workers=0):
    return {
        "HOOKS": {},
        "SEED": 0,
        "DATA": {"PROBE_TRAIN": train, "PROBE_TEST": test, "WORKERS": workers, "START_METHOD": None},
        "EVALUATE": {"image_size": 16, "resize": None, "batch_size": 16, "holdout": 0.25},
    }


def prepare(run, **sets):
    torch.manual_seed(0)
    sets = {"train": Patterns(40), "test": Patterns(20), **sets}
    run.build_dataset = sets.__getitem__
    run.dataset = Patterns(40, labelled=False)
    run.model.trunk = trunk()
    run.model.train()
    return run


def test_measures_at_the_start_at_each_distance_and_at_the_end(make_run):
    run = prepare(make_run(OnlineKnnHook(every="30%", k=5), total=10, settings=settings())).start()
    assert "next at step 3, then every 3 steps and at the end" in run.messages()[0]
    run.do_steps(10)
    assert [event.step for event in run.events("knn")] == [0, 3, 6, 9, 10]
    fields = run.events("knn")[0].fields
    assert fields["top1"] == 100.0
    assert (fields["k"], fields["temperature"], fields["train_images"], fields["test_images"], fields["skipped"]) == (
        5,
        0.07,
        40,
        20,
        0,
    )
    assert fields["text"] == "k-NN at step 0: 100.0 % of 20 images (k=5)"


def test_chance_is_measured_where_features_say_nothing(make_run):
    class Blind(nn.Module):
        def forward(self, images):
            return torch.ones(len(images), 3)

    run = prepare(make_run(OnlineKnnHook(k=1), settings=settings()))
    run.model.trunk = Blind()
    run.start()
    assert run.events("knn")[0].fields["top1"] == 50.0


def test_without_a_test_set_a_share_is_held_out(make_run):
    run = prepare(make_run(OnlineKnnHook(k=5), settings=settings(test=None))).start()
    fields = run.events("knn")[0].fields
    assert (fields["train_images"], fields["test_images"]) == (30, 10)
    assert fields["top1"] == 100.0


def test_subset_and_clipped_k_are_said_once(make_run):
    run = prepare(make_run(OnlineKnnHook(k=20, max_images=12, every="1 steps"), settings=settings())).start()
    run.do_steps(2)
    assert [event.fields["train_images"] for event in run.events("knn")] == [12, 12, 12]
    assert [text for text in run.messages() if "k=20" in text] == ["k-NN: k=20 uses all 12 training images"]


@pytest.mark.parametrize(
    ("given", "sets", "part"),
    [
        (settings(train=None, test=None), {}, "names no labelled images"),
        (settings(test=None), {"train": Patterns(40, labelled=False)}, "DATA.PROBE_TRAIN have no labels"),
        (settings(), {"test": Patterns(20, labelled=False)}, "DATA.PROBE_TEST have no labels"),
    ],
)
def test_off_without_labels_in_one_message(make_run, given, sets, part):
    run = prepare(make_run(OnlineKnnHook(), settings=given), **sets).start()
    run.do_steps(100)
    (message,) = run.messages()
    assert message.startswith("k-NN is off") and part in message
    assert run.events("knn") == []


@pytest.mark.parametrize(
    ("sets", "part"),
    [
        ({"test": Patterns(20, classes=("left", "right"))}, "PROBE_TRAIN: right. The training images have left, top"),
        ({"test": Patterns(20, channels=3)}, "DATA.PROBE_TEST.channels=1"),
    ],
)
def test_sets_that_do_not_fit_are_refused_before_training(make_run, sets, part):
    with pytest.raises(UserError, match=part):
        prepare(make_run(OnlineKnnHook(at_start=False), settings=settings()), **sets).start()


def test_classes_are_matched_by_name(make_run):
    """The rule of evaluations: a test set may number its classes otherwise, and have some of them only."""
    sets = {
        "train": Patterns(40, classes=("left", "top", "unseen")),
        "test": Patterns(20, classes=("left", "top")),
    }
    run = prepare(make_run(OnlineKnnHook(k=5), settings=settings()), **sets).start()
    assert run.events("knn")[0].fields["top1"] == 100.0
    swapped = Patterns(20, classes=("top", "left"))
    swapped.labels = 1 - swapped.labels
    run = prepare(make_run(OnlineKnnHook(k=5), settings=settings()), test=swapped).start()
    assert run.events("knn")[0].fields["top1"] == 100.0


def train(run, steps):
    """A small real training whose result depends on weights, buffers, modes and every global generator."""
    model = run.model.trunk
    head = nn.Linear(16, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    losses = []
    run.start()
    for _ in range(steps):
        images = torch.randn(8, 1, 16, 16) * (1 + random.random()) + float(np.random.rand())
        loss = head(model(images)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        run.do_step(loss=loss.item())
    return losses, {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("workers", [0, 1])
def test_training_is_bit_identical_with_and_without(make_run, workers):
    results = []
    for hooks in ([], [OnlineKnnHook(every="1 steps" if not workers else "2 steps", k=3)]):
        run = prepare(make_run(*hooks, total=4, settings=settings(workers=workers)))
        run.model.trunk[3].eval()  # a module that its owner keeps in eval mode
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        results.append(train(run, 4))
        assert [module.training for module in run.model.trunk] == [True, True, True, False, True, True]
    assert len(run.events("knn")) == (5 if not workers else 3)
    (losses, state), (other_losses, other_state) = results
    assert losses == other_losses
    assert all(torch.equal(state[key], other_state[key]) for key in state)


def test_nothing_is_measured_again_right_after_a_resume(make_run):
    run = prepare(make_run(OnlineKnnHook(every="5 steps", k=3), total=12, step=5, settings=settings())).start()
    assert "next at step 10" in run.messages()[0]
    run.do_steps(7)
    assert [event.step for event in run.events("knn")] == [10, 12]
