import gzip
import struct
import subprocess

import prepare_fashion_mnist as script
import pytest
from prepare_fashion_mnist import IMAGE_MAGIC, LABEL_MAGIC, IdxFile, main

SMALL = (
    IdxFile("train-images-idx3-ubyte", IMAGE_MAGIC, (20, 2, 3)),
    IdxFile("train-labels-idx1-ubyte", LABEL_MAGIC, (20,)),
    IdxFile("t10k-images-idx3-ubyte", IMAGE_MAGIC, (10, 2, 3)),
    IdxFile("t10k-labels-idx1-ubyte", LABEL_MAGIC, (10,)),
)


def content(file):
    header = struct.pack(f">{1 + len(file.shape)}I", file.magic, *file.shape)
    if file.magic == LABEL_MAGIC:
        return header + bytes(number % 10 for number in range(file.shape[0]))
    return header + bytes(range(6)) * file.shape[0]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    folder = tmp_path / "usr"
    folder.mkdir()
    for file in SMALL:
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(content(file)))
    monkeypatch.setattr(script, "FILES", SMALL)
    monkeypatch.setattr(script, "DEBIAN_FOLDER", folder)
    return folder


def test_from_installed_files(installed, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {file.name for file in SMALL} | {"SOURCE.txt"}
    for file in SMALL:
        assert (out / file.name).read_bytes() == content(file)
    assert "source: installed" in capsys.readouterr().out


def test_again_does_nothing_and_mends_damage(installed, tmp_path, capsys):
    out = tmp_path / "out"
    main(["--out", str(out)])
    time = (out / SMALL[0].name).stat().st_mtime_ns
    capsys.readouterr()
    assert main(["--out", str(out)]) == 0
    assert "nothing to do" in capsys.readouterr().out and (out / SMALL[0].name).stat().st_mtime_ns == time
    (out / SMALL[3].name).write_bytes(b"cut")
    assert main(["--out", str(out)]) == 0
    assert (out / SMALL[3].name).read_bytes() == content(SMALL[3])


@pytest.mark.parametrize(
    ("number", "spoil", "message"),
    [
        (0, lambda data: data[:-1], "bytes"),
        (0, lambda data: data[:3] + b"\x01" + data[4:], "IDX header"),
        (1, lambda data: data[:-1] + b"\x0b", "labels of each of 10 classes"),
    ],
)
def test_wrong_files_are_refused(installed, tmp_path, capsys, number, spoil, message):
    file = SMALL[number]
    (installed / f"{file.name}.gz").write_bytes(gzip.compress(spoil(content(file))))
    assert main(["--out", str(tmp_path / "out"), "--from", "installed"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_archive(installed, tmp_path, capsys):
    (installed / f"{SMALL[2].name}.gz").write_bytes(gzip.compress(content(SMALL[2]))[:-9])
    assert main(["--out", str(tmp_path / "out"), "--from", "installed"]) == 1
    assert "cannot be unpacked" in capsys.readouterr().err


def test_debian_package_is_unpacked_without_root(installed, tmp_path, monkeypatch):
    calls = []

    def run(command, cwd, **options):
        calls.append(command[0:2])
        if command[0] == "apt-get":
            (tmp_path / "x").mkdir(exist_ok=True)
            open(f"{cwd}/dataset.deb", "wb").close()
        else:
            place = script.Path(command[3]) / script.DEBIAN_FOLDER.relative_to("/")
            place.mkdir(parents=True)
            for file in SMALL:
                (place / file.name).write_bytes(content(file))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(script.subprocess, "run", run)
    assert main(["--out", str(tmp_path / "out"), "--from", "debian"]) == 0
    assert calls == [["apt-get", "download"], ["dpkg-deb", "-x"]]


def test_every_failed_source_is_told(installed, tmp_path, monkeypatch, capsys):
    def fail():
        raise script.PrepareError("no network")

    monkeypatch.setattr(script, "SOURCES", {"installed": fail, "debian": fail})
    assert main(["--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "installed: no network" in error and "debian: no network" in error and "by hand" in error


def test_real_sizes():
    assert sum(file.shape[0] for file in script.FILES if file.magic == IMAGE_MAGIC) == 70000
    images = script.FILES[0]
    assert images.check(struct.pack(">4I", 0x803, 60000, 28, 28) + bytes(60000 * 784)) == ""
