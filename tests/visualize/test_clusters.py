import io

import numpy as np
from PIL import Image

from vissl_like.visualize.clusters import ClusterRow, cluster_sheet, size_chart


def photo(value):
    return Image.new("L", (30, 20), value)


def test_photos_of_clusters():
    rows = [
        ClusterRow("3", 40, [photo(10)] * 2, [photo(200)] * 3, "cats"),
        ClusterRow("7", 1, [photo(50)], [photo(50)]),
    ]
    picture = cluster_sheet(rows)
    assert "cluster 3 with 40 photos; cluster 7 with 1 photos" in picture.alt
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("L"))
    assert (pixels == 10).sum() > 2000 and (pixels == 200).sum() > 3000
    bare = cluster_sheet([ClusterRow("0", 2, [], [photo(90)] * 2)])
    assert (np.asarray(Image.open(io.BytesIO(bare.png)).convert("L")) == 90).sum() > 2000
    assert cluster_sheet([]) is None


def test_sizes():
    picture = size_chart(np.array([3, 0, 9]))
    assert "Sizes of 3 clusters: largest 9, median 3, smallest 0, 1 empty" in picture.alt
    assert min(Image.open(io.BytesIO(picture.png)).size) > 100
