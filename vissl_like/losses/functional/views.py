"""Options that name views."""

from __future__ import annotations

from vissl_like.utils.errors import UserError


def check_views(option: str, given: list[int] | None, num_views: int) -> tuple[int, ...]:
    """Different positions out of the views there are; the first two (the big crops) if none are given.

    Raises:
        UserError: there is no such view, or one is named twice.
    """
    views = (0, 1) if given is None else tuple(given)
    if not views or len(set(views)) != len(views) or max(views) >= num_views:
        raise UserError(
            f"LOSS.{option} is {list(views)}; it must name different views out of 0..{num_views - 1} (the views of "
            "DATA.TRANSFORM, counted spec by spec)"
        )
    return views
