import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for made_up_run.py


def pixels_of(picture):
    """``[H, W, 3]`` uint8 of a picture, after checking that it is a whole PNG."""
    image = Image.open(io.BytesIO(picture.png))
    image.verify()
    image = Image.open(io.BytesIO(picture.png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


@pytest.fixture
def drawn():
    """Checks that a picture decodes, is not blank and is described; gives its pixels."""

    def check(picture, least_colors=3):
        pixels = pixels_of(picture)
        assert min(pixels.shape[:2]) > 60
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) >= least_colors
        assert len(picture.alt) > 20 and picture.caption
        assert picture.data_uri.startswith("data:image/png;base64,iVBOR")
        return pixels

    return check
