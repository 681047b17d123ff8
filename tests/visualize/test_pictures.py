import sys

import numpy as np
import pytest
from made_up_run import run_records
from PIL import Image

from vissl_like.visualize.crops import CropRow, crop_sheet
from vissl_like.visualize.curves import knn_curve, loss_curve, rank_curve, rate_curve, series, speed_curve, thinned
from vissl_like.visualize.embedding import embedding_map, project
from vissl_like.visualize.neighbours import NeighbourRow, neighbour_sheet
from vissl_like.visualize.sheets import as_image, fitted, shortened

RED, BLUE = (255, 0, 0), (0, 0, 255)


def photo(color=RED, size=(40, 30)):
    return Image.new("RGB", size, color)


def has_color(pixels, color):
    return bool((pixels == np.array(color)).all(axis=2).any())


def test_series_leaves_out_what_is_not_a_number():
    records = [
        {"kind": "step", "step": 2, "loss": 3.0, "memory_mib": {"process": 5.0}},
        {"kind": "step", "step": 1, "loss": None},
        {"kind": "other", "step": 4, "loss": 9.0},
        {"kind": "step", "step": 3, "loss": 2.0},
        {"kind": "step", "step": 3, "loss": 2.5},  # a step done again counts once, the later record
    ]
    steps, values = series(records, "step", "loss")
    assert steps.tolist() == [2, 3] and values.tolist() == [3.0, 2.5]
    assert series(records, "step", "memory_mib", "process")[1].tolist() == [5.0]
    assert len(series(records, "knn", "top1")[0]) == 0


def test_long_curves_are_thinned_to_means():
    steps, values = thinned(np.arange(1000.0), np.arange(1000.0), most=10)
    assert len(steps) == 10 and values[0] == np.arange(100).mean()
    assert thinned(np.arange(3.0), np.arange(3.0), most=10)[0].tolist() == [0, 1, 2]


def test_curves_are_drawn(drawn):
    records = run_records()
    loss = loss_curve(records, 4.0943)
    drawn(loss)
    assert "4 at step 10" in loss.alt and "3.1 at step 100" in loss.alt and "trivial value is 4.094" in loss.alt
    assert not np.array_equal(drawn(loss), drawn(loss_curve(records, None)))  # the line is there
    knn = knn_curve(records, {"raw pixels": 74.5})
    drawn(knn)
    assert "80.0 % at step 100" in knn.alt and "raw pixels 74.5 %" in knn.alt
    assert not np.array_equal(drawn(knn), drawn(knn_curve(records)))
    for curve in (rate_curve(records), speed_curve(records), rank_curve(records)):
        drawn(curve)


def test_a_single_record_can_be_seen(drawn):
    records = [record for record in run_records() if record["step"] <= 10]
    blue = (np.abs(drawn(loss_curve(records, None)).astype(int) - (31, 111, 180)) < 30).all(axis=2).sum()
    assert blue > 20


def test_no_records_no_curves():
    for curve in (rate_curve, speed_curve, rank_curve, knn_curve):
        assert curve([]) is None
    assert loss_curve([], 4.0) is None


def test_drawing_leaves_no_figures_behind():
    loss_curve(run_records(), 4.0)
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_crops_show_the_photo_its_views_and_where_they_are(drawn):
    views = [np.full((3, 16, 16), value, dtype=np.uint8) for value in (10, 90)]
    row = CropRow(photo(), views, [(0, 0, 20, 20), (10, 5, 8, 8)])
    pixels = drawn(crop_sheet([row, row]))
    for color in (RED, (10, 10, 10), (90, 90, 90), (31, 111, 180), (217, 115, 13)):
        assert has_color(pixels, color)
    assert "2 training photos, each with its 2 random views of 16, 16 pixels" in crop_sheet([row, row]).alt
    assert not has_color(drawn(crop_sheet([CropRow(photo(), views)])), (31, 111, 180))
    assert crop_sheet([]) is None


def test_smaller_views_are_drawn_smaller(drawn):
    views = [np.full((1, 64, 64), 10, dtype=np.uint8), np.full((1, 32, 32), 90, dtype=np.uint8)]
    pixels = drawn(crop_sheet([CropRow(photo(), views)]))
    areas = [int((pixels == value).all(axis=2).sum()) for value in (10, 90)]
    assert areas[0] > 1.5 * areas[1]


def test_neighbours_are_framed_by_class(drawn):
    row = NeighbourRow(photo(), [photo(BLUE), photo(BLUE)], [0.9, 0.5], "cat", ["cat", "dog"])
    picture = neighbour_sheet([row])
    pixels = drawn(picture)
    assert has_color(pixels, (42, 138, 87)) and has_color(pixels, (217, 115, 13))
    assert "1 of 2 neighbours have the class" in picture.alt
    plain = neighbour_sheet([NeighbourRow(photo(), [photo(BLUE)], [0.9])])
    assert not has_color(drawn(plain), (42, 138, 87)) and "class" not in plain.caption
    assert neighbour_sheet([]) is None


def test_pca_finds_the_plane_of_largest_variance():
    generator = np.random.default_rng(0)
    angles = generator.uniform(0, 2 * np.pi, 200)
    features = np.zeros((200, 6))
    features[:, 1], features[:, 4] = np.cos(angles), np.sin(angles)
    points, note = project(features + 0.01 * generator.normal(size=features.shape), "pca")
    assert points.shape == (200, 2)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, atol=0.15)
    assert note == "PCA: two directions with 100 % of the variance"


def test_tsne_keeps_groups_together():
    generator = np.random.default_rng(0)
    centres = np.eye(8)[:3]
    features = np.repeat(centres, 20, axis=0) + 0.02 * generator.normal(size=(60, 8))
    points, note = project(features, "tsne", seed=1)
    assert "perplexity 20" in note
    groups = points.reshape(3, 20, 2)
    spread = max(np.linalg.norm(group - group.mean(axis=0), axis=1).max() for group in groups)
    means = groups.mean(axis=1)
    apart = min(np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert apart > spread
    again, _ = project(features, "tsne", seed=1)
    np.testing.assert_array_equal(points, again)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_small_maps(method):
    assert project(np.eye(4, 3), method)[0].shape == (4, 2)
    assert project(np.ones((4, 1)), "pca")[0].shape == (4, 2)
    with pytest.raises(ValueError, match="at least 3"):
        project(np.eye(2), method)


def test_map_with_and_without_labels(drawn):
    points = np.random.default_rng(0).normal(size=(50, 2))
    labelled = embedding_map(points, "PCA", labels=[0, 1] * 25, classes=["cat", "dog"])
    drawn(labelled)
    assert "Coloured by 2 classes" in labelled.alt
    bare = drawn(embedding_map(points, "PCA"))
    with_photos = drawn(embedding_map(points, "PCA", thumbnails=[photo()] * 5))
    red = [(np.abs(pixels.astype(int) - RED) < 40).all(axis=2).sum() for pixels in (bare, with_photos)]
    assert red[0] == 0 and red[1] > 500


def test_many_classes_have_no_endless_legend(drawn):
    points = np.random.default_rng(0).normal(size=(120, 2))
    drawn(embedding_map(points, "PCA", labels=list(range(60)) * 2))


def test_images_of_any_form():
    assert as_image(np.zeros((1, 4, 5), dtype=np.uint8)).size == (5, 4)
    assert as_image(np.zeros((3, 4, 5), dtype=np.uint8)).mode == "RGB"
    assert as_image(Image.new("L", (2, 3))).mode == "RGB"
    with pytest.raises(ValueError, match="uint8"):
        as_image(np.zeros((4, 5)))
    assert fitted(photo(size=(40, 20)), 100)[0].size == (100, 50)
    assert shortened("a long path/to.png", 9) == "...to.png" and shortened("short", 9) == "short"
