import json

import import_backbone
import pytest
import torch
from safetensors.torch import load_file

from vissl_like.models.trunks.resnet import ResNet
from vissl_like.models.weights import read_backbone

TRUNK = "{name: resnet, depth: 10, width: 0.125}"


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(3)
    tensors = ResNet(3, depth=10, width=0.125).state_dict()
    tensors = {**tensors, "fc.weight": torch.ones(5, 64), "fc.bias": torch.zeros(5)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in tensors.items()}}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def bring(file, *more, trunk=TRUNK):
    out = file.parent / "out"
    return import_backbone.main(["--weights", str(file), "--trunk", trunk, "--out", str(out), *more]), out


def test_names_with_a_prefix_and_a_classifier(file, capsys):
    status, out = bring(file, "--ignore", "module.fc.*", "--mean", "0.1", "0.2", "0.3")
    assert status == 0, capsys.readouterr().err
    found, record = read_backbone(out / "backbone.safetensors")
    given = torch.load(file, weights_only=True)["state_dict"]
    assert set(found) == {name.removeprefix("module.") for name in given if ".fc." not in name}
    assert all(torch.equal(value, given[f"module.{name}"]) for name, value in found.items())
    assert record["arch"] == "resnet" and record["arch_options"] == {"depth": 10, "width": 0.125}
    assert record["mean"] == [0.1, 0.2, 0.3] and record["std"] == [0.229, 0.224, 0.225] and record["channels"] == 3


def test_by_position(file):
    tensors = torch.load(file, weights_only=True)["state_dict"]
    strange = {f"t{number}": value for number, value in enumerate(tensors.values())}
    torch.save(strange, file)
    last = len(strange) - 1
    assert bring(file, "--by-position", "--ignore", f"t{last - 1}", f"t{last}")[0] == 0
    found = load_file(file.parent / "out/backbone.safetensors")
    own = list(ResNet(3, depth=10, width=0.125).state_dict())
    assert all(torch.equal(found[name], strange[f"t{number}"]) for number, name in enumerate(own))


@pytest.mark.parametrize(
    ("more", "trunk", "said"),
    [
        ([], TRUNK, "2 of the file are not used"),
        (["--by-position"], TRUNK, "2 tensors are left over: module.fc.weight"),
        (["--by-position"], "{name: resnet, depth: 10, width: 0.25}", "not the same network"),
        (["--by-position"], "{name: resnet, depth: 50, width: 0.125}", "the trunk has"),
        ([], "{name: resnet, depth: 10, width: 0.25}", "shapes differ"),
        ([], "[1]", "MODEL.TRUNK"),
        ([], "{name: resnet, depht: 10}", "Did you mean 'depth'"),
        ([], "{name: resnet, depth: 11}", "one of 10, 18"),
        (["--std", "0", "1", "1"], TRUNK, "std is above 0"),
        (["--channels", "2"], TRUNK, "--channels is 2"),
        (["--mean", "0.5"], TRUNK, "--mean has 1 values for 3 channel"),
    ],
)
def test_mistakes(file, capsys, more, trunk, said):
    status, out = bring(file, *more, trunk=trunk)
    assert status == 2 and said in capsys.readouterr().err and not out.exists()


def test_an_evaluation_takes_the_folder(file, tmp_path):
    from vissl_like.config.load import load_settings
    from vissl_like.engines.trained import build_trained, find_weights, look_of

    _, out = bring(file, "--ignore", "module.fc.*")
    resolved = load_settings(["config=quick/elpv", f"config.EVALUATE.weights={out}"]).resolved
    weights = find_weights(resolved, tmp_path)
    look = look_of(resolved, weights)
    trunk, notices = build_trained(resolved, weights, look)
    assert look.channels == 3 and trunk.conv1.weight.shape[1] == 3 and any("channels (3)" in text for text in notices)
    assert json.loads((out / "backbone.json").read_text())["imported_from"].startswith("net.pth sha256 ")
