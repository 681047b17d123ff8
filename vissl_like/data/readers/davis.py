"""DAVIS-2017 and sets laid out like it: videos with the masks of several objects.

    <root>/JPEGImages/480p/<video>/00000.jpg      frames
    <root>/Annotations/480p/<video>/00000.png     indexed masks: 0 background, 1, 2, ... objects
    <root>/ImageSets/2017/val.txt                 names of the videos of a split, one a line

This is how the archive ``DAVIS-2017-trainval-480p.zip`` unpacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vissl_like.data.readers.local import Folders, folder_at, images_in, read_lines
from vissl_like.data.readers.masks import VOID, read_mask
from vissl_like.utils.errors import UserError

WHAT = "DAVIS"
LAYOUT = (
    "Expected: <root>/JPEGImages/480p/<video>/*.jpg, <root>/Annotations/480p/<video>/*.png and "
    "<root>/ImageSets/2017/<split>.txt."
)


@dataclass(frozen=True)
class Video:
    """A video.

    Attributes:
        name: of the video's folder.
        frames: F files in the order of time, F >= 2.
        masks: F files, the mask of each frame.
        num_objects: the largest object number in the first mask; objects are 1 .. num_objects.
    """

    name: str
    frames: list[str]
    masks: list[str]
    num_objects: int


def read_davis(root: str | Path, *, split: str = "val", year: str = "2017", resolution: str = "480p") -> list[Video]:
    """Reads the videos of a split.

    Args:
        root: folder that holds ``JPEGImages``, or one above it called ``DAVIS``.
        split: name of the list in ``ImageSets/<year>``.
        year: folder of lists, ``2017`` or ``2016``.
        resolution: folder of frames and masks.

    Raises:
        UserError: a folder, a frame or a mask is missing; a video has fewer than two frames, or no object in the mask
            of its first frame.
    """
    place = folder_at(root, WHAT, LAYOUT)
    if not (place / "JPEGImages").is_dir() and (place / "DAVIS" / "JPEGImages").is_dir():
        place = place / "DAVIS"
    folder_at(place / "JPEGImages" / resolution, WHAT, LAYOUT)
    folder_at(place / "Annotations" / resolution, WHAT, LAYOUT)
    names = [line for _, line in read_lines(place / "ImageSets" / year / f"{split}.txt", WHAT, LAYOUT)]
    strange = next((name for name in names if "/" in name or name in (".", "..")), None)
    if strange is not None:
        raise UserError(
            f"{WHAT}: {split}.txt has the line {strange!r}, and names of videos are expected, one a line (the lists of "
            f"2016 name files instead). {LAYOUT}"
        )
    return [_video(place, name, resolution) for name in names]


def _video(place: Path, name: str, resolution: str) -> Video:
    frames_in = folder_at(place / "JPEGImages" / resolution / name, WHAT, LAYOUT)
    masks_in = folder_at(place / "Annotations" / resolution / name, WHAT, LAYOUT)
    frames = images_in(frames_in)
    if len(frames) < 2:
        raise UserError(f"{WHAT}: {str(frames_in)!r} holds {len(frames)} frames; a video has at least two. {LAYOUT}")
    wanted = [f"{Path(frame).stem}.png" for frame in frames]
    missing = sorted(set(wanted) - Folders(masks_in).names_in(""))
    if missing:
        raise UserError(
            f"{WHAT}: {len(missing)} of {len(frames)} frames of {name!r} have no mask in {str(masks_in)!r}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. {LAYOUT}"
        )
    first = read_mask(masks_in / wanted[0])
    objects = int(first[first != VOID].max(initial=0))
    if not objects:
        raise UserError(f"{WHAT}: the first mask of {name!r}, {str(masks_in / wanted[0])!r}, shows no object. {LAYOUT}")
    return Video(name, [str(frames_in / frame) for frame in frames], [str(masks_in / mask) for mask in wanted], objects)
