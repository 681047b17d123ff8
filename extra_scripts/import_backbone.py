#!/usr/bin/env python3
"""Brings weights from elsewhere (torchvision, timm, an author's file) into the form that every evaluation takes.

    python extra_scripts/import_backbone.py --weights resnet50.pth --trunk '{name: resnet, depth: 50}' \\
        --ignore 'fc.*' --out models/resnet50
    vissl-like config=benchmark/suite/quick config.EVALUATE.weights=models/resnet50

Writes ``backbone.safetensors`` and, beside it, ``backbone.json``: which network it is, how many channels it takes and
how its images are normalised (ImageNet's mean and std unless given), so that nothing needs to be said again later.
Names are those of the trunk; a leading ``module.``, ``backbone.`` and the like is removed. ``--by-position`` takes the
tensors in their order instead, for files that name the same tensors otherwise; then every shape must agree.

Nothing is downloaded and no code of the file is run.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from vissl_like.config.load import load_settings
from vissl_like.data.datasets.base import DEFAULT_MEAN, DEFAULT_STD
from vissl_like.models.weights import load_weights, read_state_dict
from vissl_like.trainer.components import build_trunk, plain_values
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import sha256, write_atomic


def fill_by_position(trunk: nn.Module, path: Path, ignore: list[str]) -> str:
    """Fills the trunk's tensors with those of the file in their order; a line about what was done.

    Raises:
        UserError: there are fewer than the trunk has, a shape differs, or some are left over and not to be ignored.
    """
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: a safetensors file does not keep the order of its tensors; load it by name")
    found = list(read_state_dict(path).items())
    own = list(trunk.state_dict().items())
    if len(found) < len(own):
        raise UserError(f"{path} holds {len(found)} tensors, the trunk has {len(own)}")
    for (name, value), (other, given) in zip(own, found, strict=False):
        if value.shape != given.shape:
            raise UserError(
                f"by position, {other!r} {tuple(given.shape)} of {path} would become {name!r} {tuple(value.shape)}: "
                "these are not the same network, or not in the same order"
            )
    left = [name for name, _ in found[len(own) :]]
    stray = [name for name in left if not any(fnmatch.fnmatch(name, pattern) for pattern in ignore)]
    if stray:
        raise UserError(
            f"{len(stray)} tensors are left over: {', '.join(stray[:4])}. Name them with --ignore if so be it"
        )
    trunk.load_state_dict({name: given for (name, _), (_, given) in zip(own, found, strict=False)})
    return f"loaded {len(own)} tensors of {path} by position" + (f", ignored {', '.join(left)}" if left else "")


def import_backbone(
    weights: Path,
    section: dict[str, Any],
    out: Path,
    *,
    channels: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    ignore: list[str] | None = None,
    by_position: bool = False,
) -> str:
    """Writes both files; a line about what was loaded.

    Args:
        weights: a torch or safetensors file.
        section: the trunk as in settings, ``{"name": ..., options}``.
        out: folder for the two files.
        channels, mean, std: of the images that the network was trained with; None for ImageNet's.
        ignore: patterns of tensors of the file that are no part of the trunk.
        by_position: see above.

    Raises:
        UserError: the weights do not fit, or a value is wrong.
    """
    if channels not in DEFAULT_MEAN:
        raise UserError(f"--channels is {channels}; it must be 3 (colour) or 1 (grey)")
    values = {"mean": mean or DEFAULT_MEAN[channels], "std": std or DEFAULT_STD[channels]}
    for name, value in values.items():
        if len(value) != channels:
            raise UserError(f"--{name} has {len(value)} values for {channels} channel(s)")
        if not all(0 <= entry <= 1 for entry in value) or (name == "std" and not all(value)):
            raise UserError(f"--{name} is {list(value)}; values lie in 0..1, as pixels do, and std is above 0")
    trunk = build_trunk(section, channels)
    if by_position:
        said = fill_by_position(trunk, weights, ignore or [])
    else:
        said = str(load_weights(trunk, weights, allow_unused=ignore or []))
    record = {
        "arch": section["name"],
        "arch_options": {key: value for key, value in section.items() if key != "name"},
        "channels": channels,
        "feature_dim": trunk.feature_dim,
        **{name: list(value) for name, value in values.items()},
        "imported_from": f"{weights.name} sha256 {sha256(weights)}",
    }
    tensors = {name: value.contiguous().clone() for name, value in trunk.state_dict().items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "backbone.json", json.dumps(record, indent=2) + "\n")
        write_atomic(out / "backbone.safetensors", save(tensors))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    return said


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit status 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="torch or safetensors file")
    parser.add_argument("--trunk", required=True, help="the network as in settings: '{name: resnet, depth: 50}'")
    parser.add_argument("--out", type=Path, required=True, help="folder for backbone.safetensors and backbone.json")
    parser.add_argument("--channels", type=int, default=3, help="3 (colour) or 1 (grey)")
    parser.add_argument("--mean", type=float, nargs="+", help="one value per channel in 0..1; ImageNet's if left out")
    parser.add_argument("--std", type=float, nargs="+", help="one value per channel in 0..1; ImageNet's if left out")
    parser.add_argument(
        "--ignore", nargs="*", default=[], help="patterns of tensors that are no part of the trunk (fc.*)"
    )
    parser.add_argument("--by-position", action="store_true", help="take the tensors in their order, not by name")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    try:
        settings = load_settings(["config.ENGINE=evaluate", f"config.MODEL.TRUNK={given.trunk}"]).resolved
        section = plain_values(settings.MODEL.TRUNK)
        said = import_backbone(
            given.weights,
            section,
            given.out,
            channels=given.channels,
            mean=given.mean,
            std=given.std,
            ignore=given.ignore,
            by_position=given.by_position,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{said}\nwritten: {given.out / 'backbone.safetensors'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
