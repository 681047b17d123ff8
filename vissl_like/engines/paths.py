"""Whether the weights and the data that a run names are there and can be read; for ``--check``, without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from vissl_like.config.load import LoadedSettings
from vissl_like.engines.suite_jobs import ONLY, jobs_of
from vissl_like.models.not_weights import what_instead
from vissl_like.registry import DATASETS, EVALUATIONS
from vissl_like.utils.errors import SettingsError, UserError, nearest

PATH_OPTIONS = ("path", "images", "labels_path", "whiten_on")
"""Options of evaluations and datasets that name a file or a folder."""
PROBES = ("PROBE_TRAIN", "PROBE_TEST")
PATTERN = re.compile(r"[*?{[]")
_NAMED = 4


def check_paths(loaded: LoadedSettings) -> str:
    """Looks at what a training, an evaluation, or every entry of a suite is to read.

    Folders and archives are gone through as the run would do it, and what was found is kept for the run.

    Args:
        loaded: checked settings of any engine; of others than named above only DATA.TRAIN is looked at.

    Returns:
        what was found, to be said; empty where nothing was looked for.

    Raises:
        SettingsError: settings of a suite's entries are wrong, or something is not there; all is told together.
    """
    engine = loaded.resolved.ENGINE
    if engine is None or engine.name not in ("evaluate", "suite"):
        problems, said = _of_training(loaded.resolved)
    elif engine.name == "evaluate":
        problems = missing_of(loaded)
        said = "The weights and the data are there."
    else:
        from omegaconf import OmegaConf

        options: Any = OmegaConf.to_container(engine, resolve=True)
        jobs = jobs_of(loaded, options["entries"], options.get("checkpoints"))
        needed: dict[str, list[str]] = {}
        for job in jobs:
            for text in missing_of(job.loaded):
                needed.setdefault(text, []).append(job.entry if job.checkpoint == ONLY else job.name)
        problems = [f"{text} Needed by {_some(names)}." for text, names in needed.items()]
        entries, checkpoints = ({getattr(job, what) for job in jobs} for what in ("entry", "checkpoint"))
        said = f"{len(entries)} evaluation(s) of {len(checkpoints)} checkpoint(s): the weights and the data are there."
    if problems:
        raise SettingsError(problems)
    return said


def missing_of(loaded: LoadedSettings) -> list[str]:
    """Messages for weights and data of one evaluation that are not there."""
    settings = loaded.resolved
    found = [_missing_weights(settings)]
    found += [_missing(f"EVALUATION.{name}", settings.EVALUATION.get(name)) for name in PATH_OPTIONS]
    if EVALUATIONS.describe(settings.EVALUATION.name).facts.get("labelled"):
        if settings.DATA.PROBE_TRAIN is None:
            found.append(
                f"DATA.PROBE_TRAIN is not given, and the evaluation {settings.EVALUATION.name!r} needs labelled images."
            )
        for role in PROBES:
            found += _problems_of_data(f"DATA.{role}", settings.DATA[role])
    return [text for text in found if text]


def _of_training(settings: Any) -> tuple[list[str], str]:
    """Problems of the images to train on and of the weights to start from; and what is said if there are none."""
    weights = settings.MODEL.WEIGHTS.path
    found = [_missing("MODEL.WEIGHTS.path", weights)]
    if weights is not None and not found[0]:
        found.append(_not_weights("MODEL.WEIGHTS.path", weights))
    section = settings.DATA.TRAIN
    found += _problems_of_data("DATA.TRAIN", section)
    looked = any(section is not None and section.get(name) is not None for name in PATH_OPTIONS)
    return [text for text in found if text], "The data can be read." if looked else ""


def _problems_of_data(key: str, section: Any) -> list[str]:
    """Messages for a dataset that is not there, or that cannot be read."""
    if section is None or section.get("download"):
        return []
    archives = section.name == "tar"
    missing = [_missing(f"{key}.{name}", section.get(name), archives=archives) for name in PATH_OPTIONS]
    if any(missing):
        return missing
    from omegaconf import OmegaConf

    options: Any = OmegaConf.to_container(section, resolve=True)
    try:
        DATASETS.get(options.pop("name"))(**options)
    except UserError as error:
        return [f"{key}: {error}"]
    return []


def _missing_weights(settings: Any) -> str:
    given = settings.EVALUATE.weights
    if given is None:
        output_dir = Path(settings.OUTPUT_DIR).expanduser()
        if _has_backbone(output_dir):
            return ""
        return f"EVALUATE.weights is not given, and OUTPUT_DIR {str(output_dir)!r} holds no checkpoint to evaluate."
    absent = _missing("EVALUATE.weights", given)
    if absent:
        return absent
    path = Path(given).expanduser()
    if path.is_file() and path.name != "state.pt":
        return _not_weights("EVALUATE.weights", given)
    folder = path if path.is_dir() else path.parent
    if (path.is_dir() or path.name == "state.pt") and not _has_backbone(folder):
        return (
            f"EVALUATE.weights = {given!r} is neither a checkpoint's folder with a backbone.safetensors, nor a run's "
            "folder with checkpoints."
        )
    return ""


def _not_weights(key: str, value: str) -> str:
    """A message if a file that is there cannot be weights."""
    path = Path(value).expanduser()
    instead = what_instead(path) if path.is_file() else None
    return f"{key} = {value!r} {instead}." if instead else ""


def _has_backbone(folder: Path) -> bool:
    """Whether a folder is a checkpoint's, or a run's with a checkpoint."""
    name = "backbone.safetensors"
    return (folder / name).is_file() or any(folder.glob(f"checkpoints/*/{name}"))


def _missing(key: str, value: Any, *, archives: bool = False) -> str:
    """A message if the option names a path at which nothing is; tar archives may be named by a pattern.

    Args:
        key: the option.
        value: its value.
        archives: whether it names archives whatever its ending is.
    """
    if not isinstance(value, str) or "://" in value:
        return ""
    place = Path(os.path.abspath(os.path.expanduser(value)))
    if place.exists():
        return ""
    if PATTERN.search(value) and (archives or value.lower().endswith(".tar")):
        return _missing_archives(key, value)
    missing = next(part for part in reversed([place, *place.parents]) if not part.exists())
    beside = os.listdir(missing.parent) if os.access(missing.parent, os.R_OK | os.X_OK) else []
    return f"{key} = {value!r}: there is no {missing.name!r} in {str(missing.parent)!r}.{nearest(missing.name, beside)}"


def _missing_archives(key: str, pattern: str) -> str:
    """A message if a pattern names archives that are not there, or none."""
    from vissl_like.data.datasets.tar import archives_of  # takes a while to import, though not torch

    try:
        archives_of(pattern)
    except UserError as error:
        return f"{key} = {pattern!r}: {error}"
    return ""


def _some(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return "; ".join(unique[:_NAMED]) + (f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else "")
