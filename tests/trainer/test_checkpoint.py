"""Checkpoints: atomic, checked, thinned out by rule."""

import errno
import json

import pytest
import torch

from vissl_like.trainer import checkpoint as module
from vissl_like.trainer.checkpoint import CheckpointStore, inspect_checkpoint, load_states


def store(tmp_path, **options):
    said = []
    rule = {"keep": 2, "keep_every": None, "best_metric": None, **options}
    return CheckpointStore(tmp_path / "checkpoints", say=lambda text, level: said.append((level, text)), **rule), said


def save(where, step, metrics=None):
    return where.save(
        step,
        {"step": step, "model": {"w": torch.full((3,), float(step))}},
        {"rng": torch.get_rng_state()},
        {"conv.weight": torch.ones(2, 2)},
        {"arch": "resnet", "step": step},
        {"metrics": metrics or {}, "settings": {}},
    )


def steps(where):
    return sorted(step for step, _ in where._folders())


def test_what_is_written_is_read_back(tmp_path):
    where, said = store(tmp_path)
    folder = save(where, 12)
    newest = where.newest()
    assert newest.step == 12 and newest.folder == folder and not said
    common, per_rank = load_states(newest)
    assert common["model"]["w"].eq(12).all() and "rng" in per_rank
    assert json.loads((folder / "backbone.json").read_text())["arch"] == "resnet"
    assert not [entry for entry in folder.parent.iterdir() if entry.name.startswith(".")]


def test_the_rule_keeps_newest_multiples_and_best(tmp_path):
    where, _ = store(tmp_path, keep=2, keep_every=30, best_metric="knn.top1")
    for step, value in [(10, 50.0), (20, 70.0), (30, 60.0), (40, 10.0), (50, 20.0)]:
        save(where, step, {"knn.top1": value})
    assert steps(where) == [20, 30, 40, 50]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_said_and_passed_over(tmp_path, damage):
    where, said = store(tmp_path)
    save(where, 1)
    folder = save(where, 2)
    target = folder / ("manifest.json" if damage == "manifest" else "state.pt")
    data = bytearray(target.read_bytes())
    if damage == "remove":
        target.unlink()
    elif damage == "flip":
        data[len(data) // 2] ^= 255
        target.write_bytes(data)
    else:
        target.write_bytes(data[: len(data) // 2])
    assert where.newest().step == 1
    assert said[0][0] == "warning" and "step_00000002 is damaged" in said[0][1]


def test_repair_reads_digests_down_to_the_first_sound_one(tmp_path, monkeypatch):
    where, said = store(tmp_path, keep=9)
    folders = {step: save(where, step) for step in (1, 2, 3, 4)}
    for step in (1, 4):  # of the right size; only a digest tells
        data = bytearray((folders[step] / "state.pt").read_bytes())
        data[len(data) // 2] ^= 255
        (folders[step] / "state.pt").write_bytes(data)
    (folders[2] / "state.pt").write_bytes(b"short")
    read = []
    monkeypatch.setattr(module, "sha256", lambda file, original=module.sha256: read.append(file) or original(file))
    newest = where.repair()
    assert newest.step == 3 and newest.manifest["step"] == 3 and steps(where) == [1, 3]
    assert {file.parent.name for file in read} == {"step_00000003", "step_00000004"} and len(read) == len(set(read))
    assert len(said) == 2 and (where.folder / ".step_00000004.damaged").is_dir()
    for step in (1, 3):
        (folders[step] / "manifest.json").unlink()
    assert where.repair() is None


def test_a_write_that_dies_half_way_is_never_found(tmp_path):
    where, _ = store(tmp_path)
    save(where, 1)
    leftover = where.folder / ".step_00000002.tmp"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half")
    (leftover / "rank_00001.pt").write_bytes(b"from a run with two processes")
    assert where.newest().step == 1
    save(where, 2)
    assert inspect_checkpoint(where.newest().folder)[0] is None
    assert not (where.newest().folder / "rank_00001.pt").exists()


def test_a_full_disk_is_said_and_leaves_the_previous_one(tmp_path, monkeypatch):
    where, said = store(tmp_path)
    save(where, 1)

    def full(path, payload):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_flushed", full)
    assert save(where, 2) is None
    assert said[0][0] == "error" and "No space left on device" in said[0][1] and "step 1 is intact" in said[0][1]
    monkeypatch.undo()
    assert where.newest().step == 1 and steps(where) == [1]
    assert not list(where.folder.glob(".*"))


def test_the_same_step_is_not_written_twice(tmp_path):
    where, _ = store(tmp_path)
    first = save(where, 3)
    before = (first / "manifest.json").stat().st_mtime_ns
    assert save(where, 3) == first and (first / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"world_size": "one"}, "counts 'one' processes"),
        ({"world_size": 10**12}, "counts 1000000000000 processes"),
        ({"files": {}}, "counts 1 processes"),
        ({"files": {"state.pt": {}}}, "does not name rank_00000.pt"),
        ({"world_size": {}}, "counts {} processes"),
    ],
)
def test_a_manifest_that_does_not_fit_is_damage(tmp_path, change, said):
    where, said_by_store = store(tmp_path)
    newest = save(where, 3)
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({**manifest, **change}))
    problem, _ = module.inspect_checkpoint(newest)
    assert said in problem and where.newest() is None and said_by_store


def test_another_number_of_processes_is_refused(tmp_path):
    where, _ = store(tmp_path)
    newest = save(where, 3) and where.newest()
    newest.manifest["world_size"] = 4
    with pytest.raises(module.UserError, match="written by 4 processes, this run has 1"):
        load_states(newest)
