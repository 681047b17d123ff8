import contextlib
import logging
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vissl_like.data import index_cache, scan
from vissl_like.data.index import PathIndex
from vissl_like.data.scan import FolderScan, scan_folder
from vissl_like.registry import DATASETS

ODD = ["a.png", "sub/ä ö.jpg", "", b"not-utf8-\xff.png".decode("utf-8", "surrogateescape"), "x" * 300]


def open_folder(path, **options):
    return DATASETS.get("folder")(path=str(path), **options)


def names(dataset):
    return [os.path.relpath(dataset.path(index), dataset.root) for index in range(len(dataset))]


@pytest.fixture
def count_scans(monkeypatch):
    """List that grows by one whenever a folder is really walked."""
    walks = []
    original = scan._Walk.run

    def counted(self):
        walks.append(self.root)
        return original(self)

    monkeypatch.setattr(scan._Walk, "run", counted)
    return walks


def test_path_index_holds_and_saves_any_name(tmp_path):
    index = PathIndex.from_paths(ODD)
    assert list(index) == ODD and len(index) == 5 and index[4] == "x" * 300
    index.save(tmp_path)
    mapped = PathIndex.load(tmp_path)
    assert list(mapped) == ODD
    assert list(pickle.loads(pickle.dumps(index))) == ODD == list(pickle.loads(pickle.dumps(mapped)))
    with pytest.raises(IndexError):
        index[5]
    with pytest.raises(IndexError):
        index[-1]


def test_a_mapped_index_is_not_sent_but_opened_again(tmp_path):
    index = PathIndex.from_paths(f"{number:09d}.png" for number in range(100_000))
    assert index.nbytes == 100_000 * 13 + 100_001 * 8
    index.save(tmp_path)
    assert len(pickle.dumps(PathIndex.load(tmp_path))) < 1000


def test_empty_index(tmp_path):
    empty = PathIndex.from_paths([])
    empty.save(tmp_path)
    assert len(empty) == 0 == len(PathIndex.load(tmp_path))


def test_damaged_arrays_are_noticed(tmp_path):
    with pytest.raises(ValueError, match="offsets run"):
        PathIndex(np.zeros(3, np.uint8), np.array([0, 4]))
    PathIndex.from_paths(["abc", "defg"]).save(tmp_path)
    for file in ("paths.npy", "offsets.npy"):
        data = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(data[:-1])
        with pytest.raises(ValueError):
            PathIndex.load(tmp_path)
        (tmp_path / file).write_bytes(data)


def test_scan_finds_what_it_should(tmp_path, picture):
    for name in ("b/2.png", "b/1.JPG", "a.png", "c/d/3.png", ".hidden.png", ".git/4.png", "note.txt", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        picture().save(tmp_path / name, "PNG")
    (tmp_path / "b" / "0.png").write_bytes(b"")
    found = scan_folder(str(tmp_path))
    assert list(found.paths) == ["a.png", "b/1.JPG", "b/2.png", "c/d/3.png"]
    assert found.top.tolist() == [-1, 0, 0, 1] and found.tops == ["b", "c"] and not found.one_level
    assert [(item.path, item.reason) for item in found.skipped] == [("b/0.png", "empty file")]
    assert found.others == {".txt": 1, "(no ending)": 1}


def test_links_are_followed_once_and_not_in_circles(tmp_path, picture):
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside, root / "real"):
        folder.mkdir(parents=True)
        picture().save(folder / "x.png")
    (root / "a_up").symlink_to(root)
    (root / "a_real").symlink_to(root / "real")
    (root / "linked").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "file.png").symlink_to(outside / "x.png")
    (root / "nowhere.png").symlink_to(tmp_path / "gone.png")
    found = scan_folder(str(root))
    assert list(found.paths) == ["file.png", "real/x.png", "linked/x.png"]
    assert found.tops == ["linked", "real"] and found.top.tolist() == [-1, 1, 0]
    assert [(item.path, item.reason) for item in found.skipped] == [("nowhere.png", "link to nothing")]


def test_scan_survives_saving(tmp_path, flat_folder):
    (flat_folder / "empty.png").write_bytes(b"")
    found = scan_folder(str(flat_folder))
    (tmp_path / "kept").mkdir()
    found.save(tmp_path / "kept")
    loaded = FolderScan.load(tmp_path / "kept")
    assert list(loaded.paths) == list(found.paths) and loaded.skipped == found.skipped
    assert loaded.is_current(str(flat_folder))


def test_second_opening_does_not_walk(flat_folder, settle, count_scans):
    settle(flat_folder)
    first, second = open_folder(flat_folder), open_folder(flat_folder, channels=1, limit=3)
    assert len(count_scans) == 1 and len(first) == 10 and len(second) == 3


def test_every_change_of_the_tree_is_noticed(tmp_path, flat_folder, settle, count_scans, picture):
    deep = flat_folder / "x" / "y"
    deep.mkdir(parents=True)
    picture().save(deep / "1.png")

    def opened():
        # Another time for each state: what is kept must not be told from the new state by luck.
        settle(flat_folder, 1000 - 10 * len(count_scans))
        return names(open_folder(flat_folder))

    assert len(opened()) == 11
    picture().save(deep / "2.png")
    os.utime(deep)
    assert opened()[-1] == "x/y/2.png"
    (flat_folder / "00.png").unlink()
    os.utime(flat_folder)
    assert opened()[0] == "01.png"
    (flat_folder / "x").rename(flat_folder / "z")
    os.utime(flat_folder)
    assert opened()[-1] == "z/y/2.png"
    assert len(count_scans) == 4


def test_a_fresh_change_is_not_kept(flat_folder, count_scans):
    open_folder(flat_folder)
    open_folder(flat_folder)
    assert len(count_scans) == 2  # modified less than two seconds ago: a further file could come unnoticed


def test_an_empty_file_that_is_filled_counts(flat_folder, settle, count_scans, picture):
    (flat_folder / "late.png").write_bytes(b"")
    settle(flat_folder)
    assert len(open_folder(flat_folder)) == 10
    picture().save(flat_folder / "late.png")  # changes the file, not the folder
    settle(flat_folder)
    assert len(open_folder(flat_folder)) == 11 and len(count_scans) == 2


@pytest.mark.parametrize("file", ["paths.npy", "offsets.npy", "top.npy", "scan.json", "directories/modified.npy"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_cache_is_built_again_with_a_message(flat_folder, settle, own_cache, caplog, file, damage):
    settle(flat_folder)
    before = names(open_folder(flat_folder))
    (kept,) = (own_cache / "indexes").iterdir()
    if damage is None:
        (kept / file).unlink()
    else:
        (kept / file).write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert names(open_folder(flat_folder)) == before
    assert "damaged" in caplog.text
    caplog.clear()
    assert names(open_folder(flat_folder)) == before and "damaged" not in caplog.text


def test_a_cache_that_cannot_be_written_does_not_matter(flat_folder, settle, monkeypatch, tmp_path, caplog):
    settle(flat_folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VISSL_LIKE_CACHE", str(tmp_path / "file" / "below"))  # not even root can make this folder
    with caplog.at_level(logging.WARNING):
        assert len(open_folder(flat_folder)) == 10
    assert "VISSL_LIKE_CACHE" in caplog.text


def test_an_interrupted_write_leaves_nothing(flat_folder, settle, own_cache, monkeypatch):
    settle(flat_folder)

    def full(self, folder):
        (folder / "paths.npy").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FolderScan, "save", full)
    assert len(open_folder(flat_folder)) == 10
    assert list((own_cache / "indexes").iterdir()) == []


def test_old_generations_are_removed(flat_folder, settle, own_cache, picture, monkeypatch):
    monkeypatch.setattr(index_cache, "_KEPT_S", -1.0)
    for number in range(3):
        picture().save(flat_folder / f"more{number}.png")
        settle(flat_folder, 1000 - 100 * number)
        open_folder(flat_folder)
    assert len(list((own_cache / "indexes").iterdir())) == 1


def test_what_nobody_uses_is_removed(flat_folder, settle, own_cache):
    indexes = own_cache / "indexes"
    ages = {"unfinished-1": 2, "unfinished-2": 0.5, "other.00000000000000000001": 91, "used.00000000000000000001": 89}
    for name, days in ages.items():
        (indexes / name).mkdir(parents=True)
        os.utime(indexes / name, (time.time() - days * 86400,) * 2)
    settle(flat_folder)
    open_folder(flat_folder)
    left = {entry.name for entry in indexes.iterdir()}
    assert {"unfinished-2", "used.00000000000000000001"} < left and len(left) == 3
    (mine,) = left - ages.keys()
    os.utime(indexes / mine, (0, 0))
    open_folder(flat_folder)
    assert time.time() - (indexes / mine).stat().st_mtime < 60


def test_processes_that_start_together_scan_once(flat_folder, settle, own_cache, monkeypatch):
    """The first is held up in its scan until the second waits for it."""
    settle(flat_folder)
    script = (
        "import sys; from vissl_like.registry import DATASETS; print(len(DATASETS.get('folder')(path=sys.argv[1])))"
    )
    second = []

    def slow(walk, original=scan._Walk.run):
        second.append(subprocess.Popen([sys.executable, "-c", script, str(flat_folder)], stdout=subprocess.PIPE))
        deadline = time.time() + 60
        while not list(Path("/proc", str(second[0].pid), "fd").glob("*")) or not _waits(second[0].pid, own_cache):
            assert second[0].poll() is None and time.time() < deadline
            time.sleep(0.02)
        return original(walk)

    monkeypatch.setattr(scan._Walk, "run", slow)
    assert len(open_folder(flat_folder)) == 10
    assert second[0].communicate(timeout=60)[0].strip() == b"10"
    assert len(list((own_cache / "indexes").iterdir())) == 1  # a second scan would have stored a second generation


def _waits(pid, cache):
    files = []
    for entry in Path("/proc", str(pid), "fd").iterdir():
        with contextlib.suppress(OSError):
            files.append(os.readlink(entry))
    return any(name.startswith(str(cache)) and name.endswith(".lock") for name in files)
