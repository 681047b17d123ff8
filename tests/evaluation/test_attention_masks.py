"""A network whose attention is the image: three heads, one for each colour, so that scores can be worked by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vissl_like.evaluation.attention_masks import AttentionMasksEvaluation, attention_masks
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.store import FeatureStore
from vissl_like.evaluation.subjects import Look, Protocol, network_subject, pixel_subject
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.utils.errors import UserError


class Looking(nn.Module):
    """Patches of 4 pixels; the class token looks at itself most."""

    patch_size = 4

    def __init__(self):
        super().__init__()
        self.seen = []

    def grid(self, height, width):
        return height // 4, width // 4

    def last_attention(self, images):
        self.seen.append(images)
        patches = nn.functional.avg_pool2d(images, 4).flatten(2)
        count = patches.shape[2] + 1
        weights = torch.zeros(len(images), images.shape[1], count, count)
        weights[:, :, 0, 0] = 100.0
        weights[:, :, 0, 1:] = patches
        return weights


def voc(root, **images):
    """A VOCdevkit of ``name=(pixels [H, W, 3], object mask [H, W])``."""
    place = root / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (place / folder).mkdir(parents=True)
    for name, (pixels, mask) in images.items():
        Image.fromarray(pixels).save(place / f"JPEGImages/{name}.png")
        for kind in ("Class", "Object"):
            Image.fromarray(mask if kind == "Object" else mask * 0).save(place / f"Segmentation{kind}/{name}.png")
    (place / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in images))
    return root


def square():
    """Red looks at four patches, green at one, blue at all 16 alike; two objects."""
    pixels, mask = np.zeros((16, 16, 3), dtype=np.uint8), np.zeros((16, 16), dtype=np.uint8)
    pixels[:8, :8, 0], pixels[12:, 12:, 1], pixels[..., 2] = 255, 255, 255
    mask[:8, :8], mask[12:, 8:], mask[10, 3] = 1, 7, 255
    return pixels, mask


def wide():
    """Twice as wide; green looks at the last patch of the squeezed image, where the object is."""
    pixels, mask = np.zeros((16, 32, 3), dtype=np.uint8), np.zeros((16, 32), dtype=np.uint8)
    pixels[12:, 24:, 1], mask[12:, 24:] = 255, 1
    return pixels, mask


def bench(trunk=None, store=None, **changes):
    protocol = Protocol(image_size=8, resize=9, **changes)
    subject = network_subject("trained", "id", Looking() if trunk is None else trunk, protocol)
    return Bench(subject, protocol, Look(3, (0.0,) * 3, (1.0,) * 3), store=store)


def run(root, given=None, **options):
    return AttentionMasksEvaluation(path=str(root), **{"image_size": 18, **options}).run(given or bench())


def test_worked_by_hand(tmp_path):
    trunk = Looking()
    result = run(voc(tmp_path, a=square(), b=wide()), bench(trunk))
    assert [tuple(images.shape) for images in trunk.seen] == [(1, 3, 16, 16)] * 2
    assert torch.equal(trunk.seen[0][0], torch.from_numpy(square()[0]).permute(2, 0, 1) / 255)  # not resized before
    # 60 % of red are three of its four patches: 3/4 of the first object. Green's patch is half of the second object,
    # blue's ten patches hold it but are five times as large. The wide image is met exactly.
    assert result.items.tolist() == pytest.approx([100 * (0.75 + 0.5) / 2, 100])
    assert result.metrics == pytest.approx({"jaccard": 81.25}) and result.main == "jaccard"
    assert result.item_ids.tolist() == [0, 1] and result.test_images == 2
    details = result.details
    assert details["objects_by_head"] == [1, 2, 0] and details["objects"] == 3 and details["heads"] == 3
    assert details["image_size"] == 16 and details["notices"] == []  # four whole patches of 18 pixels
    floor = result.chance
    assert floor.name == "whole image" and floor.main == "jaccard"
    assert floor.items.tolist() == pytest.approx([100 * (64 + 32) / 256 / 2, 100 * 32 / 512])
    assert floor.metrics["jaccard"] == pytest.approx(12.5)


def test_more_mass_takes_more_patches(tmp_path):
    root = voc(tmp_path, a=square())
    assert run(root, mass=0.8).items.tolist() == pytest.approx([100 * (1 + 0.5) / 2])
    assert run(root, mass=0.2).items.tolist() == pytest.approx([100 * (0.25 + 0.5) / 2])


def test_masks_of_heads():
    attention = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[9.0, 0.0], [0.0, 1.0]]])
    masks = attention_masks(attention, 0.6, 3, 4, 8)
    # Ascending shares of the first are .1 .3 .6 1: the last two exceed .4. Of the second only the first patch does.
    assert masks.shape == (2, 4, 8)
    assert masks[0].int().tolist() == [[0] * 8] * 2 + [[1] * 8] * 2
    assert masks[1].int().tolist() == [[1] * 4 + [0] * 4] * 2 + [[0] * 8] * 2


def test_images_without_objects_and_broken_ones_are_left_out(tmp_path):
    empty = (square()[0], np.full((16, 16), 255, dtype=np.uint8))
    voc(tmp_path, a=empty, b=wide(), c=square(), d=square())
    file = tmp_path / "VOC2012/JPEGImages/c.png"
    file.write_bytes(file.read_bytes()[:40])
    result = run(tmp_path)
    assert result.item_ids.tolist() == [1, 3] and result.items.tolist() == pytest.approx([100, 62.5])
    assert [item.path for item in result.skipped] == [str(file)]
    assert result.details["notices"] == ["1 image(s) without an object are left out"]


def test_a_bound_on_images_and_kept_attention(tmp_path):
    root = voc(tmp_path / "set", a=square(), b=wide(), c=square())
    store = FeatureStore(tmp_path / "features")
    result = run(root, bench(store=store, max_images=1))
    assert result.test_images == 1
    looking = Looking()
    looking.last_attention = lambda images: pytest.fail("the attention is kept, and must not be asked again")
    again = run(root, bench(looking, store=store, max_images=1), mass=0.6)
    assert again.items.tolist() == result.items.tolist() and again.item_ids.tolist() == result.item_ids.tolist()


def test_identity_follows_images_and_masks(tmp_path):
    root = voc(tmp_path, a=square(), b=wide())
    evaluation = AttentionMasksEvaluation(path=str(root))
    first = evaluation.identity(bench())
    assert evaluation.identity(bench()) == first
    file = root / "VOC2012/SegmentationObject/b.png"
    file.write_bytes(file.read_bytes() + b"\0")
    assert evaluation.identity(bench()) != first


class TestErrors:
    def test_no_attention(self, tmp_path):
        root = voc(tmp_path, a=square())
        with pytest.raises(UserError, match="ResNet has no attention of a class token"):
            run(root, bench(ResNet(3, depth=10, width=0.125)))
        protocol = Protocol(image_size=8)
        with pytest.raises(UserError, match="raw pixels have no attention"):
            run(root, Bench(pixel_subject(), protocol, Look(3, (0.0,) * 3, (1.0,) * 3)))

    def test_no_objects(self, tmp_path):
        with pytest.raises(UserError, match="none of the 1 masks of the split 'val' shows an object"):
            run(voc(tmp_path, a=(square()[0], np.zeros((16, 16), dtype=np.uint8))))

    def test_no_mass(self):
        with pytest.raises(UserError, match=r"EVALUATION.mass is 0; it must be above 0"):
            AttentionMasksEvaluation(path="/voc", mass=0.0)
