#!/usr/bin/env python3
"""Writes the lists of iNaturalist, Places and parts of ImageNet as the CSV that a dataset takes.

    python extra_scripts/prepare_lists.py inaturalist --list train2018.json --root /data/inat --out data/inat_train.csv
    python extra_scripts/prepare_lists.py places --list places365_val.txt --root /data/val_large \\
        --categories categories_places365.txt --out data/places_val.csv
    python extra_scripts/prepare_lists.py imagenet --list 1percent.txt --root /data/imagenet/train --out data/in_1.csv
    vissl-like config=benchmark/knn config.DATA.PROBE_TRAIN=data/inat_train.csv config.EVALUATE.weights=runs/mine

inaturalist   the JSON file of a split (images, annotations, categories); classes are numbered by their ids
places        lines 'path label', a leading slash of the path is left out; --categories checks the labels
imagenet      one name a line, 'n01440764_10026.JPEG'; classes are all class folders of --root, sorted

The images stay where they are and are named by their full paths; each is looked for. Labels are numbers, the same in
all lists of one set, so that a list to learn from and one to be scored on fit each other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from vissl_like.data.readers.lists import (
    LabelledFiles,
    read_imagenet_part,
    read_inaturalist,
    read_places,
    write_list,
)
from vissl_like.utils.errors import UserError

KINDS = ("inaturalist", "places", "imagenet")


def read(options: argparse.Namespace) -> LabelledFiles:
    """The list in the form that was named.

    Raises:
        UserError: it cannot be read, or images are missing.
    """
    if options.kind == "places":
        return read_places(options.list, options.root, options.categories)
    if options.categories is not None:
        raise UserError(f"--categories is a table of Places; the lists of {options.kind} need none. Leave it out.")
    return (read_inaturalist if options.kind == "inaturalist" else read_imagenet_part)(options.list, options.root)


def write(listed: LabelledFiles, out: Path, replace: bool) -> str:
    """Writes the CSV; a line about it.

    Raises:
        UserError: there is something already, or it cannot be written.
    """
    if out.suffix != ".csv":
        raise UserError(f"--out is {str(out)!r}; its name must end in .csv, by which a dataset knows what it is")
    if out.exists() and not replace:
        raise UserError(f"--out: {str(out)!r} exists already. Choose another name, or give --replace.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_list(listed, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    used = len(np.unique(listed.labels))
    rest = len(listed.classes) - used
    return f"{out}: {len(listed.files):,d} images of {used:,d} classes" + (f" ({rest:,d} more have none)" * (rest > 0))


def parser() -> argparse.ArgumentParser:
    """The words of the command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("kind", choices=KINDS, help="the form of the list")
    made.add_argument("--list", type=Path, required=True, help="the list, as it is published")
    made.add_argument("--root", type=Path, required=True, help="folder that its paths count from")
    made.add_argument("--categories", type=Path, help="of places: table 'name number'")
    made.add_argument("--out", type=Path, required=True, help="the .csv to write")
    made.add_argument("--replace", action="store_true", help="write over an older --out")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the list is written, 2 for a mistake of the user's."""
    options = parser().parse_args(arguments)
    try:
        print(write(read(options), options.out, options.replace))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Use it as config.DATA.PROBE_TRAIN={options.out} (or PROBE_TEST, or TRAIN)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
