import io
import json
import os
import pickle

import numpy as np
import pytest
from convert_revisited_ground_truth import main


def truth(make):
    return {
        "imlist": ["a_000001", "b_000002", "c_000003"],
        "qimlist": ["q_000001"],
        "gnd": [{"bbx": [1.5, 2.0, 30.25, 40.0], "easy": make([2]), "hard": make([]), "junk": make([0, 1])}],
    }


EXPECTED = {
    "imlist": ["a_000001", "b_000002", "c_000003"],
    "qimlist": ["q_000001"],
    "gnd": [{"easy": [2], "hard": [], "junk": [0, 1], "bbx": [1.5, 2.0, 30.25, 40.0]}],
}


def convert(tmp_path, content):
    (tmp_path / "gnd.pkl").write_bytes(content)
    return main([str(tmp_path / "gnd.pkl"), str(tmp_path / "gnd.json")])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        lambda values: np.array(values, dtype=np.int64),
        lambda values: np.array(values, dtype=">i4"),
        lambda values: np.array(values, dtype=np.uint8),
        lambda values: np.array(values, dtype=np.float64),
        lambda values: np.array([values], dtype=np.int64),
        lambda values: [np.int64(value) for value in values],
    ],
)
def test_every_protocol_and_kind_of_list(tmp_path, protocol, make):
    assert convert(tmp_path, pickle.dumps(truth(make), protocol)) == 0
    assert json.loads((tmp_path / "gnd.json").read_text()) == EXPECTED
    assert sorted(os.listdir(tmp_path)) == ["gnd.json", "gnd.pkl"]


def test_names_of_older_numpy(tmp_path):
    content = pickle.dumps(truth(np.array), 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core." in content and convert(tmp_path, content) == 0
    assert json.loads((tmp_path / "gnd.json").read_text())["gnd"] == EXPECTED["gnd"]


def test_written_by_python_2(tmp_path):
    # Python 2 writes text as STRING opcodes: S'...'
    content = pickle.dumps(truth(list), 0).replace(b"Va_000001", b"S'a_000001'")
    assert b"S'a_000001'" in content and convert(tmp_path, content) == 0
    assert json.loads((tmp_path / "gnd.json").read_text()) == EXPECTED


class Runs:
    def __reduce__(self):
        return os.mkdir, ("made by the pickle",)


class Finds:
    def __reduce__(self):
        return np.fromfile, ("/etc/passwd",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({**truth(list), "more": Runs()}),
        pickle.dumps(Finds()),
        pickle.dumps({"gnd": io.BytesIO()}),
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.data\x93.",
        b"cnumpy\nload\n.",
    ],
)
def test_nothing_is_run(tmp_path, capsys, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    assert convert(tmp_path, content) == 1
    assert "nothing but data is read" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["gnd.pkl"]


def changed(**more):
    wrong = truth(list)
    wrong["gnd"][0].update(more)
    return pickle.dumps(wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no pickle"),
        (pickle.dumps(truth(np.array))[:-9], "is no pickle"),
        (pickle.dumps([1, 2]), "has no 'imlist'"),
        (pickle.dumps({**truth(list), "imlist": [b"a"]}), "holds a bytes"),
        (pickle.dumps({**truth(list), "qimlist": [1]}), "must be lists of names"),
        (changed(easy=np.array(["a"])), "only numbers are read"),
        (changed(easy=np.array([None, "a"], dtype=object)), "not of numbers"),
        (changed(easy=np.zeros((2, 2))), "of shape (2, 2)"),
        (changed(easy=np.array([1.5])), "'easy' of query 0 holds something else than whole numbers"),
        (changed(hard=None), "query 0 has no lists easy, hard, junk"),
        (pickle.dumps(truth(np.array), 2).replace(b"K\x01\x85", b"K\x09\x85"), "of shape (9,)"),
    ],
)
def test_what_is_no_ground_truth(tmp_path, capsys, content, message):
    assert convert(tmp_path, content) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "gnd.json").exists()


def test_missing_and_too_large(tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path / "none.pkl"), str(tmp_path / "gnd.json")]) == 1
    assert "none.pkl cannot be read: No such file" in capsys.readouterr().err
    monkeypatch.setattr("convert_revisited_ground_truth.MAX_BYTES", 10)
    assert convert(tmp_path, pickle.dumps(truth(list))) == 1
    assert "has more than 10 bytes" in capsys.readouterr().err
