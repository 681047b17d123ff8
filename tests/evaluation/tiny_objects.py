"""Small sets with objects, 20 x 40 pixels: cats are light squares, dogs dark ones; as VOCdevkit and as COCO."""

import json

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")
OBJECTS = [("cat", (2, 4, 12, 14), False), ("dog", (20, 2, 36, 18), True)]
"""Of the first image: class, left, top, right, bottom, difficult."""


def layout(index):
    """Objects of an image: those above, in other places from image to image."""
    step = index % 3
    return [(name, (box[0] + step, box[1], box[2] + step, box[3]), flag) for name, box, flag in OBJECTS]


def picture(objects, seed, size=(20, 40), channels=3):
    """Grey noise with squares."""
    pixels = np.random.default_rng(seed).integers(90, 150, (*size, 3))
    for name, (left, top, right, bottom), _ in objects:
        pixels[top:bottom, left:right] = 230 if name == "cat" else 20
    image = Image.fromarray(pixels.astype(np.uint8))
    return image if channels == 3 else image.convert("L")


def voc_tree(root, train=6, test=3):
    """Writes a VOCdevkit with years 2007; returns its folder."""
    place = root / "VOCdevkit/VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (place / folder).mkdir(parents=True)
    for split, start, count in (("trainval", 0, train), ("test", train, test)):
        names = [f"{start + number:06d}" for number in range(count)]
        (place / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for label in CLASSES:
            (place / f"ImageSets/Main/{label}_{split}.txt").write_text("".join(f"{name}  1\n" for name in names))
        for name in names:
            objects = layout(int(name))
            picture(objects, int(name)).save(place / f"JPEGImages/{name}.png")
            entries = "".join(
                f"<object><name>{label}</name><difficult>{int(flag)}</difficult><bndbox><xmin>{box[0] + 1}</xmin>"
                f"<ymin>{box[1] + 1}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
                for label, box, flag in objects
            )
            (place / f"Annotations/{name}.xml").write_text(
                f"<annotation><size><width>40</width><height>20</height></size>{entries}</annotation>"
            )
    return root / "VOCdevkit"


def coco_tree(root, train=4, val=3):
    """Writes instances with masks: a crowd in the first image, nothing in the last of ``train``; returns the folder."""
    (root / "annotations").mkdir(parents=True)
    for split, count, seed in (("train", train, 0), ("val", val, 50)):
        (root / split).mkdir()
        content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}
        for number in range(count):
            objects = [] if split == "train" and number == count - 1 else layout(number)
            picture(objects, seed + number).save(root / split / f"{number}.png")
            content["images"].append({"id": number + 1, "file_name": f"{number}.png", "width": 40, "height": 20})
            crowds = [("cat", (36, 0, 40, 4), False)] if split == "train" and number == 0 else []
            for label, (left, top, right, bottom), _ in [*objects, *crowds]:
                entry = {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": 3 if label == "cat" else 7,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(bool(crowds) and left == 36),
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
                content["annotations"].append(entry)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root
