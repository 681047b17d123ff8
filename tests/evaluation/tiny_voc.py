"""A ``VOCdevkit`` in miniature: red, green and blue tell, with errors, what an image shows."""

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def voc_tree(root, train=30, test=24, seed=0, noise=60, difficult=0.05):
    """Writes the devkit; labels are drawn, with some difficult ones. Returns labels ``[N, 3]`` of both splits."""
    generator = np.random.default_rng(seed)
    place = root / "VOCdevkit/VOC2007"
    (place / "JPEGImages").mkdir(parents=True)
    (place / "ImageSets/Main").mkdir(parents=True)
    found, number = {}, 0
    for split, count in (("trainval", train), ("test", test)):
        labels = generator.choice(
            [1, -1, -1, 0], size=(count, len(CLASSES)), p=[0.35, *[(0.65 - difficult) / 2] * 2, difficult]
        )
        names = []
        for row in labels:
            quarters = 110 + 50 * row + generator.normal(0, noise, (2, 2, 3))
            pixels = quarters.repeat(10, axis=0).repeat(16, axis=1) + generator.normal(0, 9, (20, 32, 3))
            names.append(f"{number:06d}")
            number += 1
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"JPEGImages/{names[-1]}.png")
        write_split(place, split, names, labels)
        found[split] = labels
    return found["trainval"], found["test"]


def write_split(place, split, names, labels):
    """Lists of a split, in the devkit's way."""
    (place / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for column, label in enumerate(CLASSES):
        lines = [f"{name} {value:2d}\n" for name, value in zip(names, labels[:, column], strict=True)]
        (place / f"ImageSets/Main/{label}_{split}.txt").write_text("".join(lines))
