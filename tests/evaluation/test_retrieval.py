"""Retrieval on small sets of coloured pictures, against rankings made by hand with numpy."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vissl_like.evaluation import bench as bench_module
from vissl_like.evaluation.base import LeftOut
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.retrieval import RetrievalEvaluation
from vissl_like.evaluation.subjects import Look, Protocol, network_subject, pixel_subject
from vissl_like.utils.errors import UserError

SIZE = 8


class MeanColour(torch.nn.Module):
    """``[n, 3, H, W] -> [n, 3]``; notes the shapes that it is given."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return images.mean(dim=(2, 3))


class OnePixel(torch.nn.Module):
    """A different place of the picture at every scale."""

    def forward(self, images):
        return images[:, :, 1, 1]


def bench(network=None, **protocol):
    protocol = Protocol(image_size=99, batch_size=4, **protocol)
    network = network_subject("trained", "tiny", network or MeanColour(), protocol)
    return Bench(network, protocol, Look(3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


def pixel_bench():
    return Bench(pixel_subject(), Protocol(image_size=99), Look(3, (0.0,) * 3, (1.0,) * 3))


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def truth_of(place, gallery, gnd):
    lists = {"imlist": [f"g{i:02d}" for i in range(gallery)], "qimlist": [f"q{i}" for i in range(len(gnd))]}
    (place / "gnd.json").write_text(json.dumps({**lists, "gnd": gnd}))


@pytest.fixture
def place(tmp_path):
    """Twelve gallery pictures and four queries of random colours, squares so that squashing leaves them as they are."""
    random = np.random.default_rng(3)
    for name in [f"g{i:02d}" for i in range(12)] + [f"q{i}" for i in range(4)]:
        tint = random.integers(20, 200, 3)
        save(
            tmp_path / "jpg" / f"{name}.png",
            (tint + random.integers(0, 50, (SIZE, SIZE, 3))).clip(0, 255).astype("uint8"),
        )
    gnd = [
        {"easy": [0, 5], "hard": [7], "junk": [1, 2]},
        {"easy": [], "hard": [3, 4], "junk": []},
        {"easy": [9], "hard": [], "junk": [0, 11, 10]},
        {"easy": [], "hard": [], "junk": [6]},
    ]
    truth_of(tmp_path, 12, gnd)
    return tmp_path


def pixels(place, names):
    return np.stack([np.asarray(Image.open(place / "jpg" / f"{name}.png"), np.float64) / 255 for name in names])


def colours(place, names):
    return np.concatenate([pixels(place, [name]).mean(axis=(1, 2)) for name in names])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_hand(similarity, gnd, protocol):
    """Average precision, precision at 1, 5 and 10, of every query with positives, down each ranking."""
    found = {}
    for number, entry in enumerate(gnd):
        positive = {"easy": ["easy"], "medium": ["easy", "hard"], "hard": ["hard"]}[protocol]
        junk = {"easy": ["junk", "hard"], "medium": ["junk"], "hard": ["junk", "easy"]}[protocol]
        right = {i for group in positive for i in entry[group]}
        ignored = {i for group in junk for i in entry[group]}
        if not right:
            continue
        ranked = [int(i) for i in np.argsort(-similarity[number], kind="stable") if int(i) not in ignored]
        hits, area, before, last = 0, 0.0, 1.0, 0
        for seen, image in enumerate(ranked, 1):
            if image in right:
                hits, last = hits + 1, seen
                area += (before + hits / seen) / 2 / len(right)
            before = hits / seen
        at = [sum(i in right for i in ranked[: min(k, last)]) / min(k, last) for k in (1, 5, 10)]
        found[number] = (area, *at)
    return found


def expected(similarity, gnd):
    values = {name: by_hand(similarity, gnd, name) for name in ("easy", "medium", "hard")}
    metrics = {f"map_{name}": 100 * np.mean([row[0] for row in found.values()]) for name, found in values.items()}
    for column, k in enumerate((1, 5, 10), 1):
        metrics[f"precision_at_{k}"] = 100 * np.mean([row[column] for row in values["medium"].values()])
    metrics["recall_at_1"] = metrics["precision_at_1"]
    return metrics, {number: 100 * row[0] for number, row in values["medium"].items()}


def gallery_and_queries(place):
    truth = json.loads((place / "gnd.json").read_text())
    return truth["imlist"], truth["qimlist"], truth["gnd"]


def evaluation(place, **options):
    return RetrievalEvaluation(path=str(place), **{"image_size": SIZE, "fit": "squash", **options})


def check(result, similarity, gnd):
    metrics, items = expected(similarity, gnd)
    assert result.metrics == pytest.approx(metrics, abs=1e-4)
    assert dict(zip(result.item_ids.tolist(), result.items, strict=True)) == pytest.approx(items, abs=1e-4)
    assert result.items.mean() == pytest.approx(result.metrics[result.main])


def test_scores_by_hand(place):
    gallery, queries, gnd = gallery_and_queries(place)
    result = evaluation(place).run(bench())
    check(result, unit(colours(place, queries)) @ unit(colours(place, gallery)).T, gnd)
    assert result.main == "map_medium" and result.item_ids.tolist() == [0, 1, 2] and result.test_images == 3
    assert 0 < result.metrics["map_medium"] < 100
    assert result.details["counted_queries"] == {"easy": 2, "medium": 3, "hard": 2}
    assert result.details["gallery_images"] == 12 and result.details["queries"] == "whole images"
    assert "4 of 4 queries have no box and are shown whole" in result.details["notices"]
    json.dumps(result.details)


def test_ground_truth_by_its_file_and_images_elsewhere(place):
    before = evaluation(place).run(bench()).metrics
    (place / "jpg").rename(place / "pictures")
    given = RetrievalEvaluation(
        path=str(place / "gnd.json"), images=str(place / "pictures"), image_size=SIZE, fit="squash"
    )
    assert given.run(bench()).metrics == before


def test_boxes_are_what_queries_show(place):
    gallery, queries, gnd = gallery_and_queries(place)
    halves = np.zeros((SIZE, 2 * SIZE, 3), np.uint8)
    left, right = pixels(place, ["g03", "g08"])
    halves[:, :SIZE], halves[:, SIZE:] = (255 * left).round(), (255 * right).round()
    save(place / "jpg/q1.png", halves)
    gnd[1]["bbx"] = [0.2, 0, SIZE - 0.3, SIZE]  # rounded outwards
    truth_of(place, 12, gnd)
    shown = colours(place, queries)
    gallery = unit(colours(place, gallery))
    whole = evaluation(place, crop_queries=False).run(bench())
    check(whole, unit(shown) @ gallery.T, gnd)
    assert whole.details["queries"] == "whole images" and "queries are shown whole" in whole.details["notices"][0]
    shown[1] = colours(place, ["g03"])[0]
    cropped = evaluation(place).run(bench())
    check(cropped, unit(shown) @ gallery.T, gnd)
    assert cropped.details["queries"] == "cropped to their boxes"
    assert cropped.details["notices"] == ["3 of 4 queries have no box and are shown whole"]
    assert cropped.metrics["map_medium"] > whole.metrics["map_medium"]


def test_unreadable_images_do_not_shift_the_others(place):
    gallery, queries, gnd = gallery_and_queries(place)
    similarity = unit(colours(place, queries)) @ unit(colours(place, gallery)).T
    for name in ("g01", "g05", "q0"):
        (place / f"jpg/{name}.png").write_bytes(b"no image")
    result = evaluation(place).run(bench())
    assert result.item_ids.tolist() == [1, 2] and len(result.skipped) == 3
    notices = " ".join(result.details["notices"])
    assert "1 unreadable query image(s)" in notices and "2 unreadable image(s) of the gallery" in notices
    similarity[:, [1, 5]] = -9
    _, items = expected(similarity, gnd)
    assert result.items == pytest.approx([items[1], items[2]], abs=1e-4)
    assert result.details["gallery_images"] == 10


def test_lost_right_answers_are_counted(place):
    (place / "jpg/g05.png").write_bytes(b"")
    notices = evaluation(place).run(bench()).details["notices"]
    assert any("1 unreadable image(s) of the gallery are left out; 1 right answer(s)" in text for text in notices)


def whitened_by_hand(learnt, rows, dims):
    mean = learnt.mean(axis=0)
    _, deviations, directions = np.linalg.svd((learnt - mean) / np.sqrt(len(learnt)), full_matrices=False)
    return unit((rows - mean) @ (directions[:dims] / deviations[:dims, None]).T)


def test_whitening_learnt_on_other_images(place):
    gallery, queries, gnd = gallery_and_queries(place)
    random = np.random.default_rng(8)
    others = (random.integers(0, 200, (20, 1, 1, 3)) + random.integers(0, 50, (20, SIZE, SIZE, 3))).astype("uint8")
    for number, picture in enumerate(others):
        save(place / "others" / f"{number:02d}.png", picture)
    learnt = unit((others / 255.0).mean(axis=(1, 2)))
    result = evaluation(place, whiten=2, whiten_on=str(place / "others")).run(bench())
    rows = [whitened_by_hand(learnt, unit(colours(place, names)), 2) for names in (queries, gallery)]
    check(result, rows[0] @ rows[1].T, gnd)
    assert result.train_images == 20 and result.details["whiten"] == 2
    assert not any("whitening" in text for text in result.details["notices"])
    own = evaluation(place, whiten=3).run(bench())
    learnt = unit(colours(place, gallery))
    rows = [whitened_by_hand(learnt, unit(colours(place, names)), 3) for names in (queries, gallery)]
    check(own, rows[0] @ rows[1].T, gnd)
    assert own.train_images == 12 and any("learnt on the gallery itself" in text for text in own.details["notices"])


def test_several_scales(place):
    gallery, queries, gnd = gallery_and_queries(place)
    random = np.random.default_rng(5)
    for name in gallery + queries:
        save(place / f"jpg/{name}.png", random.integers(0, 256, (SIZE, SIZE, 3)).astype("uint8"))

    def described(names):
        images = torch.from_numpy(pixels(place, names)).permute(0, 3, 1, 2)
        half = images.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))  # bilinear at a half, by hand
        return unit((OnePixel()(images) + OnePixel()(half)).numpy())

    result = evaluation(place, scales=[1.0, 0.5]).run(bench(OnePixel()))
    check(result, described(queries) @ described(gallery).T, gnd)
    assert result.items.tolist() != evaluation(place).run(bench(OnePixel())).items.tolist()


def test_longest_side(place):
    save(place / "jpg/g00.png", np.full((10, 40, 3), 90, np.uint8))
    save(place / "jpg/q2.png", np.full((3, 5, 3), 90, np.uint8))
    network = MeanColour()
    result = evaluation(place, fit="longest", image_size=20).run(bench(network))
    assert network.shapes[0] == (1, 3, 5, 20) and (1, 3, 3, 5) in network.shapes
    assert len(network.shapes) == 16 and result.details["fit"] == "longest"


def test_pixels_without_their_mean(place):
    gallery, queries, gnd = gallery_and_queries(place)
    rows = [pixels(place, names).transpose(0, 3, 1, 2).reshape(len(names), -1) for names in (queries, gallery)]
    mean = rows[1].mean(axis=0)
    result = evaluation(place, whiten=2, scales=[1.0, 0.5]).run(pixel_bench())
    check(result, unit(rows[0] - mean) @ unit(rows[1] - mean).T, gnd)
    assert "pixels are not whitened" in result.details["notices"] and result.details["whiten"] is None


def test_pixels_that_do_not_fit(place, monkeypatch):
    assert evaluation(place).pixels and not evaluation(place, fit="longest").pixels
    with pytest.raises(UserError, match=r"EVALUATION\.fit=squash"):
        evaluation(place, fit="longest").run(pixel_bench())
    monkeypatch.setattr(bench_module, "MOST_PIXEL_BYTES", 4 * 8 * 8 * 12)
    with pytest.raises(LeftOut, match=r"1\d images of 8 px would take 0\.0 GiB"):
        evaluation(place).run(pixel_bench())


def test_one_process_has_the_result(place, monkeypatch):
    monkeypatch.setattr("vissl_like.distributed.comm.is_main", lambda: False)
    assert evaluation(place, whiten=2).run(bench()) is None


def test_limit_of_images_is_not_for_ground_truth(place):
    whole = evaluation(place).run(bench())
    limited = evaluation(place).run(bench(max_images=3))
    assert limited.metrics == whole.metrics
    assert any("EVALUATE.max_images is not applied" in text for text in limited.details["notices"])


def test_protocol_without_queries(place):
    truth_of(place, 12, [{"easy": [0], "hard": [], "junk": []}])
    result = evaluation(place).run(bench())
    assert "map_hard" not in result.metrics and result.metrics["map_easy"] == result.metrics["map_medium"]
    assert "no query counts under the hard protocol" in result.details["notices"]
    truth_of(place, 12, [{"easy": [], "hard": [], "junk": [3]}])
    with pytest.raises(UserError, match="nothing to be found"):
        evaluation(place).run(bench())


def test_queries_that_find_themselves(place):
    truth = {"imlist": ["g00", "g01", "g02"], "qimlist": ["g00", "g01", "q0"]}
    gnd = [
        {"easy": [0], "hard": [], "junk": []},
        {"easy": [0], "hard": [], "junk": [1]},
        {"easy": [2], "hard": [], "junk": []},
    ]
    (place / "gnd.json").write_text(json.dumps({**truth, "gnd": gnd}))
    notices = evaluation(place).run(bench()).details["notices"]
    assert any(text.startswith("1 queries are images of the gallery") for text in notices)


def test_identity_follows_what_is_measured(place):
    first = evaluation(place).identity(bench())
    assert evaluation(place).identity(bench()) == first
    gnd = gallery_and_queries(place)[2]
    gnd[0]["junk"] = [1]
    truth_of(place, 12, gnd)
    second = evaluation(place).identity(bench())
    gnd[0]["bbx"] = [0, 0, 4, 4]
    truth_of(place, 12, gnd)
    third = evaluation(place).identity(bench())
    save(place / "others/0.png", np.zeros((4, 4, 3), np.uint8))
    fourth = evaluation(place, whiten=2, whiten_on=str(place / "others")).identity(bench())
    save(place / "jpg/g04.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    assert len({first, second, third, fourth, evaluation(place).identity(bench())}) == 5


def test_bad_options(place, tmp_path):
    with pytest.raises(UserError, match="whiten_on names images"):
        evaluation(place, whiten_on="others")
    with pytest.raises(UserError, match="scales is empty"):
        evaluation(place, scales=[])
    with pytest.raises(UserError, match="allow 1 to 3"):
        evaluation(place, whiten=9).run(bench())
    with pytest.raises(UserError, match=r"gnd\.json"):
        evaluation(tmp_path / "nowhere").run(bench())
