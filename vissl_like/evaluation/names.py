"""Names of what is measured, and how they appear in files; nothing here needs torch."""

from __future__ import annotations

import re

TRAINED, RANDOM, PIXELS, MAJORITY = "trained", "random init", "raw pixels", "majority class"


def slug_of(name: str) -> str:
    """Lower-case letters, digits and underscores of a name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
