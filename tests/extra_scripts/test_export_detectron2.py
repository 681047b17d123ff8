"""Names and shapes of detectron2's ResNets, derived here from how it builds them, against what is written."""

import json
import pickle

import export_detectron2
import import_backbone
import pytest
import torch
import yaml

from vissl_like.models.trunks.resnet import ResNet

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
NORM = ("weight", "bias", "running_mean", "running_var")


def expected(depth, stem=64, group_width=64, groups=1, out=None):
    """Every tensor of detectron2's ``build_resnet_backbone`` without its head, by the order of its constructors."""
    found = {}

    def conv(name, outputs, inputs, size):
        found[f"{name}.weight"] = (outputs, inputs, size, size)
        found.update({f"{name}.norm.{part}": (outputs,) for part in NORM})

    conv("stem.conv1", stem, 3, 7)
    inputs, outputs = stem, out or (256 if depth >= 50 else 64)
    inner = groups * group_width
    for stage, count in enumerate(BLOCKS[depth], 2):
        for block in range(count):
            name = f"res{stage}.{block}"
            if depth >= 50:
                conv(f"{name}.conv1", inner, inputs, 1)
                conv(f"{name}.conv2", inner, inner // groups, 3)
                conv(f"{name}.conv3", outputs, inner, 1)
            else:
                conv(f"{name}.conv1", outputs, inputs, 3)
                conv(f"{name}.conv2", outputs, outputs, 3)
            if inputs != outputs:
                conv(f"{name}.shortcut", outputs, inputs, 1)
            inputs = outputs
        inner, outputs = 2 * inner, 2 * outputs
    return found


def weights(folder, **options):
    """An untrained ResNet of ours, in a folder with its record."""
    torch.manual_seed(0)
    trunk = ResNet(3, **options)
    torch.save(trunk.state_dict(), folder / "net.pth")
    section = {"name": "resnet", **options}
    import_backbone.import_backbone(folder / "net.pth", section, folder / "net", std=[0.228, 0.224, 0.225])
    return trunk, folder / "net"


def test_the_table_itself():
    """53 and 20 convolutions, each with a weight and four tensors of its norm."""
    table = expected(50)
    assert len(table) == 265 and len(expected(18)) == 100
    assert table["stem.conv1.weight"] == (64, 3, 7, 7) and table["res5.2.conv3.weight"] == (2048, 512, 1, 1)
    assert table["res2.0.shortcut.norm.running_var"] == (256,) and "res3.1.shortcut.weight" not in table


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({"depth": 50}, expected(50)),
        ({"depth": 18}, expected(18)),
        ({"depth": 50, "width": 2.0}, expected(50, stem=128, group_width=128, out=512)),
        ({"depth": 50, "groups": 32, "width_per_group": 4}, expected(50, group_width=4, groups=32)),
    ],
)
def test_names_and_shapes_are_detectron2s(options, table):
    with torch.device("meta"):
        state = ResNet(3, **options).state_dict()
    names = {export_detectron2.renamed(name): tuple(value.shape) for name, value in state.items()}
    names.pop(None)
    assert names == table


def test_values_and_settings(tmp_path, capsys):
    trunk, folder = weights(tmp_path, depth=18)
    with torch.no_grad():
        trunk.layer3[0].downsample[1].running_var.fill_(3.25)
    torch.save(trunk.state_dict(), tmp_path / "net.pth")
    import_backbone.import_backbone(tmp_path / "net.pth", {"name": "resnet", "depth": 18}, folder)
    out = tmp_path / "models/r18.pkl"
    assert export_detectron2.main(["--weights", str(folder), "--out", str(out)]) == 0
    found = pickle.loads(out.read_bytes())
    assert found.keys() == {"model", "__author__", "matching_heuristics"} and found["matching_heuristics"] is True
    assert {name: value.shape for name, value in found["model"].items()} == expected(18)
    assert {value.dtype.name for value in found["model"].values()} == {"float32"}
    state = trunk.state_dict()
    for theirs, ours in (
        ("stem.conv1.weight", "conv1.weight"),
        ("stem.conv1.norm.bias", "bn1.bias"),
        ("res2.1.conv2.weight", "layer1.1.conv2.weight"),
        ("res5.0.shortcut.weight", "layer4.0.downsample.0.weight"),
        ("res4.0.shortcut.norm.running_var", "layer3.0.downsample.1.running_var"),
        ("res3.1.conv1.norm.weight", "layer2.1.bn1.weight"),
    ):
        assert torch.equal(torch.from_numpy(found["model"][theirs]), state[ours]), theirs
    assert (found["model"]["res4.0.shortcut.norm.running_var"] == 3.25).all()
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert said["MODEL"]["PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert said["MODEL"]["WEIGHTS"] == str(out) and said["INPUT"]["FORMAT"] == "RGB"
    assert said["MODEL"]["RESNETS"] == {
        "DEPTH": 18,
        "STRIDE_IN_1X1": False,
        "NUM_GROUPS": 1,
        "WIDTH_PER_GROUP": 64,
        "STEM_OUT_CHANNELS": 64,
        "RES2_OUT_CHANNELS": 64,
    }


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"arch": "vit"}, "weights of vit; detectron2 takes a resnet"),
        ({}, "a network that no record"),
        ({"arch": "resnet", "channels": 1}, "images of 1 channel"),
        ({"arch": "resnet", "arch_options": {"stem": "small"}}, "stem for small images"),
        ({"arch": "resnet", "arch_options": {"depth": 10}}, "this one has depth 10"),
        ({"arch": "resnet", "arch_options": {"blocks": [1, 1, 1, 1]}}, "depth 50 and blocks [1, 1, 1, 1]"),
        ({"arch": "resnet", "arch_options": {"depth": 18, "width": 2.0}}, "this one has width 2"),
        ({"arch": "resnet", "arch_options": {"depth": 18}}, "how images are normalised (mean, std)"),
    ],
)
def test_what_detectron2_has_not_is_refused(tmp_path, capsys, record, said):
    from safetensors.torch import save_file

    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "backbone.safetensors")
    (tmp_path / "backbone.json").write_text(json.dumps(record))
    out = tmp_path / "net.pkl"
    assert export_detectron2.main(["--weights", str(tmp_path), "--out", str(out)]) == 2
    assert said in capsys.readouterr().err and not out.exists()


def test_other_mistakes(tmp_path, capsys):
    assert export_detectron2.main(["--weights", str(tmp_path), "--out", str(tmp_path / "a.pkl")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert export_detectron2.main(["--weights", str(tmp_path), "--out", str(tmp_path / "a.pth")]) == 2
    assert "the ending .pkl" in capsys.readouterr().err
