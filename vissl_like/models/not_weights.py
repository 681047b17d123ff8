"""What a file is that was taken for weights and is none; found without torch."""

from __future__ import annotations

from pathlib import Path

_LOOKED_AT = 2**20
"""Files of at least so many bytes are no text that was taken for weights."""


def what_instead(path: Path) -> str | None:
    """Said of an empty file, of text and of a ``.safetensors`` file that is not whole; None for what may be weights.

    Args:
        path: of a file that is there.

    Returns:
        the end of a sentence that begins with the file's name.
    """
    size = path.stat().st_size
    begin = path.open("rb").read(200) if size < _LOOKED_AT else b"\0"
    if not begin:
        return "is empty: it was not fetched, or not written to its end. Get it again"
    if b"\0" not in begin and (text := _as_text(begin)):
        return (
            f"is text, not weights; it begins {text!r}. This is what is left of a download that failed, or of a file "
            "that git keeps elsewhere (git lfs pull brings it). Get the file itself"
        )
    return _problem_of_safetensors(path) if path.suffix == ".safetensors" else None


def _problem_of_safetensors(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as found:
            return None if found.keys() else "holds no tensors"
    except (SafetensorError, OSError) as error:
        return f"cannot be read ({error}). It is damaged or not whole; get it again"


def _as_text(begin: bytes) -> str:
    """The first characters if these bytes are text, else nothing."""
    try:
        # The last character may be cut.
        text = begin.decode("utf-8", "strict" if len(begin) < 200 else "ignore").strip()
    except UnicodeDecodeError:
        return ""
    return text[:60] if all(char.isprintable() or char.isspace() for char in text) else ""
