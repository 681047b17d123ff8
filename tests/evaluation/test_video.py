"""Squares of pure colours move over a blue ground: colours as features must follow them without a fault."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from vissl_like.data.readers.masks import palette
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.subjects import Look, Protocol, network_subject, pixel_subject
from vissl_like.evaluation.video import VideoEvaluation, dense_features, resized
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.models.trunks.timm import TimmTrunk
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.utils.errors import UserError

COLOURS = ((0, 0, 255), (255, 0, 0), (0, 255, 0))
OVERLAPS = [6 / 10, 4 / 12, 2 / 14]
"""Of a square of 8 pixels with itself, 2, 4 and 6 pixels away: intersection over union."""


class Colours(nn.Module):
    """Mean colours of squares of 2 pixels."""

    strides = (2,)

    def stage_map(self, images, stages):
        assert stages == 1 and not self.training
        return nn.functional.avg_pool2d(images, 2)


def put(root, video, labels):
    """Frames and masks of one video from its labels ``[T, H, W]``."""
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / video).mkdir(parents=True)
    for number, mask in enumerate(labels):
        picture = Image.fromarray(np.array(COLOURS, dtype=np.uint8)[mask % 255])  # void looks like the ground
        picture.save(root / f"JPEGImages/480p/{video}/{number:05d}.png")
        indexed = Image.fromarray(mask)
        indexed.putpalette(palette())
        indexed.save(root / f"Annotations/480p/{video}/{number:05d}.png")


def moving(objects, frames=5, height=32, width=64, scale=1):
    """A square of 8 pixels for each object, 2 pixels further to the right in each frame; times the scale."""
    labels = np.zeros((frames, height, width), dtype=np.uint8)
    for frame in range(frames):
        for number in range(objects):
            left, top = 10 + 2 * frame + 20 * number, 4 + 12 * number
            labels[frame, top : top + 8, left : left + 8] = number + 1
    return labels.repeat(scale, axis=1).repeat(scale, axis=2)


def davis(root, **videos):
    for name, labels in videos.items():
        put(root, name, labels)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in videos))
    return root


def bench(folder=None, trunk=None, **changes):
    protocol = Protocol(image_size=8, **changes)
    subject = network_subject("random init", "id", Colours() if trunk is None else trunk, protocol)
    return Bench(subject, protocol, Look(3, (0.0,) * 3, (1.0,) * 3), folder=folder)


def run(root, folder=None, trunk=None, **options):
    return VideoEvaluation(path=str(root), **{"short_side": 32, **options}).run(bench(folder, trunk))


def test_exact_features_find_everything_and_the_floor_is_as_worked_by_hand(tmp_path):
    trunk = Colours().train()
    result = run(davis(tmp_path, one=moving(1), two=moving(2)), trunk=trunk)
    assert trunk.training
    assert result.metrics == pytest.approx({"J": 100, "F": 100, "J&F": 100}) and result.main == "J&F"
    assert result.items.tolist() == pytest.approx([100] * 3) and result.item_ids.tolist() == [0, 1, 2]
    assert result.test_images == 6  # without the first and the last of each video
    floor = result.chance
    assert floor.name == "first mask copied" and floor.main == "J&F"
    assert floor.metrics["J"] == pytest.approx(100 * np.mean(OVERLAPS))
    # Borders within a pixel of each other count as met, those two pixels away do not: upper and lower edges mostly.
    assert 10 < floor.metrics["F"] < 90
    assert floor.items.mean() == pytest.approx(floor.metrics["J&F"]) and len(floor.items) == 3
    details = result.details
    assert (details["videos"], details["objects"], details["patch"], details["notices"]) == (2, 3, 2, [])
    assert details["first mask copied"] == floor.metrics and details["by_video"].keys() == {"one", "two"}


def test_a_window_of_one_patch_on_the_first_frame_copies_its_masks(tmp_path):
    result = run(davis(tmp_path, two=moving(2)), radius=0, last_frames=0, topk=1)
    assert result.metrics == pytest.approx(result.chance.metrics) and result.metrics["J"] < 50
    assert result.items.tolist() == pytest.approx(result.chance.items.tolist())


def test_objects_count_alike_whatever_their_video(tmp_path):
    still = np.repeat(moving(1)[:1], 4, axis=0)
    result = run(davis(tmp_path, still=still, two=moving(2)), radius=0, last_frames=0, topk=1)
    assert result.metrics["J"] == pytest.approx(100 * (1 + 2 * np.mean(OVERLAPS)) / 3)
    assert result.items[0] == pytest.approx(100) and result.items[1] == pytest.approx(result.items[2])


def test_frames_are_seen_small_and_scored_at_their_own_size(tmp_path):
    result = run(davis(tmp_path, two=moving(2, scale=2)))
    assert result.metrics == pytest.approx({"J": 100, "F": 100, "J&F": 100})
    assert result.chance.metrics["J"] == pytest.approx(100 * np.mean(OVERLAPS))


def test_masks_are_written_as_indexed_pictures(tmp_path):
    labels = moving(2)
    labels[0, 0, 0] = 255  # void is no object
    run(davis(tmp_path / "set", two=labels), tmp_path / "run", save_masks=True)
    files = sorted((tmp_path / "run/video/random_init/two").iterdir())
    assert [file.name for file in files] == [f"{number:05d}.png" for number in range(5)]
    for file, mask in zip(files, moving(2)):
        with Image.open(file) as image:
            assert image.mode == "P" and image.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
            assert (np.array(image) == mask).all()


def test_objects_below_the_size_of_a_patch_are_said_to_be_lost(tmp_path):
    labels = moving(1)
    labels[:, 30, 0] = 2  # the patch's middle lies in row 31, column 1
    result = run(davis(tmp_path, one=labels))
    assert "1 object(s) are too small" in result.details["notices"][0]
    assert result.items.tolist() == pytest.approx([100, 0])


def test_limits_on_images_are_said_not_to_hold(tmp_path):
    root = davis(tmp_path, one=moving(1))
    result = VideoEvaluation(path=str(root), short_side=32).run(bench(max_images=1))
    assert "max_images does not hold" in result.details["notices"][0] and result.test_images == 3


def test_identity_follows_frames_and_masks(tmp_path):
    root = davis(tmp_path, one=moving(1))
    evaluation = VideoEvaluation(path=str(root))
    first = evaluation.identity(bench())
    assert evaluation.identity(bench()) == first
    file = root / "Annotations/480p/one/00003.png"
    file.write_bytes(file.read_bytes() + b"\0")
    assert evaluation.identity(bench()) != first


def test_resizing_is_bilinear_between_pixel_centres():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 10)).astype(np.uint8)

    def weights(old, new):
        table = np.zeros((new, old))
        for place in range(new):
            at = np.clip((place + 0.5) * old / new - 0.5, 0, old - 1)
            table[place, int(at)] += 1 - (at - int(at))
            table[place, min(int(at) + 1, old - 1)] += at - int(at)
        return table

    expected = weights(7, 4) @ pixels @ weights(10, 16).T
    found = resized(torch.from_numpy(pixels)[None, None], 4, 16)
    assert found.dtype == torch.uint8 and found.shape == (1, 1, 4, 16)
    assert np.abs(found[0, 0].numpy() - expected).max() <= 0.5001


class TestDenseFeatures:
    def test_tokens_of_a_transformer_lie_row_by_row(self):
        trunk = VisionTransformer(1, size="tiny", patch_size=4, image_size=16, depth=2).eval()
        seen = []
        trunk.norm.register_forward_hook(lambda module, given, found: seen.append(found))
        step, dense = dense_features(trunk, 8)
        with torch.no_grad():
            found = dense(torch.randn(2, 1, 12, 20))
        assert step == 4 and found.shape == (2, 192, 3, 5) and len(seen) == 1
        assert torch.equal(found[1, :, 2, 3], seen[0][1, 1 + 2 * 5 + 3])

    def test_a_resnet_gives_the_stage_of_the_stride(self):
        reference = torchvision.models.resnet18()
        trunk = ResNet(3, depth=18)
        trunk.load_state_dict({key: value for key, value in reference.state_dict().items() if key[:2] != "fc"})
        images = torch.randn(1, 3, 64, 96)
        net = nn.Sequential(*list(reference.children())[:6]).eval()  # up to layer2
        with torch.no_grad():
            step, dense = dense_features(trunk.eval(), 8)
            torch.testing.assert_close(dense(images), net(images), rtol=1e-5, atol=1e-5)
        assert step == 8

    @pytest.mark.parametrize(("stem", "stride", "step"), [("large", 1, 4), ("large", 31, 16), ("small", 8, 8)])
    def test_the_deepest_stage_within_the_stride(self, stem, stride, step):
        found, dense = dense_features(ResNet(1, depth=10, width=0.125, stem=stem), stride)
        assert found == step
        assert dense(torch.randn(1, 1, 64, 128)).shape[2:] == (64 // step, 128 // step)

    def test_models_of_timm(self):
        timm = pytest.importorskip("timm", reason="needs timm: pip install vissl_like[timm]")
        images = torch.randn(1, 3, 160, 160)
        trunk = TimmTrunk(3, model="test_resnet").eval()
        reference = timm.create_model("test_resnet", features_only=True, out_indices=[2]).eval()
        reference.load_state_dict(trunk.state_dict(), strict=False)
        with torch.no_grad():
            step, dense = dense_features(trunk, 8)
            torch.testing.assert_close(dense(images), reference(images)[0])
        assert step == 8 and trunk.strides == (2, 4, 8, 16, 32)
        trunk = TimmTrunk(3, model="test_vit").eval()
        step, dense = dense_features(trunk, 8)
        with torch.no_grad():
            tokens = trunk.net.forward_features(images)[:, trunk.net.num_prefix_tokens :]
            torch.testing.assert_close(dense(images), tokens.transpose(1, 2).unflatten(2, (10, 10)))
        assert step == 16
        _, dense = dense_features(TimmTrunk(3, model="vit_tiny_patch16_224", options={"depth": 1}), 8)
        with pytest.raises(UserError, match="does not take images of 32 x 64"):
            dense(torch.randn(1, 3, 32, 64))

    def test_networks_without_maps(self):
        with pytest.raises(UserError, match="Linear gives no dense features"):
            dense_features(nn.Linear(2, 2), 8)


class Shifted(Colours):
    """A map with a place too few in each direction, as convolutions without padding give it."""

    def stage_map(self, images, stages):
        return super().stage_map(images, stages)[..., 1:, 1:]


class TestErrors:
    def test_short_videos(self, tmp_path):
        with pytest.raises(UserError, match=r"'short' has 2 frames.*take it off"):
            run(davis(tmp_path, one=moving(1), short=moving(1, frames=2)))

    def test_small_frames(self, tmp_path):
        with pytest.raises(
            UserError, match=r"'one': with EVALUATION.short_side=31 nothing is left of frames of 64 x 32"
        ):
            run(davis(tmp_path, one=moving(1)), short_side=31)

    def test_broken_frame(self, tmp_path):
        davis(tmp_path, one=moving(1))
        (tmp_path / "JPEGImages/480p/one/00002.png").write_bytes(b"no picture")
        with pytest.raises(UserError, match=r"'one': a frame cannot be read: .*00002\.png"):
            run(tmp_path)

    @pytest.mark.parametrize(
        ("kind", "message"), [("JPEGImages", "has 20 x 32 pixels"), ("Annotations", "another size")]
    )
    def test_other_sizes_within_a_video(self, tmp_path, kind, message):
        davis(tmp_path, one=moving(1))
        Image.new("L", (20, 32), 1).save(tmp_path / kind / "480p/one/00002.png")
        with pytest.raises(UserError, match=message):
            run(tmp_path)

    def test_maps_of_another_size(self, tmp_path):
        with pytest.raises(UserError, match="map of 32 x 64 pixels is 15 x 31, not a place every 2 pixels"):
            run(davis(tmp_path, one=moving(1)), trunk=Shifted())

    def test_nowhere_to_write(self, tmp_path):
        davis(tmp_path, one=moving(1))
        with pytest.raises(UserError, match="no folder to write masks to"):
            run(tmp_path, save_masks=True)
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="masks cannot be written to"):
            run(tmp_path, tmp_path / "file", save_masks=True)

    def test_pixels(self, tmp_path):
        protocol = Protocol(image_size=8)
        place = Bench(pixel_subject(), protocol, Look(3, (0.0,) * 3, (1.0,) * 3))
        with pytest.raises(UserError, match="raw pixels cannot be measured on videos"):
            VideoEvaluation(path=str(davis(tmp_path, one=moving(1)))).run(place)
