"""The trained network of a run or of a file, and how images are brought to it; shared by engines."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vissl_like.data.datasets.base import DEFAULT_MEAN, DEFAULT_STD
from vissl_like.data.loader import count_workers
from vissl_like.distributed import comm
from vissl_like.evaluation.names import slug_of
from vissl_like.evaluation.subjects import Look, Protocol, Source
from vissl_like.models.weights import load_weights, read_backbone, state_digest
from vissl_like.trainer.build import choose_device
from vissl_like.trainer.checkpoint import CheckpointStore
from vissl_like.trainer.components import build_dataset, build_trunk, plain_values
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import sha256


@dataclass
class Weights:
    """The trained weights: file, digest, and the record beside them."""

    path: Path
    digest: str
    record: dict[str, Any]


def _newest(run: Path, alone: bool) -> Path | None:
    """The backbone of the newest checkpoint of a run, None if there is none; see ``find_weights``."""
    store = CheckpointStore(run / "checkpoints", 1, None, None, say=lambda text, level: print(text))
    newest = store.newest() if alone or comm.is_main() else None
    newest = newest if alone else comm.broadcast_object(newest)
    return None if newest is None else newest.backbone


def look_of(settings: Any, weights: Weights) -> Look:
    """Channels and normalisation that the network was trained with, from the record beside its weights.

    What it does not say is taken from DATA.PROBE_TRAIN, then DATA.TRAIN; ImageNet's values serve where nothing is said.
    """
    sections = [plain_values(found) for found in (settings.DATA.PROBE_TRAIN, settings.DATA.TRAIN) if found is not None]
    said = [weights.record, *sections]

    def first(name: str, default: Any) -> Any:
        return next((entry[name] for entry in said if entry.get(name) is not None), default)

    channels = int(first("channels", 3))

    def per_channel(name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        found = first(name, default)
        return tuple(float(value) for value in (found if len(found) == channels else default))

    return Look(channels, per_channel("mean", DEFAULT_MEAN[channels]), per_channel("std", DEFAULT_STD[channels]))


def protocol_of(loaded: Any) -> Protocol:
    """How images are brought to networks, from EVALUATE, DATA and TRAIN."""
    settings = loaded.resolved
    return Protocol(
        image_size=settings.EVALUATE.image_size,
        resize=settings.EVALUATE.resize,
        interpolation=settings.EVALUATE.interpolation,
        batch_size=settings.EVALUATE.batch_size,
        max_images=settings.EVALUATE.max_images,
        device=choose_device(settings),
        workers=count_workers(settings.DATA.WORKERS, comm.local_world_size()),
        plugins=tuple(loaded.plugins),
        start_method=settings.DATA.START_METHOD,
        channels_last=settings.TRAIN.channels_last in (True, "auto"),
        seed=settings.SEED,
    )


def open_source(section: Any, look: Look | None = None) -> Source:
    """A dataset from its section, with the channels and the normalisation of ``look``, if given."""
    values = plain_values(section)
    if look is not None:
        values |= {"channels": look.channels, "mean": list(look.mean), "std": list(look.std)}
    return Source(build_dataset(values), values)


def find_weights(settings: Any, output_dir: Path, *, alone: bool = False) -> Weights:
    """The weights that EVALUATE.weights names, or those of the newest checkpoint.

    Args:
        settings: resolved settings.
        output_dir: of the run.
        alone: only this process asks; else every process must call it, and all get what the main one finds.

    Raises:
        UserError: there are none.
    """
    given = settings.EVALUATE.weights
    if given is None:
        path = _newest(output_dir, alone)
        if path is None:
            raise UserError(
                f"OUTPUT_DIR {output_dir} holds no checkpoint to evaluate. Train first (config.ENGINE=train), or name "
                "a file: config.EVALUATE.weights=backbone.safetensors"
            )
        return Weights(path, sha256(path), read_backbone(path)[1])
    path = Path(given).expanduser()
    # A checkpoint is a folder; what is evaluated is the plain backbone inside of it. Of a run it is the newest.
    if path.is_dir() or path.name == "state.pt":
        folder = path if path.is_dir() else path.parent
        inside = folder / "backbone.safetensors"
        path = inside if inside.is_file() else _newest(folder, alone) or inside
    if not path.is_file():
        raise UserError(
            f"EVALUATE.weights: {given} is neither a file of weights, nor a checkpoint's folder with a "
            "backbone.safetensors, nor a run's folder with checkpoints"
        )
    return Weights(path, sha256(path), read_backbone(path)[1])


def build_trained(settings: Any, weights: Weights, look: Look) -> tuple[nn.Module, list[str]]:
    """The trunk with the weights in it, and what the user should know about them.

    The architecture is that of the record beside the weights; where there is none, that of MODEL.TRUNK.

    Raises:
        UserError: the weights do not fit the network.
    """
    record, notices = weights.record, []
    given = {} if settings.DATA.PROBE_TRAIN is None else plain_values(settings.DATA.PROBE_TRAIN)
    for name, value in (("channels", [look.channels]), ("mean", look.mean), ("std", look.std)):
        asked = given.get(name)
        if asked is not None and not (np.size(asked) == len(value) and np.allclose(asked, value, atol=1e-6)):
            notices.append(
                f"images are brought to the network as in its training: {name} {_short(value)}, not the "
                f"{_short(np.atleast_1d(asked))} of DATA.PROBE_TRAIN"
            )
    if str(record.get("source", "")).startswith("teacher"):
        notices.append("the weights are those of the run's teacher (CHECKPOINT.backbone)")
    section = trunk_section(settings, weights)
    if settings.MODEL.TRUNK is not None and plain_values(settings.MODEL.TRUNK) != section:
        notices.append(f"the network is the one that was trained, {section}, not MODEL.TRUNK")
    trunk = build_trunk(section, look.channels)
    allowed = settings.MODEL.WEIGHTS
    try:
        report = load_weights(
            trunk,
            weights.path,
            prefix=allowed.prefix if settings.EVALUATE.weights else None,
            allow_missing=list(allowed.allow_missing) if settings.EVALUATE.weights else [],
            allow_unused=list(allowed.allow_unused) if settings.EVALUATE.weights else [],
        )
    except UserError as error:
        if "arch" in record:
            raise
        raise UserError(f"{str(error).rstrip('.')}. {_how_to_import(weights.path, section)}") from error
    return trunk, [str(report), *notices]


def trained_identity(settings: Any, weights: Weights, trunk: nn.Module) -> str:
    """Text that differs whenever the trained network would: its architecture, and what has been loaded into it."""
    return f"{trunk_section(settings, weights)} {state_digest(trunk)}"


def trunk_section(settings: Any, weights: Weights) -> dict[str, Any]:
    """``name`` and options of the network: of the record beside the weights, else of MODEL.TRUNK.

    Raises:
        UserError: neither says what the network is.
    """
    record = weights.record
    if "arch" in record:
        return {"name": record["arch"], **record.get("arch_options", {})}
    if settings.MODEL.TRUNK is not None:
        return plain_values(settings.MODEL.TRUNK)
    raise UserError(
        f"what network are the weights {weights.path} of? Nothing lies beside them that says so, and MODEL.TRUNK is "
        f"not given. {_how_to_import(weights.path, {'name': 'resnet', 'depth': 50})}"
    )


def _how_to_import(path: Path, section: dict[str, Any]) -> str:
    """The command that brings weights from elsewhere into our form."""
    network = ", ".join(f"{key}: {json.dumps(value)}".replace('"', "") for key, value in section.items())
    out = f"models/{slug_of(path.stem) or 'imported'}"
    return (
        "Weights from elsewhere are imported once, with the network they are of and patterns of the tensors that are "
        f"no part of it:\n    python extra_scripts/import_backbone.py --weights {shlex.quote(str(path))} "
        f"--trunk '{{{network}}}' --ignore 'fc.*' 'head.*' --out {out}\nThen config.EVALUATE.weights={out}"
    )


def _short(values: Any) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
