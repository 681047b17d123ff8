"""Copy detection on small sets of coloured pictures, against rankings made by hand with numpy."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.copy_detection import CopyDetectionEvaluation, describe
from vissl_like.evaluation.subjects import Look, Protocol, network_subject, pixel_subject
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.utils.errors import UserError

SIZE = 8


class MeanColour(torch.nn.Module):
    """``[n, 3, H, W] -> [n, 3]``, neither tokens nor a map."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


class Map(MeanColour):
    """The picture is the map."""

    def forward_map(self, images):
        return images


class Tokens(MeanColour):
    """The class token is the mean colour, patch tokens are the pixels."""

    def intermediate_layers(self, images, count):
        assert count == 1
        pixels = images.flatten(2).transpose(1, 2)
        return [torch.cat([pixels.mean(dim=1, keepdim=True), pixels], dim=1)]


def bench(network=None, **protocol):
    protocol = Protocol(image_size=99, batch_size=4, **protocol)
    subject = network_subject("trained", type(network).__name__, network or MeanColour(), protocol)
    return Bench(subject, protocol, Look(3, (0.0,) * 3, (1.0,) * 3))


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def place(tmp_path):
    """Five originals, 30 distractors of like colours, copies of two kinds."""
    random = np.random.default_rng(1)

    def picture(tint):
        return tint + random.integers(-20, 20, (SIZE, SIZE, 3))

    tints = random.integers(60, 190, (5, 3))
    for number, tint in enumerate(tints):
        save(tmp_path / f"original/{2000 + number}00.png", picture(tint))
        for copy in range(1 + number % 2):
            save(tmp_path / f"strong/{2000 + number}{copy:02d}.png", picture(tint + random.integers(-40, 40, 3)))
        save(tmp_path / f"crops/50/{2000 + number}00.png", picture(tint + random.integers(-8, 8, 3)))
    for number in range(30):
        save(tmp_path / f"distractors/d{number:03d}.png", picture(random.integers(60, 190, 3)))
    return tmp_path


def files(place, *folders):
    return [file for folder in folders for file in sorted((place / folder).glob("*.png"))]


def pixels(found):
    return np.stack([np.asarray(Image.open(file), np.float64) / 255 for file in found])


def means(found):
    return pixels(found).mean(axis=(1, 2))


def gems(found):
    return (pixels(found).clip(1e-6) ** 4).mean(axis=(1, 2)) ** 0.25


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def by_hand(queries, database, query_files, original_files, limit=20):
    """Percent for each query: trapezoids down the first images of its ranking."""
    found = []
    for row, file in zip(queries @ database.T, query_files, strict=True):
        right = {i for i, original in enumerate(original_files) if original.name[:4] == file.name[:4]}
        hits, area, before = 0, 0.0, 1.0
        for seen, image in enumerate(np.argsort(-row, kind="stable")[:limit], 1):
            if int(image) in right:
                hits += 1
                area += (before + hits / seen) / 2 / len(right)
            before = hits / seen
        found.append(100 * area)
    return found


def evaluation(place, **options):
    return CopyDetectionEvaluation(path=str(place), **{"image_size": SIZE, **options})


def check(result, describe_files, place, *folders):
    database = unit(describe_files(files(place, *folders)))
    for block, metric in (("strong", "map_strong"), ("crops/50", "map_crops_50")):
        found = files(place, block)
        values = by_hand(unit(describe_files(found)), database, found, files(place, "original"))
        assert result.metrics[metric] == pytest.approx(np.mean(values), abs=1e-4)
        if block == "strong":
            assert result.items == pytest.approx(values, abs=1e-4)


def test_scores_by_hand(place):
    result = evaluation(place, pooling="output").run(bench())
    check(result, means, place, "original", "distractors")
    assert result.main == "map_strong" and list(result.metrics) == ["map_strong", "map_crops_50"]
    assert 0 < result.metrics["map_strong"] < result.metrics["map_crops_50"]
    assert result.item_ids.tolist() == list(range(7)) and result.test_images == 7
    assert result.details["distractors"] == 30 and result.details["originals"] == 5
    assert result.details["notices"] == []
    json.dumps(result.details)


def test_only_the_first_twenty_count(place):
    solid = np.ones((SIZE, SIZE, 3))
    save(place / "original/300000.png", 0 * solid)  # black has no direction: it comes after all of the colours
    save(place / "strong/300000.png", 9 * solid)
    save(place / "original/200001.png", solid * [255, 0, 0])
    result = evaluation(place, pooling="output").run(bench())
    check(result, means, place, "original", "distractors")
    shown, searched = files(place, "strong"), files(place, "original", "distractors")
    endless = by_hand(unit(means(shown)), unit(means(searched)), shown, files(place, "original"), limit=99)
    assert result.items[-1] == 0.0 < endless[-1] and result.items[0] < endless[0]


def test_originals_alone(place):
    result = evaluation(place, pooling="output", distractors=False).run(bench())
    check(result, means, place, "original")
    assert result.details["distractors"] == 0 and result.details["notices"] == []
    for file in files(place, "distractors"):
        file.unlink()
    (place / "distractors").rmdir()
    again = evaluation(place, pooling="output").run(bench())
    assert again.metrics == result.metrics and "there are no distractors" in again.details["notices"][0]


def test_descriptor_of_tokens_of_a_map_and_of_neither(place):
    tokens = evaluation(place).run(bench(Tokens()))
    check(tokens, lambda found: np.concatenate([means(found), gems(found)], axis=1), place, "original", "distractors")
    assert tokens.details["pooling"] == "class token and GeM 4" and tokens.details["notices"] == []
    pooled = evaluation(place).run(bench(Map()))
    check(pooled, gems, place, "original", "distractors")
    assert pooled.details["pooling"] == "GeM 4"
    plain = evaluation(place).run(bench())
    check(plain, means, place, "original", "distractors")
    assert plain.details["pooling"] == "output"
    assert any("neither tokens nor a feature map" in text for text in plain.details["notices"])
    assert evaluation(place, pooling="output").run(bench(Tokens())).metrics == plain.metrics


def test_descriptors_of_real_trunks():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    vit = VisionTransformer(3, size="tiny", patch_size=16, image_size=32, depth=2).eval()
    with torch.no_grad():
        found = describe(vit, images)
        tokens = vit.intermediate_layers(images, 2)[1]
        patches = tokens[:, 1:].double().clamp(min=1e-6)
        assert found.shape == (2, 384)
        torch.testing.assert_close(found[:, :192], vit(images))
        torch.testing.assert_close(found[:, 192:].double(), (patches**4).mean(dim=1) ** 0.25, atol=1e-5, rtol=1e-5)
        resnet = ResNet(3, depth=10, width=0.125, stem="small").eval()
        maps = resnet.forward_map(images).double().clamp(min=1e-6)
        assert maps.shape[-1] > 1
        torch.testing.assert_close(
            describe(resnet, images).double(), (maps**4).mean(dim=(2, 3)) ** 0.25, atol=1e-5, rtol=1e-5
        )


def test_whitening_learnt_on_further_images(place):
    random = np.random.default_rng(4)
    for number in range(25):
        save(place / f"others/{number:02d}.png", random.integers(0, 200, 3) + random.integers(0, 50, (SIZE, SIZE, 3)))
    learnt = means(files(place, "others"))
    values, vectors = np.linalg.eigh(learnt.T @ learnt / len(learnt))  # with its mean still in it
    scale = vectors / np.sqrt(np.maximum(values, 1e-5 * values[-1]))
    result = evaluation(place, pooling="output", whiten_on=str(place / "others")).run(bench())
    check(result, lambda found: (means(found) - learnt.mean(axis=0)) @ scale, place, "original", "distractors")
    assert result.train_images == 25
    limited = evaluation(place, pooling="output", whiten_on=str(place / "others")).run(bench(max_images=5))
    assert limited.train_images == 5 and limited.test_images == 7
    assert any("only to those of whiten_on" in text for text in limited.details["notices"])


def test_pixels_without_their_mean(place):
    subject = Bench(pixel_subject(), Protocol(image_size=99), Look(3, (0.0,) * 3, (1.0,) * 3))
    save(place / "others/0.png", np.zeros((4, 4, 3)))
    result = evaluation(place, whiten_on=str(place / "others")).run(subject)
    flat = pixels(files(place, "original", "distractors")).reshape(35, -1)
    check(
        result,
        lambda found: pixels(found).reshape(len(found), -1) - flat.mean(axis=0),
        place,
        "original",
        "distractors",
    )
    assert result.details["pooling"] == "pixels" and result.details["notices"] == ["pixels are not whitened"]


def test_images_become_squares(place):
    save(place / "strong/200000.png", np.full((5, 17, 3), 100))
    seen = []

    class Noting(MeanColour):
        def forward(self, images):
            seen.append(tuple(images.shape[1:]))
            return super().forward(images)

    evaluation(place, pooling="output", image_size=12).run(bench(Noting()))
    assert set(seen) == {(3, 12, 12)}


def test_blocks_that_are_asked_for(place):
    result = evaluation(place, pooling="output", blocks=["crops/50"]).run(bench())
    assert list(result.metrics) == [result.main] == ["map_crops_50"]
    assert any("crops/50 counts" in text for text in result.details["notices"])
    with pytest.raises(UserError, match="crops/50"):
        evaluation(place, blocks=["crops/5"]).run(bench())
    with pytest.raises(UserError, match="blocks is empty"):
        evaluation(place, blocks=[])


def test_unreadable_images_do_not_shift_the_others(place):
    whole = evaluation(place, pooling="output", distractors=False).run(bench())
    names = [file.name for file in files(place, "strong")]
    (place / "original/200000.png").write_bytes(b"no image")
    (place / "strong/200200.png").write_bytes(b"no image")
    result = evaluation(place, pooling="output", distractors=False).run(bench())
    lost = {names.index("200000.png"), names.index("200200.png")}
    assert result.item_ids.tolist() == [i for i in range(len(names)) if i not in lost]
    assert all(result.items[i] >= whole.items[number] - 1e-9 for i, number in enumerate(result.item_ids))
    kept = files(place, "original")[1:]
    shown = [file for file in files(place, "strong") if file.name not in ("200000.png", "200200.png")]
    assert result.items == pytest.approx(by_hand(unit(means(shown)), unit(means(kept)), shown, kept), abs=1e-4)
    notices = " ".join(result.details["notices"])
    assert "1 unreadable query image(s)" in notices and "2 right answer(s)" in notices and len(result.skipped) == 2
    assert result.details["originals"] == 4


def test_no_original_can_be_read(place):
    for file in files(place, "original"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="no original of the queries of 'strong'"):
        evaluation(place).run(bench())


def test_identity_follows_what_is_measured(place):
    first = evaluation(place).identity(bench())
    assert evaluation(place).identity(bench()) == first
    assert evaluation(place, distractors=False).identity(bench()) != first
    assert evaluation(place, blocks=["strong"]).identity(bench()) != first
    save(place / "others/0.png", np.zeros((4, 4, 3)))
    assert evaluation(place, whiten_on=str(place / "others")).identity(bench()) != first
    save(place / "strong/200300.png", np.zeros((4, 4, 3)))
    assert evaluation(place).identity(bench()) != first


def test_one_process_has_the_result(place, monkeypatch):
    monkeypatch.setattr("vissl_like.distributed.comm.is_main", lambda: False)
    assert evaluation(place).run(bench()) is None


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        evaluation(tmp_path / "nowhere").run(bench())
