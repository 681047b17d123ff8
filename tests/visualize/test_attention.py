import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.visualize.attention import attention_sheet, class_attention, mass_mask, upscaled

BLUE = (10, 20, 250)


def random_attention(heads, rows, columns, seed=0):
    return np.random.default_rng(seed).gamma(0.3, size=(heads, rows, columns)) + 1e-6


def box_of(pixels, color):
    """Top, bottom, left, right (exclusive) of everything in exactly this colour."""
    where = np.argwhere((pixels == np.array(color)).all(axis=2))
    (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
    return top, bottom, left, right


def test_the_mask_by_hand():
    attention = np.array([[[0.1, 0.4], [0.2, 0.3]], [[0.0, 0.0], [5.0, 0.0]]])
    # first head: ascending .1 .3 .6 1.0 cumulated; above 1 - .6 are the places of .3 and .4
    assert mass_mask(attention, 0.6).tolist() == [[[False, True], [False, True]], [[False, False], [True, False]]]
    assert mass_mask(attention, 0.75)[0].tolist() == [[False, True], [True, True]]
    assert mass_mask(attention, 1.0)[0].all()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_the_mask_holds_the_share_with_as_few_patches_as_can_be(share):
    attention = random_attention(5, 6, 9)
    mask = mass_mask(attention, share)
    for head, kept in zip(attention, mask, strict=True):
        total = head.sum()
        assert head[kept].sum() >= share * total > head[kept].sum() - head[kept].min()
        assert head[kept].min() >= head[~kept].max()


def test_the_mask_is_the_official_one():
    """The official script's steps, one head at a time."""
    attention = random_attention(4, 5, 7)
    value, index = torch.sort(torch.from_numpy(attention).flatten(1))
    value /= value.sum(dim=1, keepdim=True)
    kept = torch.cumsum(value, dim=1) > 1 - 0.6
    back = torch.argsort(index)
    for head in range(4):
        kept[head] = kept[head][back[head]]
    assert np.array_equal(mass_mask(attention, 0.6), kept.reshape(4, 5, 7).numpy())


def test_every_pixel_has_its_patchs_value():
    values = random_attention(2, 3, 5)
    assert np.array_equal(upscaled(values, 12, 20), np.kron(values, np.ones((4, 4))))


@pytest.mark.parametrize(("height", "width"), [(96, 48), (48, 96), (224, 224)])
def test_attention_of_a_network_of_224_at_another_size(height, width):
    torch.manual_seed(0)
    trunk = VisionTransformer(3, size="tiny", patch_size=16, depth=2).eval()
    image = torch.randn(3, height, width)
    found = class_attention(trunk, image)
    rows, columns = height // 16, width // 16
    assert found.shape == (3, rows, columns) and found.dtype == np.float64
    full = trunk.last_attention(image[None]).detach()
    for head, row, column in ((0, 0, 0), (2, rows - 1, 0), (1, 1, columns - 1)):
        assert found[head, row, column] == pytest.approx(full[0, head, 0, 1 + row * columns + column].item(), rel=1e-5)
    assert found.sum(axis=(1, 2)) == pytest.approx(1 - full[0, :, 0, 0].numpy(), rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(96, 48), (48, 96), (64, 64)])
def test_proportions_and_place_of_the_mask(drawn, height, width):
    """One plain image, all attention in the top right quarter: only that keeps its colour."""
    attention = np.full((1, 4, 6), 1e-9)
    attention[0, :2, 3:] = 1.0
    picture = attention_sheet(Image.new("RGB", (width, height), BLUE), attention, 0.9)
    pixels = drawn(picture)
    middle, left_part = pixels.shape[0] // 2, pixels.shape[1] // 2
    top, bottom, left, right = box_of(pixels[:, :left_part], BLUE)
    assert bottom < middle + 30
    high, wide = bottom - top, right - left
    assert wide / high == pytest.approx(width / height, rel=0.05)
    top, bottom, left, right = box_of(pixels[:, left_part:], BLUE)
    assert (bottom - top, right - left) == pytest.approx((high / 2, wide / 2), abs=4)
    assert top > middle - 30 and left > 0.3 * (pixels.shape[1] - left_part)
    assert "1 heads, over 6 x 4 patches" in picture.alt and "lies on 25 to 25 % of the patches" in picture.alt
    assert f"{24 / 6:.1f} times" in picture.alt


@pytest.mark.parametrize("heads", [3, 6, 12])
def test_every_head_is_drawn(heads):
    """Each head looks at another patch, and nowhere else: as many patches keep the colour of the image."""
    attention = np.full((heads, 4, 8), 1e-9)
    attention[range(heads), np.arange(heads) % 4, np.arange(heads) % 8] = 1.0
    sheet = attention_sheet(Image.new("RGB", (64, 32), BLUE), attention, 0.6, "photo.png")
    pixels = np.asarray(Image.open(io.BytesIO(sheet.png)).convert("RGB"))
    assert f"{heads} heads" in sheet.alt and "lies on 3 to 3 % of the patches" in sheet.alt
    blue = (pixels == np.array(BLUE)).all(axis=2).sum()
    panel = (1.6 * 144) * (0.8 * 144)
    assert blue / panel == pytest.approx(1 + heads / 32, rel=0.06)  # the image, and 1 of 32 patches for each head
    rows, columns = 2 * math.ceil(heads / 6), min(heads, 6) + 1
    assert pixels.shape[0] == pytest.approx(144 * (rows * (0.8 + 0.24) + 0.4), abs=2)
    assert pixels.shape[1] == pytest.approx(144 * (columns * 1.7 + 0.1), abs=2)


def test_even_attention_and_a_strip_can_be_drawn(drawn):
    even = attention_sheet(np.zeros((3, 16, 160), dtype=np.uint8), np.full((2, 2, 20), 0.01), 1.0)
    drawn(even)
    assert "1.0 to 1.0 times" in even.alt and "100 to 100 %" in even.alt
