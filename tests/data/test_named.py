import numpy as np
import pytest
from PIL import Image

from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.named import NamedImages


@pytest.fixture
def photo(tmp_path):
    pixels = np.arange(12 * 10, dtype=np.uint8).reshape(10, 12)  # 12 wide, 10 high
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png"), pixels


def test_whole_images_and_parts(photo):
    file, pixels = photo
    boxes = [None, (1.2, 2.0, 5.1, 7.9), (-3, -3, 2, 2), (100, 100, 120, 120)]
    images = NamedImages([file] * 4, boxes=boxes, channels=1)
    found = [np.asarray(images.read(index)) for index in range(4)]
    assert (found[0] == pixels).all()
    assert (found[1] == pixels[2:8, 1:6]).all()  # rounded outwards
    assert (found[2] == pixels[:2, :2]).all()
    assert (found[3] == pixels[9:, 11:]).all()  # beside the image: the nearest pixel
    assert len(images) == 4 and images.labels is None and images.path(1) == file
    assert images.header(1) == ("PNG", (12, 10))
    assert images.describe()["labels"] == "none"


def test_mistakes(photo, tmp_path):
    file, _ = photo
    with pytest.raises(ValueError, match="2 boxes for 1 images"):
        NamedImages([file], boxes=[None, None])
    with pytest.raises(UnreadableImage):
        NamedImages([str(tmp_path / "none.png")]).read(0)
