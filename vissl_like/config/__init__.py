"""Settings: schema, loading, checking, and the numbers derived from them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vissl_like.config.load import LoadedSettings, load_settings
    from vissl_like.config.resolve import Plan, make_plan

__all__ = ["LoadedSettings", "Plan", "load_settings", "make_plan"]


def __getattr__(name: str) -> Any:
    if name in ("LoadedSettings", "load_settings"):
        from vissl_like.config import load

        return getattr(load, name)
    if name in ("Plan", "make_plan"):
        from vissl_like.config import resolve

        return getattr(resolve, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
