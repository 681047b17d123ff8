#!/usr/bin/env python3
"""Writes a ResNet in the form that detectron2 reads, and prints the settings that go with it.

    python extra_scripts/export_detectron2.py --weights runs/elpv/checkpoints/step_00001234 --out models/r50_d2.pkl

``--weights`` is a ``backbone.safetensors`` with its record beside it, or the folder of both. The file holds plain numpy
arrays under detectron2's names: ``layerN`` is ``res(N+1)``, ``bnK`` ``convK.norm``, ``downsample`` ``shortcut``, and
what comes before the stages lies in ``stem``. detectron2 fits them to any of its models with such a backbone, C4 or
FPN. The printed lines matter as much as the weights: its own ResNets have the stride in another convolution and take
images as BGR.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vissl_like.models.trunks.resnet import LAYOUTS
from vissl_like.models.weights import load_weights, read_backbone
from vissl_like.trainer.components import build_trunk
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import write_atomic

DEPTHS = (18, 34, 50, 101, 152)
RULES = (
    (r"conv1\.(.+)", r"stem.conv1.\1"),
    (r"bn1\.(.+)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(.+)", r"res{}.\2.conv\3.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"res{}.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(.+)", r"res{}.\2.shortcut.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"res{}.\2.shortcut.norm.\3"),
)
"""Our names and detectron2's; {} is the number of the stage and one more."""


def renamed(name: str) -> str | None:
    """detectron2's name of a tensor, None for the norms' counters of batches, which it does not have.

    Raises:
        UserError: no ResNet has such a tensor.
    """
    if name.endswith(".num_batches_tracked"):
        return None
    for ours, theirs in RULES:
        found = re.fullmatch(ours, name)
        if found:
            return found.expand(theirs.format(int(found[1]) + 1) if "{}" in theirs else theirs)
    raise UserError(f"the tensor {name!r} is none of a ResNet's")


def check(record: dict[str, Any]) -> None:
    """Looks whether detectron2 has such a network.

    Raises:
        UserError: it has not, or the record does not say.
    """
    options = record.get("arch_options", {})
    depth = options.get("depth", 50)
    if record.get("arch") != "resnet":
        raise UserError(
            f"these are weights of {record.get('arch', 'a network that no record beside them names')}; "
            "detectron2 takes a resnet trunk"
        )
    if record.get("channels", 3) != 3:
        raise UserError(f"this network takes images of {record['channels']} channel; detectron2's take 3 (colour)")
    if options.get("stem", "large") != "large":
        raise UserError("this network has the stem for small images; detectron2's have the large one (stem: large)")
    blocks = options.get("blocks")
    if depth not in DEPTHS or (blocks is not None and tuple(blocks) != LAYOUTS[depth][1]):
        raise UserError(
            f"detectron2 has ResNets of depth {', '.join(map(str, DEPTHS))} with the usual blocks; this one has depth "
            f"{depth}" + (f" and blocks {list(blocks)}" if blocks is not None else "")
        )
    if depth < 50 and options.get("width", 1.0) != 1:
        raise UserError(f"detectron2 has a ResNet-{depth} of width 1 only; this one has width {options['width']:g}")


def converted(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors of a ResNet under detectron2's names, as numpy arrays."""
    names = {name: renamed(name) for name in tensors}
    return {
        theirs: tensors[ours].detach().cpu().contiguous().numpy()
        for ours, theirs in names.items()
        if theirs is not None
    }


def settings_of(record: dict[str, Any], tensors: dict[str, np.ndarray], out: Path) -> str:
    """The lines of a detectron2 YAML that these weights need."""
    options = record.get("arch_options", {})
    groups, stem = options.get("groups", 1), tensors["stem.conv1.weight"]
    first = tensors["res2.0.conv1.weight"]
    scaled = {name: ", ".join(f"{255 * value:.3f}" for value in record[name]) for name in ("mean", "std")}
    last = max(
        int(found[1]) for found in (re.fullmatch(r"res2\.0\.conv(\d)\.weight", name) for name in tensors) if found
    )
    return f"""MODEL:
  WEIGHTS: {out}
  PIXEL_MEAN: [{scaled["mean"]}]
  PIXEL_STD: [{scaled["std"]}]
  RESNETS:
    DEPTH: {options.get("depth", 50)}
    STRIDE_IN_1X1: False
    NUM_GROUPS: {groups}
    WIDTH_PER_GROUP: {first.shape[0] // groups}
    STEM_OUT_CHANNELS: {stem.shape[0]}
    RES2_OUT_CHANNELS: {tensors[f"res2.0.conv{last}.weight"].shape[0]}
INPUT:
  FORMAT: RGB
# To train all layers, as is usual with networks pre-trained without labels: BACKBONE.FREEZE_AT 0, RESNETS.NORM SyncBN
"""


def export(weights: Path, out: Path) -> str:
    """Writes the file; the settings that go with it.

    Raises:
        UserError: there are no weights, detectron2 has no such network, or the file cannot be written.
    """
    file = weights / "backbone.safetensors" if weights.is_dir() else weights
    _, record = read_backbone(file)
    check(record)
    missing = [name for name in ("mean", "std") if name not in record]
    if missing:
        raise UserError(f"the record beside {file} does not say how images are normalised ({', '.join(missing)})")
    trunk = build_trunk({"name": "resnet", **record.get("arch_options", {})}, 3)
    load_weights(trunk, file)
    tensors = converted(trunk.state_dict())
    content = {"model": tensors, "__author__": "vissl_like", "matching_heuristics": True}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, pickle.dumps(content, protocol=4))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    return settings_of(record, tensors, out)


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit status 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--weights", type=Path, required=True, help="backbone.safetensors, or the folder that it lies in"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, with the ending .pkl")
    given = parser.parse_args(arguments)
    try:
        if given.out.suffix != ".pkl":
            raise UserError(f"--out is {given.out}; detectron2 knows the form by the ending .pkl")
        said = export(given.weights, given.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"# written: {given.out}. The lines for detectron2's YAML:\n{said}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
