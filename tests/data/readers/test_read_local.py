import os

import pytest

from vissl_like.data.readers import local
from vissl_like.utils.errors import UserError

HINT = "Lay it out like this."


def test_folder(tmp_path, put):
    put("sets/davis/a.jpg")
    assert local.folder_at(tmp_path / "sets" / "davis", "Set", HINT) == tmp_path / "sets" / "davis"
    with pytest.raises(UserError, match=r"no 'davsi' in .*sets'\. Did you mean 'davis'\? Lay it out"):
        local.folder_at(tmp_path / "sets" / "davsi" / "x", "Set", HINT)
    with pytest.raises(UserError, match="is a file, and a folder is needed"):
        local.folder_at(tmp_path / "sets" / "davis" / "a.jpg", "Set", HINT)


def test_text_and_lines(tmp_path, put):
    path = put("a.txt", "\ufeff one \r\n\n two\n")
    assert local.read_lines(path, "List", HINT) == [(1, "one"), (3, "two")]
    with pytest.raises(UserError, match="is empty"):
        local.read_lines(put("b.txt", " \n\n"), "List", HINT)
    with pytest.raises(UserError, match="not UTF-8"):
        local.read_text(put("c.txt", b"\xff\xfe\x00a"), "List", HINT)
    with pytest.raises(UserError, match=r"does not exist\. Did you mean 'a\.txt'\? Lay it out"):
        local.read_text(tmp_path / "aa.txt", "List", HINT)
    with pytest.raises(UserError, match="cannot be read"):
        local.read_text(tmp_path, "List", HINT)


def test_size_limits(put, monkeypatch):
    path = put("a.json", "[1, 2]")
    assert local.read_json(path, "Table", HINT) == [1, 2]
    monkeypatch.setattr(local, "MAX_XML_BYTES", 5)
    with pytest.raises(UserError, match="has 6 bytes, and more than 5 is not read"):
        local.read_xml(path, "Table", HINT)
    with pytest.raises(UserError, match="more than 3 is"):
        local.read_bytes(path, "Table", HINT, 3)


@pytest.mark.parametrize("text", ["[1,", "[" * 100_000, "1" * 5000, ""])
def test_no_json(put, text):
    with pytest.raises(UserError, match="is not JSON"):
        local.read_json(put("a.json", text), "Table", HINT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "declares a document type"),
        ('<?xml version="1.0"?><!DOCTYPE a SYSTEM "http://example.org/a.dtd"><a/>', "declares a document type"),
        ("<a><b></a>", "is not XML"),
        ("<a>&x;</a>", "is not XML"),
    ],
)
def test_no_xml(put, text, message):
    with pytest.raises(UserError, match=message):
        local.read_xml(put("a.xml", text), "Annotation", HINT)


def test_xml(put):
    root = local.read_xml(put("a.xml", '<?xml version="1.0" encoding="utf-8"?><a><b> ä </b></a>'), "Annotation", HINT)
    assert root.findtext("b") == " ä "


def test_images_are_found_with_and_without_ending(tmp_path, put):
    for name in ("a.jpg", "sub/b.PNG.png", "c.txt", ".hidden.jpg", "d.JPG"):
        put(name, "x")
    folders = local.Folders(tmp_path)
    wanted = [os.path.join(tmp_path, name) for name in ("a.jpg", "a.jpg", "sub/b.PNG.png")]
    assert folders.images(["a", "a.jpg", "sub/b.PNG"], "Set", HINT) == wanted
    assert local.images_in(tmp_path) == ["a.jpg", "d.JPG"]
    names = ["a", *(f"no/{number:02d}" for number in range(12))]
    with pytest.raises(UserError) as caught:
        folders.images(names, "Set", HINT)
    text = str(caught.value)
    assert "12 of 13 images do not exist" in text and "no/00" in text and "no/09" in text and "no/10" not in text
    assert text.endswith(HINT) and "  ..." in text


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "sub/../../a"])
def test_nothing_outside_the_folder(tmp_path, name):
    with pytest.raises(UserError, match="is not named relative to"):
        local.Folders(tmp_path).images([name], "Set", HINT)


def test_folders_are_listed_once(tmp_path, put, monkeypatch):
    for number in range(5):
        put(f"many/{number}.jpg", "x")
    calls = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: calls.append(folder) or listdir(folder))
    local.Folders(tmp_path).images([f"many/{number}" for number in range(5)], "Set", HINT)
    assert len(calls) == 1
