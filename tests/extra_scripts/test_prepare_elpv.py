import os
import subprocess
import sys
from pathlib import Path

import prepare_elpv
import pytest
from prepare_elpv import main, split_of

SCRIPT = Path(prepare_elpv.__file__)

THIRD = 0.3333333333333333
CELLS = [
    ("cell0001.png", 1.0, "mono"),
    ("cell0002.png", 0.0, "mono"),
    ("cell0003.png", THIRD, "poly"),
    ("cell0004.png", 2 * THIRD, "poly"),
    ("cell0005.png", 0.0, "poly"),
    ("cell0006.png", 0.0, "poly"),
    ("cell0007.png", 1.0, "poly"),
]
PLACES = {
    "val/mono_defect/cell0001.png",
    "train/mono_ok/cell0002.png",
    "unlabelled/cell0003.png",
    "train/poly_defect/cell0004.png",
    "train/poly_ok/cell0005.png",
    "val/poly_ok/cell0006.png",
    "train/poly_defect/cell0007.png",
}


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "site" / "elpv_dataset" / "data"
    (folder / "images").mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise ImportError('must be found, not imported')\n")
    lines = []
    for name, probability, kind in CELLS:
        (folder / "images" / name).write_bytes(b"photo " + name.encode())
        lines.append(f"images/{name}  {probability}                 {kind}\n")
    (folder / "labels.csv").write_text("".join(lines))
    return folder


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_layout(package, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--out", str(out), "--source", str(package)]) == 0
    assert tree(out) == PLACES | {"pretrain.txt", "SOURCE.txt"}
    assert (out / "unlabelled/cell0003.png").read_bytes() == b"photo cell0003.png"
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
    assert "Deitsch" in (out / "SOURCE.txt").read_text() and "Buerhop-Lutz" in (out / "SOURCE.txt").read_text()


def test_split_is_the_hash_of_the_name():
    # printf '0:cell0001.png' | md5sum | cut -c1-8, ... : their remainders by 4 are 0, 1, 1, 3, 3, 0, 2.
    digits = ["96c279d0", "661a3cad", "ee2f3ac9", "05ebd3e7", "3c7bd9e7", "d88f1a00", "238db0ba"]
    for number, first in enumerate(digits, 1):
        assert split_of(f"cell{number:04d}.png") == ("val" if int(first, 16) % 4 == 0 else "train")


def test_pretraining_sees_no_validation_photo(package, tmp_path):
    out = tmp_path / "out"
    main(["--out", str(out), "--source", str(package)])
    listed = (out / "pretrain.txt").read_text().splitlines()
    validation = {path.name for path in (out / "val").rglob("*.png")}
    assert validation and not validation & {Path(line).name for line in listed}
    assert len(listed) == len(CELLS) - len(validation) and "unlabelled/cell0003.png" in listed
    assert all((out / line).is_file() for line in listed)


def test_again_completes_what_is_missing(package, tmp_path, capsys):
    out = tmp_path / "out"
    main(["--out", str(out), "--source", str(package)])
    before = tree(out)
    (out / "unlabelled/cell0003.png").unlink()
    capsys.readouterr()
    assert main(["--out", str(out), "--source", str(package)]) == 0
    assert "7 photos, 1 of them new" in capsys.readouterr().out
    assert tree(out) == before
    main(["--out", str(out), "--source", str(package)])
    assert "0 of them new" in capsys.readouterr().out


def test_a_photo_of_another_layout_is_refused(package, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "train" / "mono_ok").mkdir(parents=True)
    (out / "train" / "mono_ok" / "leak.png").write_bytes(b"x")
    assert main(["--out", str(out), "--source", str(package)]) == 1
    assert "leak.png" in capsys.readouterr().err
    assert tree(out) == {"train/mono_ok/leak.png"}


def test_copies_where_links_are_impossible(package, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert main(["--out", str(tmp_path / "out"), "--source", str(package)]) == 0
    assert (tmp_path / "out/unlabelled/cell0003.png").stat().st_nlink == 1


def test_missing_package_names_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 1 and "-m pip install elpv-dataset" in done.stderr
    assert not (tmp_path / "out").exists()


def test_installed_package_is_found_without_importing_it(package, tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "7 photos" in done.stdout and "2,624 photos were expected" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "labels.csv").unlink(), "labels.csv does not exist"),
        (lambda folder: (folder / "images/cell0004.png").unlink(), "labels.csv:4 names images/cell0004.png"),
        (
            lambda folder: (folder / "labels.csv").write_text("images/cell0001.png 0.0 glass\n"),
            "labels.csv:1: expected",
        ),
    ],
)
def test_damage_is_explained(package, tmp_path, capsys, change, message):
    change(package)
    assert main(["--out", str(tmp_path / "out"), "--source", str(package)]) == 1
    assert message in capsys.readouterr().err
