"""Objects followed through videos by dense features alone (DAVIS-2017; the protocol of Caron et al. 2021, section 4.2).

Masks of the first frame are carried along by the similarity of patches, see ``functional/label_propagation``. Nothing
is learnt. Frames are resized as in the official script (bilinear, without antialiasing, back to whole grey levels) but
normalised as the network was trained: the script divides red by 0.228 instead of 0.229.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.decode import decode_file
from vissl_like.data.normalise import Normalise
from vissl_like.data.readers.davis import Video, read_davis
from vissl_like.data.readers.masks import read_mask, write_mask
from vissl_like.data.transforms.pixels import to_array
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Evaluation, EvaluationResult
from vissl_like.evaluation.bench import Bench
from vissl_like.evaluation.features import frozen, untouched_randomness
from vissl_like.evaluation.functional.label_propagation import first_masks, frame_size, labels_of, propagate_video
from vissl_like.evaluation.functional.masks import VideoScores, mean_over_objects, score_video, split_objects
from vissl_like.registry import EVALUATIONS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Index, Positive

COPIED = "first mask copied"
MULTIPLE = 64
"""The longer side of a frame is rounded down to a multiple of this, as in the official script."""

Dense = Callable[[Tensor], Tensor]


@EVALUATIONS.register("video")
class VideoEvaluation(Evaluation):
    """Video objects followed by the similarity of dense features: J, F and their mean over the objects of DAVIS-2017.

    A vision transformer gives its patch tokens after the last LayerNorm; a convolutional network the map of its deepest
    stage whose stride is not above ``stride``. The floor repeats the first frame's masks in every frame.

    Options:
        path: folder of the videos, with JPEGImages, Annotations and ImageSets (DAVIS-2017, 480p)
        split: name of the list of videos in ImageSets/2017
        last_frames: frames before the present one whose masks it takes, besides the first frame's
        radius: how far a patch is looked for, in patches to each side; null for everywhere
        topk: most similar patches that count, of all these frames together
        temperature: of the weights exp(cosine / temperature), above 0
        short_side: of the frames as the network sees them, in pixels; the other one is a multiple of 64
        stride: pixels from one place of a convolutional network's map to the next, at most
        save_masks: write the masks found as indexed PNGs, video/<network>/<video>/<frame>.png in OUTPUT_DIR
    """

    def __init__(
        self,
        *,
        path: str,
        split: str = "val",
        last_frames: Index = 7,
        radius: Index | None = 12,
        topk: Count = 5,
        temperature: Positive = 0.1,
        short_side: Count = 480,
        stride: Count = 8,
        save_masks: bool = False,
    ):
        self.path, self.split = path, split
        self.short_side, self.stride, self.save_masks = short_side, stride, save_masks
        self.propagation: dict[str, Any] = {
            "last_frames": last_frames,
            "radius": radius,
            "topk": topk,
            "temperature": temperature,
        }
        self._copied: list[VideoScores] = []

    def run(self, bench: Bench) -> EvaluationResult | None:
        """Follows the objects of all videos, on the main process alone; see ``Evaluation``.

        Raises:
            UserError: a frame or mask cannot be read, does not fit the others of its video, or the network gives no
                dense features of it.
        """
        if not comm.is_main():
            return None
        videos = self._videos()
        trunk = _network_of(bench)
        patch, dense = dense_features(trunk, self.stride)
        folder = self._folder(bench)
        found: list[VideoScores] = []
        copied: list[VideoScores] = []
        lost = 0
        device = bench.protocol.device
        with frozen(trunk), untouched_randomness(device), torch.inference_mode():
            for video in videos:
                try:
                    truth = read_truth(video).to(device)
                    predicted, gone = self._follow(bench, video, truth, patch, dense)
                    found.append(score_video(predicted, truth))
                    if not self._copied:
                        copied.append(score_video(truth[:1].expand_as(truth), truth))
                except UserError as error:
                    raise UserError(f"the video {video.name!r}: {error}") from error
                lost += gone
                if folder is not None:
                    _write(folder / video.name, video, predicted.cpu().numpy())
        self._copied = self._copied or copied  # the same for every network
        return self._result(bench, videos, found, patch, lost)

    def identity(self, bench: Bench) -> str:
        """The frames and masks of the split's videos."""
        files = [file for video in self._videos() for file in (*video.frames, *video.masks)]
        return bench.images(files).identity

    def typical_images(self) -> list[str]:
        """See ``Evaluation``: all frames."""
        return [frame for video in self._videos() for frame in video.frames]

    def _videos(self) -> list[Video]:
        videos = read_davis(self.path, split=self.split)
        short = next((video for video in videos if len(video.frames) < 3), None)
        if short is not None:
            raise UserError(
                f"the video {short.name!r} has {len(short.frames)} frames, and the first and the last do not count: "
                f"take it off the list {self.split!r} of {self.path!r}"
            )
        return videos

    def _folder(self, bench: Bench) -> Path | None:
        if not self.save_masks:
            return None
        if bench.folder is None:
            raise UserError("EVALUATION.save_masks: there is no folder to write masks to; set OUTPUT_DIR")
        return bench.folder / "video" / bench.subject.slug

    def _follow(self, bench: Bench, video: Video, truth: Tensor, patch: int, dense: Dense) -> tuple[Tensor, int]:
        """Labels of all frames ``[T, H, W]`` uint8, and how many objects the grid of patches is too coarse for."""
        pictures = _frames(video, bench.look.channels)
        first = next(pictures)
        size = self._size(first.shape[-2], first.shape[-1], patch)
        look, protocol = bench.look, bench.protocol
        normalise = Normalise(look.mean, look.std, protocol.device, protocol.channels_last)
        start = first_masks(truth[0], size[0] // patch, size[1] // patch)

        def features() -> Iterator[Tensor]:
            for picture in chain([first], pictures):
                found = dense(normalise(resized(picture.to(protocol.device), *size)))[0]
                if found.shape[1:] != start.shape[1:]:
                    raise UserError(
                        f"the network's map of {size[0]} x {size[1]} pixels is {found.shape[1]} x {found.shape[2]}, "
                        f"not a place every {patch} pixels (it has convolutions without padding, or is made for "
                        "one size of image); it cannot be measured in this way"
                    )
                yield found

        height, width = truth.shape[1:]
        masks = propagate_video(features(), start, **self.propagation)
        labels = torch.stack([labels_of(mask, patch, height, width).to(torch.uint8) for mask in masks])
        there = start.flatten(1).any(dim=1)
        return labels, sum(not there[label] for label in split_objects(truth[0])[1])

    def _size(self, height: int, width: int, patch: int) -> tuple[int, int]:
        """Height and width at which a frame is seen: whole patches."""
        tall, wide = (
            side // patch * patch for side in frame_size(height, width, short=self.short_side, multiple=MULTIPLE)
        )
        if not tall or not wide:
            raise UserError(
                f"with EVALUATION.short_side={self.short_side} nothing is left of frames of {width} x {height} pixels: "
                f"the longer side becomes a multiple of {MULTIPLE}, then both of {patch}. Make it larger."
            )
        return tall, wide

    def _result(
        self, bench: Bench, videos: list[Video], found: list[VideoScores], patch: int, lost: int
    ) -> EvaluationResult:
        notices = []
        if lost:
            notices.append(f"{lost} object(s) are too small for the grid of patches in the first frame, and are lost")
        if bench.protocol.max_images is not None:
            notices.append("EVALUATE.max_images does not hold for videos: all frames were used")
        result, floor = _summed("video", found), _summed(COPIED, self._copied)
        result.test_images = floor.test_images = sum(video.region.numel() // len(video.objects) for video in found)
        by_video = {video.name: _summed(video.name, [scores]).metrics for video, scores in zip(videos, found)}
        result.details = {
            "videos": len(videos),
            "objects": sum(len(video.objects) for video in found),
            "split": self.split,
            "patch": patch,
            "short_side": self.short_side,
            **self.propagation,
            "by_video": by_video,
            COPIED: floor.metrics,
            "notices": notices,
        }
        result.chance = floor
        return result


def dense_features(trunk: nn.Module, stride: int) -> tuple[int, Dense]:
    """Pixels from one feature to the next, and how they are taken: ``[n, C, H, W] -> [n, D, H / step, W / step]``.

    Args:
        trunk: a transformer with ``intermediate_layers``, ``grid`` and ``patch_size``, or a network with
            ``stage_map(images, stages)`` and the ``strides`` of its stages.
        stride: of the latter the deepest stage that has at most so many is taken, else the deepest of the finest ones.

    Raises:
        UserError: it is neither.
    """
    net: Any = trunk
    if callable(getattr(trunk, "intermediate_layers", None)):

        def patches(images: Tensor) -> Tensor:
            tokens = net.intermediate_layers(images, 1)[0][:, 1:]
            return tokens.transpose(1, 2).unflatten(2, net.grid(*images.shape[2:]))

        return int(net.patch_size), patches
    strides: tuple[int, ...] = tuple(getattr(trunk, "strides", ()))
    if not strides:
        raise UserError(
            f"the network {type(trunk).__name__} gives no dense features, which following objects through a video "
            "needs: take a vision transformer (vit), a resnet, or a model of timm that gives maps"
        )
    limit = max(stride, min(strides))
    stage = max(number for number, found in enumerate(strides, 1) if found <= limit)
    return strides[stage - 1], lambda images: net.stage_map(images, stage)


def read_truth(video: Video) -> Tensor:
    """The annotations of a video, ``[T, H, W]`` uint8.

    Raises:
        UserError: one cannot be read, or they are not of one size.
    """
    masks = [read_mask(file) for file in video.masks]
    odd = next((file for file, mask in zip(video.masks, masks) if mask.shape != masks[0].shape), None)
    if odd is not None:
        raise UserError(f"the mask {odd!r} has another size than the first, and all of a video must have the same")
    return torch.from_numpy(np.stack(masks))


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing without antialiasing, values rounded: ``[1, C, H, W] -> [1, C, height, width]`` uint8."""
    if picture.shape[-2:] == (height, width):
        return picture
    large = functional.interpolate(picture.float(), size=(height, width), mode="bilinear", align_corners=False)
    return large.round().to(torch.uint8)


def _network_of(bench: Bench) -> nn.Module:
    if bench.subject.network is None:
        raise UserError(f"{bench.subject.name} cannot be measured on videos: there is no network")
    return bench.subject.network()


def _frames(video: Video, channels: int) -> Iterator[Tensor]:
    """The frames ``[1, C, H, W]`` uint8, one at a time, all of one size."""
    size = None
    for file in video.frames:
        try:
            image = decode_file(file, channels)
        except UnreadableImage as error:
            raise UserError(f"a frame cannot be read: {error}. Every frame is needed.") from error
        size = size or image.size
        if image.size != size:
            raise UserError(
                f"the frame {file!r} has {image.width} x {image.height} pixels, the first {size[0]} x {size[1]}; all "
                "frames of a video must have the same size"
            )
        yield torch.from_numpy(to_array(image)).unsqueeze(0)


def _summed(name: str, videos: list[VideoScores]) -> EvaluationResult:
    """Percentages over the objects of all videos alike."""
    metrics = {key: 100.0 * value for key, value in mean_over_objects(videos).items()}
    objects = torch.cat([(video.region + video.boundary).mean(dim=1) / 2 for video in videos])
    items = 100.0 * objects.double().cpu().numpy()
    return EvaluationResult(name, metrics, main="J&F", items=items, item_ids=np.arange(len(items)))


def _write(folder: Path, video: Video, labels: np.ndarray) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, mask in zip(video.masks, labels, strict=True):
            write_mask(folder / Path(file).name, mask)
    except OSError as error:
        raise UserError(f"masks cannot be written to {str(folder)!r}: {error.strerror or error}") from error
