"""Strict loading: prefixes found and named, nothing silent."""

import argparse

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vissl_like.models.weights import load_weights, read_state_dict
from vissl_like.utils.errors import UserError


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def saved(tmp_path, state, name="weights.pt"):
    path = tmp_path / name
    torch.save(state, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "encoder."])
def test_known_prefixes_are_found_and_named(tmp_path, prefix):
    source, target = network(), network()
    path = saved(tmp_path, {"state_dict": {prefix + key: value for key, value in source.state_dict().items()}})
    report = load_weights(target, path)
    assert report.prefix == prefix and len(report.loaded) == 4
    assert torch.equal(target[0].weight, source[0].weight)
    assert "loaded 4/4 tensors" in str(report)


def test_left_over_and_missing_names_are_errors_until_allowed(tmp_path):
    state = network().state_dict()
    state.pop("1.bias")
    state["fc.weight"] = torch.zeros(1)
    path = saved(tmp_path, state)
    with pytest.raises(UserError, match=r"1 are missing from the file: 1.bias.*1 of the file are not used: fc.weight"):
        load_weights(network(), path)
    report = load_weights(network(), path, allow_missing=["1.*"], allow_unused=["fc.*"])
    assert report.missing == ["1.bias"] and report.unused == ["fc.weight"]
    assert "ignored fc.weight" in str(report) and "left as initialised: 1.bias" in str(report)


def test_nothing_fits_is_always_an_error(tmp_path):
    path = saved(tmp_path, {"other": torch.zeros(2)})
    with pytest.raises(UserError, match="no name fits"):
        load_weights(network(), path, allow_missing=["*"], allow_unused=["*"])


def test_shapes_are_compared(tmp_path):
    state = network().state_dict()
    state["0.weight"] = torch.zeros(5, 2)
    with pytest.raises(UserError, match=r"0.weight: file \(5, 2\), model \(3, 2\)"):
        load_weights(network(), saved(tmp_path, state))


def test_unreadable_files(tmp_path):
    torn = tmp_path / "torn.pt"
    whole = saved(tmp_path, network().state_dict())
    torn.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        read_state_dict(torn)
    with pytest.raises(UserError, match=r"does not exist. Did you mean 'weights.pt'"):
        read_state_dict(tmp_path / "weigths.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"error 404: not found\n", r"is text, not weights; it begins 'error 404: not found'.*Get the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", r"git lfs pull"),
        ("\u00e9".encode() * 150, "is text, not weights"),  # 200 bytes end inside of a character
        (b"", "is empty: it was not fetched"),
        (b"\x80\x04\x95\x00\xff" * 30, "cannot be read .*; get it again"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_no_weights_file_is_named(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("today", [True, False])
@pytest.mark.parametrize("inside", [lambda net: net, lambda net: {"epoch": 3, "model": net}])
def test_a_pickled_network_says_how_to_save_its_tensors(tmp_path, today, inside):
    path = tmp_path / "net.pth"
    torch.save(inside(network()), path, _use_new_zipfile_serialization=today)
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    text = str(caught.value)
    assert "holds a whole network (torch.nn.modules." in text and "no code of a file is run here" in text
    assert [line.strip() for line in text.splitlines() if line.startswith("    ")] == [
        "import torch; network = torch.load('net.pth', weights_only=False)",
        "torch.save(network.state_dict(), 'net_weights.pth')",
    ]
    assert len(text) < 700  # not torch's own text


def test_other_objects_beside_the_tensors_are_named(tmp_path):
    path = saved(tmp_path, {"state_dict": network().state_dict(), "args": argparse.Namespace(lr=1)})
    with pytest.raises(UserError, match=r"objects besides tensors \(argparse\.Namespace\)") as caught:
        read_state_dict(path)
    assert "torch.save(found['state_dict'], 'weights_weights.pth')" in str(caught.value)


class Harmful:
    def __reduce__(self):
        return print, ("code ran",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    with pytest.raises(UserError, match="objects besides tensors"):
        read_state_dict(saved(tmp_path, {"x": Harmful()}))
    assert "code ran" not in capsys.readouterr().out


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    source, target = network(), network()
    save_file(source.state_dict(), path)
    assert len(load_weights(target, path).loaded) == 4 and torch.equal(target[1].bias, source[1].bias)
