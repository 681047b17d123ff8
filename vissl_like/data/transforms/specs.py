"""Reads the ``views`` of a multi-crop into ``ViewSpec``, and collects everything that is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vissl_like.data.transforms.parameters import BlurSpec, JitterSpec, ViewSpec
from vissl_like.data.transforms.pixels import RESAMPLING
from vissl_like.utils.errors import nearest

_REQUIRED = ("count", "size", "scale")
_SHARED = ("flip", "vertical_flip", "ratio", "interpolation", "jitter", "grayscale", "blur", "solarize")
_JITTER = ("brightness", "contrast", "saturation", "hue", "p")
_BLUR = ("p", "sigma")


class SpecReader:
    """Turns plain dictionaries into view specs for images of ``channels`` channels.

    Attributes:
        problems: what is wrong, one text each; the specs are of no use unless this is empty.
    """

    def __init__(self, channels: int):
        self.channels = channels
        self.problems: list[str] = []

    def read(self, views: Any, shared: Mapping[str, Any]) -> tuple[ViewSpec, ...]:
        """Specs of all kinds of views; each takes the shared colour options that it does not set itself."""
        if not isinstance(views, Sequence) or isinstance(views, str) or not views:
            self._wrong("views", views, "must be a list of at least one {count, size, scale: [lo, hi]}")
            return ()
        specs = []
        for number, view in enumerate(views):
            place = f"views[{number}]"
            if not isinstance(view, Mapping):
                self._wrong(place, view, "must be {count, size, scale: [lo, hi]}")
                continue
            missing = [key for key in _REQUIRED if key not in view]
            self._only_known(place, view, (*_REQUIRED, *_SHARED))
            if missing:
                self.problems.append(f"{place} has no {' and no '.join(missing)}")
                continue
            specs.append(self._view(place, view, shared))
        return tuple(specs)

    def _view(self, place: str, view: Mapping[str, Any], shared: Mapping[str, Any]) -> ViewSpec:
        def named(key: str) -> tuple[str, Any]:
            return (f"{place}.{key}", view[key]) if key in view else (key, shared[key])

        spec = ViewSpec(
            count=self._count(f"{place}.count", view["count"]),
            size=self._count(f"{place}.size", view["size"]),
            scale=self._range(f"{place}.scale", view["scale"], at_most=1),
            ratio=self._range(*named("ratio")),
            interpolation=self._interpolation(*named("interpolation")),
            flip=self._probability(*named("flip")),
            vertical_flip=self._probability(*named("vertical_flip")),
            jitter=self._jitter(*named("jitter")),
            grayscale=self._probability(*named("grayscale")),
            blur=self._blur(*named("blur")),
            solarize=self._probability(*named("solarize")),
        )
        if self.channels == 1 and spec.grayscale > 0:
            self._needs_colour(named("grayscale")[0])
        return spec

    def _jitter(self, place: str, given: Any) -> JitterSpec | None:
        if given is None:
            return None
        if not isinstance(given, Mapping):
            self._wrong(place, given, "must be {brightness, contrast, saturation, hue, p} or null")
            return None
        self._only_known(place, given, _JITTER)
        values = {key: self._strength(f"{place}.{key}", given[key], key) for key in _JITTER if key in given}
        spec = JitterSpec(**values)
        if self.channels == 1 and spec.p > 0:
            for key in ("saturation", "hue"):
                if getattr(spec, key) > 0:
                    self._needs_colour(f"{place}.{key}")
        return spec if any((spec.brightness, spec.contrast, spec.saturation, spec.hue)) and spec.p > 0 else None

    def _blur(self, place: str, given: Any) -> BlurSpec | None:
        if given is None:
            return None
        if not isinstance(given, Mapping) or "sigma" not in given:
            self._wrong(place, given, "must be {p, sigma: [lo, hi]} or null")
            return None
        self._only_known(place, given, _BLUR)
        sigma = self._range(f"{place}.sigma", given["sigma"], zero=True)
        p = self._probability(f"{place}.p", given.get("p", 1.0))
        return BlurSpec(p, sigma) if p > 0 else None

    def _strength(self, place: str, given: Any, key: str) -> float:
        if key == "p":
            return self._probability(place, given)
        most = 0.5 if key == "hue" else math.inf
        if not _is_number(given) or not 0 <= given <= most:
            self._wrong(place, given, "must be a number in 0..0.5 (turns)" if key == "hue" else "must be a number >= 0")
            return 0.0
        return float(given)

    def _probability(self, place: str, given: Any) -> float:
        if not _is_number(given) or not 0 <= given <= 1:
            self._wrong(place, given, "must be a probability in 0..1")
            return 0.0
        return float(given)

    def _count(self, place: str, given: Any) -> int:
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            self._wrong(place, given, "must be a whole number >= 1")
            return 1
        return given

    def _range(self, place: str, given: Any, zero: bool = False, at_most: float = math.inf) -> tuple[float, float]:
        """``[lo, hi]`` with 0 < lo <= hi <= ``at_most``; ``zero`` allows lo = 0 as well."""
        pair = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2
        if pair and all(map(_is_number, given)):
            low, high = float(given[0]), float(given[1])
            if (low >= 0 if zero else low > 0) and low <= high <= at_most and high < math.inf:
                return low, high
        limit = "" if at_most == math.inf else f" <= {at_most:g}"
        self._wrong(place, given, f"must be [lo, hi] with 0 {'<=' if zero else '<'} lo <= hi{limit}")
        return 1.0, 1.0

    def _interpolation(self, place: str, given: Any) -> str:
        if given not in RESAMPLING:
            self._wrong(place, given, f"can be {' or '.join(RESAMPLING)}")
            return "bilinear"
        return str(given)

    def _only_known(self, place: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
        known = list(known)
        for key in given:
            if key not in known:
                self.problems.append(f"{place} has no {key!r}.{nearest(str(key), known)} It takes: {', '.join(known)}.")

    def _needs_colour(self, place: str) -> None:
        text = f"{place} changes colours, and the images have one channel: set it to 0, or the dataset's channels to 3"
        if text not in self.problems:
            self.problems.append(text)

    def _wrong(self, place: str, given: Any, rule: str) -> None:
        text = f"{place} is {given!r}; it {rule}"
        if text not in self.problems:  # shared options are read once for every kind of view
            self.problems.append(text)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
