"""Any dataset of images that torchvision offers."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import numpy as np
from PIL import Image

from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.decode import to_channels
from vissl_like.data.sources import StoredImages
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError, nearest
from vissl_like.utils.kinds import Count

_LABEL_ATTRIBUTES = ("targets", "labels", "_labels")


@DATASETS.register("torchvision")
class TorchvisionImages(StoredImages):
    """Any dataset of single images in ``torchvision.datasets``, by name.

    Options:
        dataset: name of the class, such as ``CIFAR10``, ``STL10`` or ``Flowers102``.
        path: folder that torchvision keeps it in (its ``root``); null for datasets that need none.
        download: let torchvision fetch it if it is not there.
        arguments: further arguments of the class, such as ``{train: false}`` or ``{split: test}``.
        labels: ``auto`` for its class numbers, if it holds one per image; ``none`` to leave them.
        channels: 3 for colour, 1 for grey; every image is converted.
        mean: one value per channel in 0..1; null for ImageNet's (colour) or 0.5 (grey).
        std: one value per channel in 0..1; null for ImageNet's (colour) or 0.25 (grey).
        limit: use this many images, evenly spread over all and always the same ones; null for all.
        cache: ``ram`` keeps decoded images in memory, up to 2 GiB in every process; ``none`` decodes each time.

    Raises:
        UserError: torchvision has no such dataset, does not take these arguments, or cannot find or fetch the data.
    """

    def __init__(
        self,
        *,
        dataset: str,
        path: str | None = None,
        download: bool = False,
        arguments: dict[str, Any] | None = None,
        labels: Literal["auto", "none"] = "auto",
        channels: Literal[1, 3] = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        limit: Count | None = None,
        cache: Literal["none", "ram"] = "none",
    ):
        self.name = dataset
        self.dataset = _build(dataset, path, download, dict(arguments or {}))
        numbers = _labels(self.dataset) if labels == "auto" else None
        classes = getattr(self.dataset, "classes", None) if numbers is not None else None
        super().__init__(
            len(self.dataset),
            numbers,
            [str(name) for name in classes] if isinstance(classes, (list, tuple)) else None,
            channels=channels,
            mean=mean,
            std=std,
            limit=limit,
            cache=cache,
        )

    def load(self, position: int) -> Image.Image:
        try:
            image = self.dataset[position][0]
            if not isinstance(image, Image.Image):
                raise ValueError(f"torchvision's {self.name} gave a {type(image).__name__}, not an image")
            return to_channels(image, self.channels)
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(self.name_of(position), str(error)) from error

    def name_of(self, position: int) -> str:
        return f"torchvision:{self.name}[{position}]"

    def header_of(self, position: int) -> tuple[str, tuple[int, int]]:
        return "torchvision", self.load(position).size


def _build(name: str, path: str | None, download: bool, arguments: dict[str, Any]) -> Any:
    """The torchvision object, given what its constructor takes."""
    from torchvision import datasets

    known = [key for key in datasets.__all__ if isinstance(getattr(datasets, key), type)]
    if name not in known:
        raise UserError(
            f"torchvision has no dataset {name!r}.{nearest(name, known)} It has: {', '.join(sorted(known))}."
        )
    made = getattr(datasets, name)
    takes = inspect.signature(made).parameters
    for key, value, given in (("root", path, path is not None), ("download", download, download)):
        if given:
            if key not in takes:
                option = "path" if key == "root" else key
                raise UserError(f"torchvision's {name} takes no {key!r}; leave the option {option!r} out")
            arguments[key] = value
    unknown = [key for key in arguments if key not in takes]
    if unknown:
        raise UserError(
            f"torchvision's {name} takes no argument {unknown[0]!r}.{nearest(unknown[0], takes)} "
            f"It takes: {', '.join(takes)}."
        )
    try:
        return made(**arguments)
    except (RuntimeError, OSError, TypeError, ValueError, ImportError) as error:
        hint = "" if download or "download" not in takes else " Set 'download' to true to let torchvision fetch it."
        raise UserError(f"torchvision cannot give {name}: {error}{hint}") from error


def _labels(dataset: Any) -> np.ndarray | None:
    """One whole number per image, where the object keeps them in a list or array."""
    for attribute in _LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            numbers = np.asarray(values)
            if numbers.ndim == 1 and numbers.dtype.kind in "iu":
                return numbers.astype(np.int64)
    samples = getattr(dataset, "_samples", None)
    if samples is not None and len(samples) == len(dataset) and all(isinstance(sample[1], int) for sample in samples):
        return np.array([sample[1] for sample in samples], dtype=np.int64)
    return None
