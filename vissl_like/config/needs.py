"""What a loss declares to need (``needs_views = 2``, ``needs_logits = True``) against what other components give."""

from __future__ import annotations

from typing import Any

from vissl_like.component import REQUIRED, Component
from vissl_like.config.paths import value_at
from vissl_like.registry import LOSSES, REGISTRIES

GIVERS = {"MODEL.HEAD": "heads", "MODEL.TRUNK": "trunks", "DATA.TRANSFORM": "transforms", "DATA.SAMPLER": "samplers"}
"""Sections whose components may declare ``gives_...``, with their registries."""

ALWAYS_GIVEN = {"index": True}
"""What every batch carries whatever the components are."""


def unmet_needs(components: dict[str, Component], values: dict[str, Any], *, count_views: bool = True) -> list[str]:
    """Messages for needs of the loss that nothing meets.

    Args:
        components: components in use by dotted key.
        values: all settings.
        count_views: False where the views are wrong in themselves.
    """
    loss = components["LOSS"]
    found = _teacher(loss, values)
    for fact, needed in loss.facts.items():
        if not fact.startswith("needs_") or not needed:
            continue
        what = fact.removeprefix("needs_")
        if what == "teacher":
            continue
        if what == "views":
            found += _views(loss, needed, components.get("DATA.TRANSFORM"), values) if count_views else []
        elif ALWAYS_GIVEN.get(what) is not True and all(key in components for key in GIVERS):
            given = [components[key].facts.get(f"gives_{what}") for key in GIVERS]
            if not any(_enough(entry, needed) for entry in given):
                found.append(_unmet(loss, what, needed, components))
    return found


def _teacher(loss: Component, values: dict[str, Any]) -> list[str]:
    """A loss without the teacher it needs, or a teacher that the loss makes no use of."""
    has_teacher = value_at(values, "MODEL.TEACHER") is not None
    known = ", ".join(REGISTRIES["teachers"].names())
    if loss.facts.get("needs_teacher") and not has_teacher:
        return [f"the loss {loss.name!r} needs a teacher: set MODEL.TEACHER to one of {known}."]
    if has_teacher and not (loss.facts.get("needs_teacher") or loss.facts.get("takes_teacher")):
        takers = [c.name for c in LOSSES.components() if c.facts.get("takes_teacher") or c.facts.get("needs_teacher")]
        return [
            f"the loss {loss.name!r} makes no use of a teacher: set MODEL.TEACHER to null, or use one of these losses: "
            f"{', '.join(takers)}."
        ]
    return []


def views_per_image(transform: Component, options: dict[str, Any]) -> int | None:
    """Views per image: the transform's ``gives_views``, else the sum of ``count`` over its option ``views``.

    None where neither can be read.
    """
    if isinstance(transform.facts.get("gives_views"), int):
        return int(transform.facts["gives_views"])
    option = transform.options.get("views")
    if option is None:
        return 1
    views = options.get("views", option.default)
    if views == REQUIRED or not isinstance(views, (list, tuple)):
        return None
    counts = [view.get("count", 1) for view in views if isinstance(view, dict)]
    whole = [count for count in counts if isinstance(count, int)]
    return sum(whole) if len(whole) == len(views) else None


def _views(loss: Component, needed: Any, transform: Component | None, values: dict[str, Any]) -> list[str]:
    if transform is None:
        return []
    count = views_per_image(transform, values["DATA"]["TRANSFORM"])
    if count is None or count >= needed:
        return []
    return [
        f"the loss {loss.name!r} needs at least {needed} views of each image, but the transform {transform.name!r} "
        f"gives {count}. Add views to DATA.TRANSFORM.views."
    ]


def _enough(given: Any, needed: Any) -> bool:
    """True meets a need of True, a number at least as large a need of a number."""
    if isinstance(needed, bool) or not isinstance(needed, (int, float)):
        return given == needed or (needed is True and bool(given))
    return isinstance(given, (int, float)) and given >= needed


def _unmet(loss: Component, what: str, needed: Any, components: dict[str, Component]) -> str:
    amount = "" if needed is True else f" = {needed}"
    offers = []
    for key, registry in GIVERS.items():
        names = [c.name for c in REGISTRIES[registry].components() if _enough(c.facts.get(f"gives_{what}"), needed)]
        if names:
            offers.append(f"{key}: {', '.join(names)}")
    advice = f"These do: {'; '.join(offers)}." if offers else "No known component does."
    chosen = ", ".join(f"{key} {components[key].name!r}" for key in GIVERS)
    return f"the loss {loss.name!r} needs {what.replace('_', ' ')}{amount}, which none of {chosen} gives. {advice}"
