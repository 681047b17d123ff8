"""What a billion images cost before the first of them is decoded; the numbers of docs/scale.md that can be measured.

Usage: python dev/bench/scale.py [--only permutation,tar,index,checkpoint,network] [--folder DIR]

Big files are sparse: 10 GB of archives and 40 GB of index take a few megabytes of disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vissl_like.data.index import PathIndex
from vissl_like.data.samplers.permutation import BlockwiseOrder, EpochOrder, KeyedPermutation
from vissl_like.data.tar_scan import TarIndex, scan_archives
from vissl_like.registry import SAMPLERS

IMAGES = 10**9
ARCHIVES, PER_ARCHIVE, IMAGE_BYTES = 100_000, 10_000, 100_000
PROCESSES, PER_RANK = 512, 17


def best(work: Callable[[], object], clock: Callable[[], float] = time.process_time, least: float = 0.3) -> float:
    """Seconds of the fastest of at least three runs; processor time, unless another clock is given."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)


def memory() -> dict[str, float]:
    """MiB of this process that are its own, and that are pages of files, which processes share."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return {"own": int(facts["RssAnon"].split()[0]) / 1024, "mapped": int(facts["RssFile"].split()[0]) / 1024}


def permutation(folder: Path) -> None:
    """Time and memory of the order of an epoch of a billion."""
    orders = {
        "free": KeyedPermutation(IMAGES, 0, 1),
        "block 10000, mixed 64": BlockwiseOrder(IMAGES, 10_000, 64, 0, 1),
    }
    for name, order in orders.items():
        for count in (PER_RANK, 64, 1024, 16_384, 1_000_000):
            places = np.random.default_rng(0).integers(0, IMAGES - count) + np.arange(count)
            seconds = best(lambda order=order, places=places: order(places))  # type: ignore[misc]
            print(f"{name:22} {count:8} places: {seconds / count * 1e9:7.0f} ns each, {seconds * 1e6:9.0f} us together")
    small = best(lambda: np.random.default_rng(0).permutation(10**7), least=0)
    print(
        f"stored, for comparison: 10^7 places in {small:.2f} s and 80 MB, so at least {100 * small:.0f} s and 8 GB "
        "for 10^9"
    )
    tracemalloc.start()
    sampler = SAMPLERS.get("permutation")(IMAGES, PER_RANK, 1, 311, PROCESSES, 0)
    started = time.perf_counter()
    batch = next(iter(sampler.batches(100_000, 100_001)))
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(
        f"sampler of rank 311 of {PROCESSES} resumed at step 100,000: first batch of {len(batch)} in "
        f"{seconds * 1e3:.1f} ms, peak {peak / 1024:.0f} KiB"
    )
    order = EpochOrder(orders["free"])  # type: ignore[arg-type]
    sample = order[0:2_000_000]
    print(f"two million places give {len(np.unique(sample)):,} different images")


def tar(folder: Path) -> None:
    """Time to index three archives, and what the index takes."""
    archives = []
    for number in range(3):
        archives.append(str(folder / f"{number:06d}.tar"))
        with open(archives[-1], "wb") as stream:
            for image in range(PER_ARCHIVE):
                for ending, size in ((".jpg", IMAGE_BYTES), (".json", 400)):
                    member = tarfile.TarInfo(f"{number:06d}{image:05d}{ending}")
                    member.size = size
                    stream.write(member.tobuf(tarfile.USTAR_FORMAT))
                    stream.seek(-(-size // 512) * 512, 1)
            stream.write(bytes(1024))
    scan_archives(archives[:1], None)
    started, busy = time.perf_counter(), time.process_time()
    index = scan_archives(archives, None)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    kept = folder / "kept"
    kept.mkdir()
    index.save(kept)
    stored = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    print(
        f"{len(index):,} images ({2 * len(index):,} members) in {seconds:.2f} s, {busy:.2f} s of processor: "
        f"{busy / len(index) * 1e6:.1f} us per image, so {busy / len(index) * IMAGES / 3600:.1f} hours for 10^9, once"
    )
    print(f"index: {stored / len(index):.1f} bytes per image, so {stored / len(index) * IMAGES / 1e9:.0f} GB for 10^9")
    loaded = best(lambda: TarIndex.load(kept))
    print(f"mapping it again: {loaded * 1e3:.2f} ms")


def index(folder: Path) -> None:
    """Opening an index of a billion images, and finding images in it."""
    kept = folder / "billion"
    (kept / "archives").mkdir(parents=True)
    PathIndex.from_paths(f"/data/shards/{number:06d}.tar" for number in range(ARCHIVES)).save(kept / "archives")
    np.save(kept / "first.npy", np.arange(0, IMAGES + 1, PER_ARCHIVE, dtype=np.int64))
    name_bytes = 15 * IMAGES
    for name, shape, dtype in (
        ("places.npy", (IMAGES, 2), np.int64),
        ("offsets.npy", (IMAGES + 1,), np.int64),
        ("paths.npy", (name_bytes,), np.uint8),
    ):
        array = np.lib.format.open_memmap(kept / name, "w+", dtype, shape)
        if name == "offsets.npy":
            array[-1] = name_bytes
        array.flush()
        del array
    facts = {"images": IMAGES, "archives": ARCHIVES, "labels": [0, 0], "skipped": [], "others": {}}
    (kept / "tar.json").write_text(json.dumps(facts), encoding="ascii")
    apparent = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    before, started = memory(), time.perf_counter()
    loaded = TarIndex.load(kept)
    seconds = time.perf_counter() - started
    after = memory()
    print(f"index of {len(loaded):,} images ({apparent / 1e9:.0f} GB) mapped in {seconds * 1e3:.1f} ms")
    print(
        f"memory: own {after['own'] - before['own']:+.1f} MiB, pages of files {after['mapped'] - before['mapped']:+.1f}"
    )
    for name, order in {
        "freely shuffled": KeyedPermutation(IMAGES, 0, 0),
        "in blocks": BlockwiseOrder(IMAGES, PER_ARCHIVE, 64, 0, 0),
    }.items():
        before = memory()
        asked = order(np.arange(2000)).tolist()
        started, busy = time.perf_counter(), time.process_time()
        for position in asked:
            loaded.places[position].tolist()
            loaded.archive_of(position)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        last = memory()
        print(
            f"2,000 images {name}: {seconds / 2000 * 1e6:.0f} us each to find ({busy / 2000 * 1e6:.0f} of processor); "
            f"own {last['own'] - before['own']:+.1f} MiB, pages of files {last['mapped'] - before['mapped']:+.1f} MiB"
        )


def checkpoint(folder: Path) -> None:
    """How fast this machine serialises, digests and writes."""
    import torch

    from vissl_like.trainer.checkpoint import _serialised
    from vissl_like.utils.files import write_flushed

    state = {"weights": torch.zeros(2**26)}
    size = state["weights"].numel() * 4
    data = _serialised(state)
    rates = {
        "serialise": size / best(lambda: _serialised(state)) / 1e9,
        "sha256": size / best(lambda: hashlib.sha256(data)) / 1e9,
        "write and flush": size / best(lambda: write_flushed(folder / "state.pt", data), time.perf_counter) / 1e9,
    }
    print(f"{size / 1e6:.0f} MB: " + ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in rates.items()))


def network(folder: Path) -> None:
    """Parameters of RegNetY-256GF and of its head, built without memory."""
    import torch

    from vissl_like.registry import HEADS, TRUNKS

    with torch.device("meta"):
        trunk = TRUNKS.get("regnet_y")(3, size="256GF")
        options = {"hidden_dim": [8192, 8192], "output_dim": 256, "num_prototypes": 16_000, "batch_norm": False}
        head = HEADS.get("swav")(trunk.feature_dim, **options)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (trunk, head)]
    print(
        f"RegNetY-256GF: trunk {counts[0]:,} parameters, head {counts[1]:,}; {4 * sum(counts) / 1e9:.2f} GB in float32"
    )


PARTS = {"permutation": permutation, "tar": tar, "index": index, "checkpoint": checkpoint, "network": network}


def main() -> None:
    """Runs the chosen parts in an empty folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--folder", default=None, help="where the temporary folder goes")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(f"\n{name}")
            PARTS[name](Path(folder))


if __name__ == "__main__":
    main()
