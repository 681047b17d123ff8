"""Photos with their trained features, for the pictures of a report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vissl_like.data.datasets.base import ImageDataset, UnreadableImage, evenly_spread
from vissl_like.data.transforms.parameters import sample_generator
from vissl_like.engines.trained import Weights, build_trained, look_of, open_source, protocol_of, trained_identity
from vissl_like.evaluation.base import Features
from vissl_like.evaluation.knn import nearest_rows
from vissl_like.evaluation.names import TRAINED
from vissl_like.evaluation.scoring import align_classes
from vissl_like.evaluation.store import FeatureStore
from vissl_like.evaluation.subjects import Source, feature_key, network_subject, subject_features
from vissl_like.registry import TRANSFORMS
from vissl_like.trainer.components import build, build_dataset
from vissl_like.visualize.crops import CropRow
from vissl_like.visualize.neighbours import NeighbourRow

MOST_IMAGES = 2000
NEIGHBOURS = 6


@dataclass
class Gallery:
    """Photos that are searched, and photos that are asked about (the same where there are no others).

    Attributes:
        source, features: of the photos that are searched.
        query_source, query_features: of those asked about.
        what: where they come from, in words.
    """

    source: Source
    features: Features
    query_source: Source
    query_features: Features
    what: str

    @property
    def is_one(self) -> bool:
        """Whether photos are asked about among themselves."""
        return self.query_source is self.source


def open_gallery(loaded: Any, weights: Weights, output_dir: Path) -> Gallery:
    """Photos and features: of the probe sets where there are some, else of the training images.

    Features that an evaluation left behind are used; else at most ``MOST_IMAGES`` of each set are run through the
    network.

    Raises:
        UserError: the images or the weights cannot be used.
    """
    data = loaded.resolved.DATA
    look = look_of(loaded.resolved, weights)
    source = open_source(data.PROBE_TRAIN if data.PROBE_TRAIN is not None else data.TRAIN, look)
    query = source if data.PROBE_TRAIN is None or data.PROBE_TEST is None else open_source(data.PROBE_TEST, look)
    if query is not source:
        align_classes(source.dataset, query.dataset)
    trunk, _ = build_trained(loaded.resolved, weights, look)
    full = protocol_of(loaded)
    subject = network_subject(TRAINED, trained_identity(loaded.resolved, weights, trunk), trunk, full, share=False)
    store = FeatureStore(output_dir / "features")

    def features(images: Source) -> Features:
        protocol = full
        count = min(len(images.dataset), full.max_images or len(images.dataset))
        if count > MOST_IMAGES and not store.has(feature_key(subject, images, full)):
            protocol = dataclasses.replace(full, max_images=MOST_IMAGES)
        return subject_features(subject, images, protocol, store)

    found = features(source)
    what = "labelled photos (DATA.PROBE_TRAIN)" if data.PROBE_TRAIN is not None else "training photos (DATA.TRAIN)"
    if query is source:
        return Gallery(source, found, source, found, what)
    return Gallery(source, found, query, features(query), f"{what}, asked about photos of DATA.PROBE_TEST")


def neighbour_rows(gallery: Gallery, count: int) -> list[NeighbourRow]:
    """Evenly spread photos with their nearest neighbours, themselves excluded."""
    asked = torch.from_numpy(evenly_spread(len(gallery.query_features), count))
    unit = torch.nn.functional.normalize
    bank, queries = unit(gallery.features.features, dim=1), unit(gallery.query_features.features[asked], dim=1)
    more = min(NEIGHBOURS + gallery.is_one, len(bank))
    similarity, where = nearest_rows(bank, queries, more)
    rows = []
    for position, row in enumerate(asked.tolist()):
        pairs = list(zip(where[position].tolist(), similarity[position].tolist(), strict=True))
        if gallery.is_one:
            pairs = [pair for pair in pairs if pair[0] != row]
        query_index = int(gallery.query_features.indices[row])
        photos, values, labels = [], [], []
        for found, value in pairs[:NEIGHBOURS]:
            index = int(gallery.features.indices[found])
            photo = readable_photo(gallery.source.dataset, index)
            if photo is not None:
                photos.append(photo)
                values.append(value)
                labels.append(class_name(gallery.source.dataset, index))
        query = readable_photo(gallery.query_source.dataset, query_index)
        if query is not None and photos:
            label = class_name(gallery.query_source.dataset, query_index)
            rows.append(NeighbourRow(query, photos, values, label, labels if label else ()))
    return rows


def readable_photo(dataset: ImageDataset, index: int) -> Image.Image | None:
    """The photo, None if it has become unreadable."""
    try:
        return dataset.read(index)
    except UnreadableImage:
        return None


def class_name(dataset: ImageDataset, index: int) -> str:
    """Name of an image's class, its number where there are no names, empty where there are no labels."""
    if dataset.labels is None:
        return ""
    number = int(dataset.labels[index])
    classes = dataset.classes
    return classes[number] if classes is not None and 0 <= number < len(classes) else str(number)


def map_rows(features: Features, most: int, seed: int) -> Features:
    """At most so many of the rows, evenly spread, in an order of chance (the first get thumbnails)."""
    rows = evenly_spread(len(features), most)
    order = np.random.default_rng(seed).permutation(len(rows))
    return features.select(torch.from_numpy(rows[order]))


def crop_rows(settings: Any, count: int) -> list[CropRow]:
    """Evenly spread training photos with the views that the first epoch made of them.

    Raises:
        UserError: the training images or the transform cannot be used.
    """
    dataset = build_dataset(settings.DATA.TRAIN)
    transform = build(TRANSFORMS, settings.DATA.TRANSFORM, dataset.channels)
    rows = []
    for index in evenly_spread(len(dataset), count).tolist():
        photo = readable_photo(dataset, index)
        if photo is None:
            continue
        drawn = transform.draw(*photo.size, sample_generator(settings.SEED, 0, index))
        boxes = [(view.left, view.top, view.width, view.height) for view in drawn]
        rows.append(CropRow(photo, transform.render(photo, drawn), boxes))
    return rows
