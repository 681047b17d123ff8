"""What a run was made with: versions, machine, state of the source. Only named facts, never the whole environment."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "omegaconf",
    "fvcore",
    "iopath",
    "classy-vision",
    "faiss-gpu",
    "submitit",
    "safetensors",
    "scikit-learn",
)


COPIED_FROM = "COPIED_FROM"
"""File beside a copy of the package: ``git_state`` of the original."""


def describe_environment() -> dict[str, str]:
    """Versions of Python and of the packages used, the machine, the git commit of the source (if it is a checkout)."""
    from vissl_like import __version__

    facts = {"vissl_like": __version__, "python": sys.version.split()[0], "system": platform.platform()}
    facts["processor"] = _processor()
    facts["cores"] = str(available_cores())
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["git"] = git_state()
    return facts


def available_cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def git_state() -> str:
    """Commit of the source, and whether it was changed since; of a copy, that of what it was copied from."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        copied = root / COPIED_FROM
        return copied.read_text(encoding="utf-8") if copied.is_file() else "not a checkout"
    try:
        ask = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        return ask("rev-parse", "--short=12", "HEAD") + (" with local changes" if ask("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
