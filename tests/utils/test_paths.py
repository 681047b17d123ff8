"""Addresses are fetched once; other schemes are refused."""

import functools
import http.server
import threading

import pytest

from vissl_like.utils.errors import UserError
from vissl_like.utils.paths import local_file


def test_an_address_is_fetched_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "weights.bin").write_bytes(b"abc")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/weights.bin"
        assert local_file(address).read_bytes() == b"abc"
        (tmp_path / "served" / "weights.bin").unlink()
        assert local_file(address).read_bytes() == b"abc"
        with pytest.raises(UserError, match="cannot be fetched"):
            local_file(address.replace("weights", "none"))
        server.shutdown()


def test_local_paths_and_unknown_schemes(tmp_path):
    assert local_file(tmp_path / "x") == tmp_path / "x"
    with pytest.raises(UserError, match="only local paths and http"):
        local_file("gs://bucket/file")
