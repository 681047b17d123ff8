"""What tests of readers share: tiny trees of files."""

import json

import pytest
from PIL import Image


@pytest.fixture
def put(tmp_path):
    """``put("a/b.jpg")`` makes a file below the test's folder: a small image, or the text or JSON value given."""

    def make(relative, content=None, size=(6, 4)):
        path = tmp_path / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", size, (9, 8, 7)).save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return make
