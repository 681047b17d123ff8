"""Damaged numpy files and lists: one kind of error, whatever numpy, zipfile or csv raises."""

import io

import numpy as np
import pytest

from vissl_like.data.index import load_mapped
from vissl_like.data.numpy_file import read_array, read_numpy
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError

HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (5,), }"


def npy(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"12345"


DAMAGED = {
    "TokenError": npy(HEADER + b"   {   "),
    "a null byte": npy(HEADER[:20] + b"\0" + HEADER[21:]),
    "terabytes": npy(HEADER.replace(b"(5,)", b"(99999999999999,)")),
    "BadZipFile": b"PK\x03\x04-\x00\x00\x00\x08\x00\x00",
    "nothing": b"",
    "text": b"no numpy file",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_a_value_error(tmp_path, name):
    file = tmp_path / "x.npy"
    file.write_bytes(DAMAGED[name])
    for read in (read_numpy, read_array):
        with pytest.raises(ValueError, match=r"\w"):
            read(file)
    with pytest.raises(ValueError, match=r"x\.npy: .*\w"):
        load_mapped(file)
    for dataset in ("auto", "array", "file_list"):
        with pytest.raises(UserError, match=r"x\.npy"):
            DATASETS.get(dataset)(path=str(file))


def test_an_archive_of_arrays_under_the_name_of_one(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="several arrays"):
        read_array(tmp_path / "x.npy")
    for dataset in ("auto", "file_list"):
        with pytest.raises(UserError, match="several arrays"):
            DATASETS.get(dataset)(path=str(tmp_path / "x.npy"))


def test_a_damaged_part_of_an_archive(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.zeros((2, 5, 4), np.uint8))
    data = bytearray(buffer.getvalue())
    data[60:75] = b"\xff" * 15
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"\w"):
        read_numpy(tmp_path / "x.npz")


def test_whole_files(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6))
    np.save(tmp_path / "none.npy", np.empty((0, 2), np.int64))
    np.savez(tmp_path / "b.npz", x=np.arange(3), y=np.ones(2))
    mapped = read_array(tmp_path / "a.npy")
    assert mapped.tolist() == [0, 1, 2, 3, 4, 5] and type(mapped) is np.ndarray and not mapped.flags.writeable
    assert read_array(tmp_path / "none.npy").shape == (0, 2)
    several = read_numpy(tmp_path / "b.npz")
    assert {name: values.tolist() for name, values in several.items()} == {"x": [0, 1, 2], "y": [1.0, 1.0]}
    with pytest.raises(OSError, match="missing"):
        read_numpy(tmp_path / "missing.npy")


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        read_array(tmp_path / "x.npy")


def test_a_csv_that_cannot_be_read(tmp_path):
    (tmp_path / "x.csv").write_text("path\n" + "a" * 140_000 + "\n")
    with pytest.raises(UserError, match=r"line 2 of .*x\.csv' cannot be read as CSV: field larger"):
        DATASETS.get("file_list")(path=str(tmp_path / "x.csv"))
