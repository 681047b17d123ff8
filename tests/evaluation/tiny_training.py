"""A small network and a bench with images whose classes it can learn, for evaluations that train."""

import numpy as np
import torch
from tiny_data import ArrayDataset, random_images
from torch import nn

from vissl_like.evaluation.bench import Bench, Probe
from vissl_like.evaluation.subjects import Look, Protocol, Source, network_subject

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Tiny(nn.Module):
    """One convolution, BatchNorm if wanted, and the mean over places."""

    feature_dim = 6

    def __init__(self, norm=False, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, images):
        return self.dropout(self.norm(self.conv(images)).relu().mean(dim=(2, 3)))


def trunk(**options):
    """Always the same start."""
    torch.manual_seed(4)
    return Tiny(**options)


def images_of(count, classes=3, seed=0, size=8, labels=None, broken=()):
    """Noise whose colours tell the classes apart."""
    labels = np.arange(count) % classes if labels is None else np.asarray(labels)
    pixels = random_images(count, size, seed, channels=3) // 2
    for number in range(3):
        pixels[labels == number, :, :, number] += 90
    return ArrayDataset(pixels, labels, mean=list(MEAN), std=list(STD), broken=broken)


def bench_of(network, train, test, folder=None, classes=3, size=8, **protocol):
    """A bench for a network on images in memory."""
    how = Protocol(image_size=size, **protocol)
    probe = Probe(Source(train), None if test is None else Source(test), classes)
    return Bench(network_subject("net", "net", network, how), how, Look(3, MEAN, STD), probe, folder=folder)


def normalised(dataset):
    """``[N, 3, H, W]`` float64, by the formula."""
    pixels = torch.from_numpy(dataset.pixels).double().permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
