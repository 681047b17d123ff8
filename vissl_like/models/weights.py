"""Loading weights: strict, with a report of what was loaded and what was not."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vissl_like.models.not_weights import what_instead
from vissl_like.utils.errors import UserError, nearest
from vissl_like.utils.paths import local_file

_WRAPPERS = ("state_dict", "model", "teacher", "student", "model_state_dict")
_PREFIXES = ("module.", "backbone.", "trunk.", "encoder.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors: loaded, absent from the file, and in the file but not used."""

    path: str
    loaded: list[str]
    missing: list[str]
    unused: list[str]
    prefix: str

    def __str__(self) -> str:
        text = f"loaded {len(self.loaded)}/{len(self.loaded) + len(self.missing)} tensors of {self.path}"
        if self.prefix:
            text += f", prefix {self.prefix!r} removed"
        if self.unused:
            text += f", ignored {_summary(self.unused)}"
        return text + (f", left as initialised: {_summary(self.missing)}" if self.missing else "")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file or of a torch file (local or http), read without running code from it.

    A dictionary around the weights (``state_dict``, ``model``, ``teacher``, ...) is opened.

    Raises:
        UserError: the file does not exist, is damaged, or holds no tensors.
    """
    path = local_file(path)
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"the weights file {path} does not exist.{nearest(path.name, siblings)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"the weights file {path} {_diagnosis(path, error)}") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
            break
    tensors = (
        {key: value for key, value in found.items() if isinstance(value, Tensor)} if isinstance(found, dict) else {}
    )
    if not tensors:
        raise UserError(f"the weights file {path} holds no tensors by name: expected a state dict")
    return tensors


def _diagnosis(path: Path, error: Exception) -> str:
    """What a file that cannot be loaded is, and what to do about it; the file's code is not run."""
    instead = what_instead(path)
    if instead is not None:
        return instead
    new = path.with_name(f"{path.stem}_weights.pth").name
    if "TorchScript" in str(error):
        return (
            "is a TorchScript program, and no code of a file is run here. Save its tensors alone, where you trust it:\n"
            f"    import torch; network = torch.jit.load({path.name!r})\n"
            f"    torch.save(network.state_dict(), {new!r})"
        )
    kinds = _kinds_of_objects(path, error)
    if any(kind.startswith("torch.nn.") for kind in kinds):
        return (
            f"holds a whole network ({', '.join(kinds[:3])}), which is code, and no code of a file is run here. Save "
            "its tensors alone, in the place where it came from:\n"
            f"    import torch; network = torch.load({path.name!r}, weights_only=False)\n"
            f"    torch.save(network.state_dict(), {new!r})\n"
            "(if the network lies in a dictionary, take it out of it first)"
        )
    if kinds:
        return (
            f"holds objects besides tensors ({', '.join(kinds[:3])}), which only code can bring back, and no code of a "
            "file is run here. Save the tensors alone, in the place where it came from, under the key that they have:\n"
            f"    import torch; found = torch.load({path.name!r}, weights_only=False); print(found.keys())\n"
            f"    torch.save(found['state_dict'], {new!r})"
        )
    told = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    first = told[1] if told else str(error).strip().partition("\n")[0][:160]
    return f"cannot be read ({type(error).__name__}: {first}). It is damaged, not whole, or no torch file; get it again"


def _kinds_of_objects(path: Path, error: Exception) -> list[str]:
    """Names of what a torch file holds besides tensors and plain values, found without running it."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not of today's form; the error names the first
        found = re.findall(r"GLOBAL (\S+) was not an allowed global", str(error))
    # The class that somebody wrote says more than its layers do.
    return sorted(set(found), key=lambda name: (name.startswith("torch.nn."), name))


def read_backbone(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a ``backbone.safetensors`` and the record beside it (empty if there is none).

    Raises:
        UserError: one of them cannot be read.
    """
    record = Path(path).with_suffix(".json")
    try:
        meta = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{record}, the record beside the weights, cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise UserError(f"{record}, the record beside the weights, is no JSON object but a {type(meta).__name__}")
    return read_state_dict(path), meta


def state_digest(module: nn.Module) -> str:
    """Digest of all tensors of a network: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    prefix: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
) -> LoadReport:
    """Fills ``module`` from a file; anything that does not fit is an error unless it was allowed by name.

    Args:
        module: receives the weights.
        path: see ``read_state_dict``.
        prefix: leading part of the file's names to remove; None finds it (``module.``, ``backbone.``, ...).
        allow_missing: patterns (``fc.*``) of tensors that may be absent from the file.
        allow_unused: patterns of tensors in the file that may go unused.

    Raises:
        UserError: nothing fits, a shape differs, or names are missing or left over.
    """
    own, found = module.state_dict(), read_state_dict(path)
    prefix = _detect_prefix(own, found) if prefix is None else prefix
    renamed = {key[len(prefix) :] if key.startswith(prefix) else f"<{key}>": value for key, value in found.items()}
    loaded = [key for key in own if key in renamed]
    missing = [key for key in own if key not in renamed]
    unused = [key.strip("<>") if key.startswith("<") else prefix + key for key in renamed if key not in own]
    wrong = [
        f"{key}: file {tuple(renamed[key].shape)}, model {tuple(own[key].shape)}"
        for key in loaded
        if renamed[key].shape != own[key].shape
    ]
    problems = []
    if not loaded:
        problems.append(f"no name fits: the file has {_summary(list(found))}, the model {_summary(list(own))}")
    if wrong:
        problems.append(f"{len(wrong)} shapes differ: {'; '.join(wrong[:3])}")
    stray_missing = [key for key in missing if not _allowed(key, allow_missing)]
    stray_unused = [key for key in unused if not _allowed(key, allow_unused)]
    if loaded and stray_missing:
        problems.append(
            f"{len(stray_missing)} are missing from the file: {_summary(stray_missing)} (WEIGHTS.allow_missing)"
        )
    if loaded and stray_unused:
        problems.append(
            f"{len(stray_unused)} of the file are not used: {_summary(stray_unused)} (WEIGHTS.allow_unused)"
        )
    if problems:
        raise UserError(f"the weights in {path} do not fit the model: " + ". ".join(problems))
    module.load_state_dict({key: renamed[key] for key in loaded}, strict=False)
    return LoadReport(str(path), loaded, missing, unused, prefix)


def fitting_names(module: nn.Module, path: str | Path) -> int:
    """How many of a file's tensors have a name of ``module``, under the best of the known prefixes."""
    own, found = module.state_dict(), read_state_dict(path)
    prefix = _detect_prefix(own, found)
    return sum(key.startswith(prefix) and key[len(prefix) :] in own for key in found)


def _detect_prefix(own: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """The chain of known prefixes under which most names fit."""
    best, best_fit = "", sum(key in own for key in found)
    candidates = {""}
    for _ in range(3):
        candidates |= {lead + more for lead in candidates for more in _PREFIXES}
    for candidate in sorted(candidates):
        fit = sum(key.startswith(candidate) and key[len(candidate) :] in own for key in found)
        if fit > best_fit:
            best, best_fit = candidate, fit
    return best


def _allowed(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _summary(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
