#!/usr/bin/env python3
"""Builds a retrieval set of emoji, in the form of revisited Oxford: find other vendors' drawings of an emoji.

    python extra_scripts/prepare_retrieval.py --out data/retrieval

Queries are Apple's drawings without skin tones that all other vendors have too; the database is all drawings of
Google, Twitter and Facebook. Easy: the same code point. Hard: the same in another skin tone. Junk: the same in another
gender or direction, and exact copies of an easy or hard image under another code point. What is written:

    jpg/<vendor>_<code point>.png    64 x 64 RGB on white: 11,217 of the database, 1,852 queries
    gnd.json                         imlist, qimlist, gnd: [{easy, hard, junk, bbx}]; bbx is the whole image
    SOURCE.txt

LICENCES: see SOURCE.txt; images of Apple and Facebook are for measurements on your own machine alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from image_packages import EMOJI_NOTICE, Recipe, arguments_of, run
from picture_sources import Drawing, drawings, on_colour, open_png

QUERY_VENDOR = "apple"
SIZE = 64


def choose(found: list[Drawing]) -> tuple[list[Drawing], list[Drawing], list[dict[str, list[int]]]]:
    """Database, queries, and for each query its groups of positions in the database."""
    database = [one for one in found if one.vendor != QUERY_VENDOR]
    vendors = len({one.vendor for one in database})
    of_concept: dict[str, list[int]] = {}
    for position, one in enumerate(database):
        of_concept.setdefault(one.concept, []).append(position)
    queries, truth = [], []
    for query in found:
        if query.vendor != QUERY_VENDOR or query.toned or query.category == "Component":
            continue
        groups: dict[str, list[int]] = {"easy": [], "hard": [], "junk": []}
        for position in of_concept.get(query.concept, []):
            other = database[position]
            same = "hard" if other.untoned == query.untoned else "junk"
            groups["easy" if other.code == query.code else same].append(position)
        if len(groups["easy"]) == vendors:
            queries.append(query)
            truth.append(groups)
    return database, queries, truth


def add_copies(truth: list[dict[str, list[int]]], digests: list[bytes]) -> None:
    """Makes exact copies of right images junk, where they are not listed already."""
    copies: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        copies.setdefault(digest, []).append(position)
    for groups in truth:
        listed = {position for group in groups.values() for position in group}
        right = groups["easy"] + groups["hard"]
        groups["junk"] += sorted({copy for position in right for copy in copies[digests[position]]} - listed)


def make(folder: Path, options: argparse.Namespace) -> str:
    """Writes images and ground truth."""
    database, queries, truth = choose(drawings(options.packages, toned=True))
    (folder / "jpg").mkdir()
    digests = [_write(folder, one) for one in [*database, *queries]]
    add_copies(truth, digests)
    content = {
        "imlist": [_name(one) for one in database],
        "qimlist": [_name(one) for one in queries],
        "gnd": [{"bbx": [0, 0, SIZE, SIZE], **groups} for groups in truth],
    }
    (folder / "gnd.json").write_text(json.dumps(content), encoding="utf-8")
    with_group = {group: sum(bool(groups[group]) for groups in truth) for group in ("hard", "junk")}
    return (
        f"{len(queries):,d} queries, {len(database):,d} images in the database; {with_group['hard']} queries with hard "
        f"and {with_group['junk']} with junk images"
    )


def _name(one: Drawing) -> str:
    return f"{one.vendor}_{one.code}"


def _write(folder: Path, one: Drawing) -> bytes:
    """Writes an image; returns a digest of its pixels."""
    image = on_colour(open_png(one.png))
    image.save(folder / "jpg" / f"{_name(one)}.png", compress_level=1)
    return hashlib.sha256(image.tobytes()).digest()


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; 0 when the folder is complete."""
    parser = arguments_of(__doc__, "data/retrieval")
    return run(Recipe("emoji retrieval", EMOJI_NOTICE, make), parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
