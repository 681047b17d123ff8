"""What dev/fuzz.py feeds: every reader of files and settings, and how its inputs are made."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from vissl_like.config import load_settings
from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.datasets.file_list import _Listed, _read
from vissl_like.data.scan import FolderScan, scan_folder
from vissl_like.data.tar_scan import TarIndex, scan_archives
from vissl_like.registry import DATASETS
from vissl_like.trainer.checkpoint import Checkpoint, CheckpointStore, load_states
from vissl_like.utils.errors import UserError

CONFIGS = sorted(Path(__file__).parents[1].glob("configs/**/*.yaml"))
SPECIAL = [
    *(
        b"\0",
        b"\xff\xfe",
        b"\n",
        b"\t",
        b'"',
        b"[" * 40,
        b"{",
        b"../",
        b"-1",
        b"9" * 25,
        b"1e999",
        b"nan",
        b"${a}",
        b": ",
    ),
    *(b"&a [*a]", b"!!python/object:os.system", b"\xf0\x9f\x98\x80", b"7777777777 ", b"\x80" + b"\xff" * 7),
]
INDEX_ERRORS = (OSError, ValueError, KeyError, TypeError)
"""What a stored index that is damaged may raise: it is built again then."""


class Target(NamedTuple):
    """A reader: its inputs, what reads one, the errors that it may give, and its share of all inputs."""

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    allowed: tuple[type[Exception], ...]
    share: float


def damaged(good: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of some good files, with up to six places changed, cut, repeated or filled in; or bytes at random."""
    edit = st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut", "repeat"]),
        st.integers(0, 2**20),
        st.binary(min_size=1, max_size=8) | st.sampled_from(SPECIAL),
    )
    return st.builds(_edited, st.sampled_from(good), st.lists(edit, max_size=6)) | st.binary(max_size=300)


def _edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, text in edits:
        at = place % (len(data) + 1)
        if kind == "set":
            data = data[:at] + text + data[at + len(text) :]
        elif kind == "insert":
            data = data[:at] + text + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(text) :]
        elif kind == "cut":
            data = data[:at]
        else:
            data = data[:at] + data[max(0, at - 64) :]
    return data[: 2**20]


def targets(folder: Path) -> dict[str, Target]:
    """Every reader by name.

    Args:
        folder: an empty folder to write inputs to.
    """
    os.environ["VISSL_LIKE_CACHE"] = str(folder / "cache")
    return {
        "settings": _settings_target(folder),
        "overrides": _overrides_target(),
        "lists": _lists_target(folder),
        "arrays": _arrays_target(folder),
        "index": _index_target(folder),
        "manifest": _manifest_target(folder),
        "tar": _tar_target(folder),
    }


def _png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _written(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_KEYS = """
DATA DATA.TRAIN DATA.TRAIN.path DATA.TRAIN.limit DATA.TRANSFORM DATA.TRANSFORM.views DATA.SAMPLER DATA.WORKERS
MODEL MODEL.TRUNK MODEL.TRUNK.depth MODEL.HEAD.hidden_dim MODEL.WEIGHTS LOSS LOSS.temperature LOSS.epsilon
OPTIMIZER OPTIMIZER.base_lr SCHEDULES.lr SCHEDULES.lr.warmup SEED TRAIN TRAIN.length TRAIN.global_batch
CHECKPOINT.every HOOKS HOOKS.console EVALUATE BASES ENGINE ENGINE.name OUTPUT_DIR DISTRIBUTED.processes REPORT
EVALUATIONS PLUGINS.x LOSS.nested.key
"""
KEYS = _KEYS.split()


def _settings_target(folder: Path) -> Target:
    good = [path.read_bytes() for path in CONFIGS]
    lines = sorted(
        {line for text in good for line in text.decode().splitlines() if not line.startswith(("#", "BASES"))}
    )
    value = st.sampled_from(SPECIAL).map(lambda text: text.decode("latin-1")) | VALUES.map(lambda one: json.dumps(one))
    line = st.sampled_from(lines) | st.builds("{}: {}".format, st.sampled_from(KEYS), value) | st.text(max_size=30)
    mixed = st.lists(line, max_size=8).map(lambda chosen: "\n".join(chosen).encode("utf-8", "surrogatepass"))
    plain = [text for text in good if b"PLUGINS" not in text and b"BASES" not in text]

    def read(data: bytes) -> object:
        # A plugin named by chance is code that a user names on purpose: not what is tried here.
        file = _written(folder / "settings.yaml", data.replace(b"PLUGINS", b"PLUGIN_"))
        return load_settings(["config=quick/synthetic"] * (len(data) % 2) + [f"config={file}"])

    return Target(damaged(plain) | mixed, read, (UserError,), 0.06)


def _overrides_target() -> Target:
    value = (
        st.text(max_size=20)
        | VALUES.map(lambda one: json.dumps(one))
        | st.sampled_from(["{", "[", "${", "*a", "!x", "-"])
    )
    argument = st.builds("config.{}={}".format, st.sampled_from(KEYS) | st.text(max_size=10), value) | st.text(
        max_size=20
    )
    safe = st.lists(argument.filter(lambda text: "PLUGINS" not in text), max_size=4)

    def read(arguments: list[str]) -> object:
        return load_settings([*["config=quick/synthetic"] * (len(arguments) % 2), *arguments])

    return Target(safe, read, (UserError,), 0.04)


def _lists_target(folder: Path) -> Target:
    place = folder / "lists"
    place.mkdir()
    for number in range(3):
        _written(place / f"{number}.png", _png(number))
    array = io.BytesIO()
    np.save(array, np.array(["0.png", "1.png", "2.png"]))
    good = [b"0.png\n1.png\n2.png\n", b"0.png\tcat\n1.png\tdog\n", b"path,label\n0.png,3\n1.png,1\n", array.getvalue()]
    inputs = st.tuples(st.sampled_from([".txt", ".csv", ".npy"]), damaged(good))

    def read(value: tuple[str, bytes]) -> object:
        file = _written(place / f"list{value[0]}", value[1])
        dataset = DATASETS.get("file_list")(path=str(file))
        return [dataset.read(index) for index in range(min(3, len(dataset)))]

    return Target(inputs, read, (UserError, UnreadableImage), 0.2)  # a run passes unreadable images over, and says so


def _arrays_target(folder: Path) -> Target:
    images = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    one, several, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(one, images)
    np.savez(several, images=images, labels=np.arange(2))
    np.savez_compressed(packed, images=images)
    idx = b"\0\0\x08\x03" + b"\0\0\0\x02\0\0\0\x03\0\0\0\x04" + bytes(24)
    names = ["x.npy", "x.npz", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"]
    inputs = st.tuples(st.sampled_from(names), damaged([one.getvalue(), several.getvalue(), packed.getvalue(), idx]))

    def read(value: tuple[str, bytes]) -> object:
        dataset = DATASETS.get("auto")(path=str(_written(folder / value[0], value[1])))
        return dataset.read(0)

    return Target(inputs, read, (UserError,), 0.15)


def _index_target(folder: Path) -> Target:
    archive = _written(folder / "indexed.tar", _tar([(b"0.png", b"0", None, _png()), (b"0.cls", b"0", None, b"4")]))
    (folder / "lists" / "list.csv").write_bytes(b"path,label\n0.png,cat\n1.png,dog\n")
    makers: list[tuple[Any, Any]] = [
        (scan_folder(str(folder / "lists")), FolderScan.load),
        (_read(str(folder / "lists" / "list.csv"), str(folder / "lists")), _Listed.load),
        (scan_archives([str(archive)], None), TarIndex.load),
    ]
    stored: list[tuple[Path, bytes, Any]] = []
    for number, (index, load) in enumerate(makers):
        place = folder / f"index{number}"
        place.mkdir()
        index.save(place)
        stored += [(file, file.read_bytes(), load) for file in sorted(place.rglob("*")) if file.is_file()]
    inputs = st.integers(0, len(stored) - 1).flatmap(lambda n: st.tuples(st.just(n), damaged([stored[n][1]])))

    def read(value: tuple[int, bytes]) -> object:
        file, good, load = stored[value[0]]
        place = next(parent for parent in file.parents if parent.parent == folder)
        try:
            loaded = load(_written(file, value[1]) and place)
            names = loaded.names if isinstance(loaded, TarIndex) else loaded.paths
            return list(names)
        finally:
            file.write_bytes(good)

    return Target(inputs, read, INDEX_ERRORS, 0.2)


def _manifest_target(folder: Path) -> Target:
    run_folder = folder / "run"
    store = CheckpointStore(run_folder / "checkpoints", 3, None, None, say=lambda text, level: None)
    facts = {"arch": "resnet", "method": "swav", "step": 7}
    saved = store.save(7, {"step": 7}, {"seed": 1}, {"weight": torch.zeros(2)}, facts, {"metrics": {"knn": 50.0}})
    assert saved is not None
    file = saved / "manifest.json"
    good = file.read_bytes()
    parts = json.loads(good)
    changed = st.dictionaries(st.sampled_from(sorted(parts)), VALUES, max_size=3).map(
        lambda changes: json.dumps({**parts, **changes}).encode()
    )
    fewer = st.sets(st.sampled_from(sorted(parts))).map(
        lambda gone: json.dumps({key: value for key, value in parts.items() if key not in gone}).encode()
    )
    nested = st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b'{"files": {"manifest.json": {}}}', b"9" * 5000])

    def read(data: bytes) -> object:
        file.write_bytes(data)
        newest: Checkpoint | None = store.newest()
        return None if newest is None else load_states(newest)

    return Target(damaged([good]) | changed | fewer | nested, read, (UserError,), 0.15)


def _tar(members: list[tuple[bytes, bytes, bytes | None, bytes]]) -> bytes:
    """An archive with right checksums out of (name, type, size field or None for the true one, contents)."""
    parts = []
    for name, kind, size, body in members:
        header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
        header[:100] = name[:100].ljust(100, b"\0")
        header[124:136] = (b"%011o\0" % len(body) if size is None else size)[:12].ljust(12, b"\0")
        header[156:157] = kind
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        parts.append(bytes(header) + body + bytes(-len(body) % 512))
    return b"".join(parts) + bytes(1024)


def _tar_target(folder: Path) -> Target:
    names = [*b"0.png 0.cls 0.json 0.mask.png 1.jpg ../../x.png .png a/ \xff.png".split(), b""]
    sizes = [
        b"77777777777",
        b"\x80" + bytes(7) + b"\1\0\0\0",
        b"\x80" + b"\x7f" * 11,
        b"\xff" * 12,
        b"-1",
        b"9",
        b"0x10",
    ]
    records = [b"30 path=" + b"y" * 21 + b"\n", b"12 size=99\n\0", b"99 path=a\n", b"1 \n"]
    bodies = [_png(), b"7", b'{"kind": 3}', b"[" * 9999, *records]
    member = st.tuples(
        st.sampled_from(names) | st.binary(max_size=100),
        st.sampled_from([bytes([code]) for code in b"0\x0007L" + b"xgKS1256VD"]),
        st.none() | st.sampled_from(sizes) | st.binary(max_size=12),
        st.sampled_from(bodies) | st.binary(max_size=40),
    )
    good = _tar([(b"0.png", b"0", None, _png()), (b"0.cls", b"0", None, b"4"), (b"1.png", b"0", None, _png(1))])
    inputs = st.lists(member, max_size=6).map(_tar) | damaged([good])

    def read(data: bytes) -> object:
        file = _written(folder / "input.tar", data)
        index = scan_archives([str(file)], "kind")
        assert all(offset >= 0 and size > 0 and offset + size <= len(data) for offset, size in index.places.tolist())
        return DATASETS.get("tar")(path=str(file), json_key="kind").describe()

    return Target(inputs, read, (UserError,), 0.2)
