import hashlib
import io
import json
import subprocess
import tarfile

import numpy as np
import prepare_emoji as script
import pytest
from PIL import Image
from prepare_emoji import main

CODES = [f"1F4{number:02d}" for number in range(1, 14)]
MAN = "1F401-200D-2642-FE0F"
"""A variant of the first concept."""
# printf 1F401 | md5sum | cut -c1-8, ...: a concept is for validation where these digits are below 40000000.
DIGITS = (
    "ea8513f2 907b7c3b eea6030d 48df696b 45789bc7 747e3100 b0a4e166 "
    "feb49653 a5f7ec86 2402ab78 07389d22 3637f8c7 df85f81f"
)
VALIDATION = {"1F410", "1F411", "1F412"}


def row(code, subcategory="sky & weather", category="Travel & Places", **more):
    return {
        "unified": code,
        "image": f"{code.lower()}.png",
        "category": category,
        "subcategory": subcategory,
        **{f"has_img_{vendor}": True for vendor in script.VENDORS},
        **more,
    }


def rows():
    few = [f"1F5{number:02d}" for number in range(11)]
    return [
        *(row(code) for code in CODES),
        row(MAN),
        *(row(code, "drink") for code in [*few, f"{few[0]}-FE0F"]),  # 12 code points of 11 concepts
        row("1F3FB", category="Component"),
        row("1F4AA", has_img_google=False, has_img_twitter=False),
        row("1F4AB", image="none.png"),
    ]


def png(vendor, code, size=64):
    """A half transparent image in a colour of its own; its upper half is fully transparent."""
    colour = hashlib.sha256(f"{vendor} {code}".encode()).digest()[:3]
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    pixels[size // 2 :] = (*colour, 128)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pack(folder, vendor, table, change=None, members=()):
    """A package as npm would fetch it."""
    files = {
        "package/package.json": json.dumps({"name": f"emoji-datasource-{vendor}", "version": "16.0.0"}).encode(),
        "package/emoji.json": json.dumps(table).encode(),
        f"package/img/{vendor}/sheets/64.png": b"not wanted",
    }
    for entry in table:
        if entry["image"] != "none.png":
            files[f"package/img/{vendor}/64/{entry['image']}"] = png(vendor, entry["unified"])
    files.update(change or {})
    folder.mkdir(exist_ok=True)
    path = folder / f"emoji-datasource-{vendor}-16.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return path


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    for vendor in ("google", "twitter"):
        pack(folder, vendor, rows())
    return folder


def call(packages, out, *more):
    return main(["--out", str(out), "--from", str(packages), "--vendors", "google", "twitter", *more])


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_digits_are_of_these_concepts():
    assert {code for code, digits in zip(CODES, DIGITS.split(), strict=True) if digits < "40000000"} == VALIDATION


def test_layout(packages, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(packages, out) == 0
    expected = {
        f"{'val' if code in VALIDATION else 'train'}/sky-weather/{code}_{vendor}.png"
        for code in [*CODES, MAN]
        for vendor in ("google", "twitter")
    }
    assert tree(out) == expected | {"SOURCE.txt"}
    printed = capsys.readouterr().out
    assert "22 training and 6 validation images of 1 kinds" in printed
    for text in (printed, (out / "SOURCE.txt").read_text()):
        assert "Apache-2.0" in text and "CC-BY" in text and "all rights reserved" in text and "MIT" in text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_on_white(packages, tmp_path):
    call(packages, tmp_path / "out")
    with Image.open(tmp_path / "out/train/sky-weather/1F402_twitter.png") as image:
        assert image.mode == "RGB"
        pixels = np.asarray(image)
    assert pixels.shape == (64, 64, 3) and (pixels[:32] == 255).all()
    colour = np.array(list(hashlib.sha256(b"twitter 1F402").digest()[:3]), dtype=np.float64)
    assert np.abs(pixels[32:] - (colour * 128 + 255 * 127) / 255).max() <= 1


def test_printed_mean_and_deviation(packages, tmp_path, capsys):
    call(packages, tmp_path / "out")
    stack = np.stack([np.asarray(Image.open(path)) for path in (tmp_path / "out/train").rglob("*.png")]) / 255.0
    mean, std = (", ".join(f"{value:.3f}" for value in getattr(stack, kind)((0, 1, 2))) for kind in ("mean", "std"))
    assert f"mean [{mean}], std [{std}]" in capsys.readouterr().out


def test_copies_of_training_images_leave_validation(packages, tmp_path, capsys):
    copy = png("google", "1F402")  # a training image of another code point
    pack(
        packages,
        "twitter",
        rows(),
        {"package/img/twitter/64/1f411.png": copy, "package/img/twitter/64/1f403.png": copy},
    )
    assert call(packages, tmp_path / "out") == 0
    assert "1 validation images dropped" in capsys.readouterr().out
    found = tree(tmp_path / "out")
    assert "val/sky-weather/1F411_twitter.png" not in found and "val/sky-weather/1F411_google.png" in found
    assert "train/sky-weather/1F403_twitter.png" in found


def test_large_kinds_are_cut(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "MAX_CONCEPTS", 12)
    call(packages, tmp_path / "out")
    left_out = max(CODES, key=lambda code: hashlib.md5(f"0:{code}".encode()).hexdigest())
    kept = {path.name.split("_")[0].split("-")[0] for path in (tmp_path / "out").rglob("*.png")}
    assert kept == set(CODES) - {left_out}


def test_again(packages, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    call(packages, out)
    capsys.readouterr()
    assert call(packages / "not read", out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["--out", str(out), "--from", str(packages), "--vendors", "google"]) == 1
    assert "images of google twitter" in capsys.readouterr().err
    (out / "val/sky-weather/1F410_google.png").unlink()
    assert call(packages, out) == 1
    assert "27 of 28" in capsys.readouterr().err


def test_other_peoples_folder_is_left_alone(packages, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert call(packages, tmp_path / "out") == 1
    assert "holds something else" in capsys.readouterr().err and tree(tmp_path / "out") == {"thesis.txt"}


def test_members_cannot_escape(packages, tmp_path):
    link = tarfile.TarInfo("package/img/google/64/1f402.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    outside = dict.fromkeys(("../evil.png", "package/../evil.png", "package/img/google/64/../../../../evil.png"), b"x")
    pack(packages, "google", rows(), outside, [link])
    before = tree(packages)
    assert call(packages, tmp_path / "out") == 0
    assert tree(tmp_path / "out") >= {"train/sky-weather/1F402_google.png"} and tree(packages) == before
    assert not list(tmp_path.rglob("evil*")) and len(tree(tmp_path / "out")) == 29


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ([row("../../x", image="1f401.png")], {}, "strange code point"),
        ([row("1F401", "../drink")], {}, "strange code point or subcategory"),
        ([{"unified": "1F401"}], {"package/img/google/64/a.png": b"x"}, "cannot be understood"),
        (rows(), {"package/img/google/64/1f401.png": png("google", "x", 32)}, "(32, 32)"),
        (rows(), {"package/img/google/64/1f401.png": b"GIF89a"}, "cannot be read"),
        (rows(), {"package/img/google/64/1f401.png": bytes((1 << 20) + 1)}, "1,048,577 bytes"),
        (rows(), {"package/emoji.json": b"[{"}, "is damaged"),
        (rows()[:11], {}, "not the real packages"),
        (rows(), {"package/package.json": b'{"name": "emoji-datasource-google", "version": "15.0.0"}'}, "15.0.0"),
        ([], {}, "holds no emoji.json or no"),
    ],
)
def test_strange_packages(tmp_path, capsys, table, change, message):
    entries = [entry for entry in table if "image" in entry]
    change = change if entries == table else {**change, "package/emoji.json": json.dumps(table).encode()}
    pack(tmp_path / "packages", "google", entries, change)
    assert main(["--out", str(tmp_path / "out"), "--from", str(tmp_path / "packages"), "--vendors", "google"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_missing_and_cut_packages(packages, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--from", str(packages)]) == 1
    assert "npm pack emoji-datasource-apple@16.0.0" in capsys.readouterr().err
    path = packages / "emoji-datasource-google-16.0.0.tgz"
    whole = path.read_bytes()
    wrong_checksum = whole[:-8] + bytes(8)
    for damaged in (whole[:-200], wrong_checksum, whole[: len(whole) // 2], b"not a package"):
        path.write_bytes(damaged)
        assert call(packages, tmp_path / "out") == 1
        assert "is damaged" in capsys.readouterr().err


def test_npm_fetches(tmp_path, monkeypatch, capsys):
    calls = []

    def run(command, cwd, **options):
        calls.append(command)
        pack(cwd, "twitter", rows())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(script.subprocess, "run", run)
    assert main(["--out", str(tmp_path / "out"), "--vendors", "twitter"]) == 0
    assert [call[:2] for call in calls] == [["npm", "pack"]] and calls[0][-1] == "emoji-datasource-twitter@16.0.0"
    assert tree(tmp_path) == {f"out/{name}" for name in tree(tmp_path / "out")}  # the packages are gone
    monkeypatch.setattr(
        script.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 7, "", "")
    )
    assert main(["--out", str(tmp_path / "other"), "--vendors", "twitter"]) == 1
    assert "exit status 7" in capsys.readouterr().err


def test_without_npm(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    assert main(["--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "npm is not installed" in error and "--from FOLDER" in error and "emoji-datasource-apple@16.0.0" in error
