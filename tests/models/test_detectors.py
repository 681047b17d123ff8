"""Detectors around a trunk: where its tensors go, what is frozen, and that they learn."""

import copy
import importlib.util

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet18

from vissl_like.models.detectors.base import DetectorPlan
from vissl_like.models.detectors.build import build_detector
from vissl_like.models.detectors.maps import StageMaps
from vissl_like.models.detectors.rcnn import region_masks
from vissl_like.models.trunks.alexnet import AlexNet
from vissl_like.models.trunks.regnet_y import RegNetY
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.models.trunks.timm import TimmTrunk
from vissl_like.models.trunks.vit import VisionTransformer
from vissl_like.utils.errors import UserError

KINDS = ("faster_rcnn_c4", "faster_rcnn_fpn", "mask_rcnn_fpn", "detr")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="DETR needs the transformers package"
)
KINDS_HERE = [pytest.param(kind, marks=needs_transformers) if kind == "detr" else kind for kind in KINDS]


def plan(kind, **changes):
    options = {
        **{"mean": (0.5,) * 3, "std": (0.25,) * 3, "num_classes": 3, "width": 16, "hidden": 32, "rois": 16},
        **{"train_proposals": 50, "test_proposals": 20, "queries": 8, "layers": 1, "head_batch_norm": False},
        "anchors": (8, 16, 32) if kind == "faster_rcnn_c4" else (8, 16, 32, 48, 64),
    }
    return DetectorPlan(kind=kind, **{**options, **changes})


def trunk(seed=0):
    torch.manual_seed(seed)
    return ResNet(3, depth=10, width=0.125)


def detector(kind, net=None, *, batch_norm="trained", freeze_at=0, **changes):
    torch.manual_seed(1)
    net = trunk() if net is None else net
    return build_detector(net, plan(kind, **changes), batch_norm=batch_norm, freeze_at=freeze_at, device_type="cpu")


def batch():
    """Two images with a light square each."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 0.2
    targets = []
    for image, (left, top, side), label in zip(images, ((8, 8, 24), (24, 20, 32)), (1, 3)):
        image[:, top : top + side, left : left + side] += 0.2 * label
        mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
        mask[:, top : top + side, left : left + side] = 1
        box = torch.tensor([[left, top, left + side, top + side]]).float()
        targets.append({"boxes": box, "labels": torch.tensor([label]), "masks": mask})
    return list(images), targets


def loss(model, seed=0):
    torch.manual_seed(seed)
    return torch.stack(list(model(*batch()).values())).sum()


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_every_tensor_of_the_trunk_has_one_place_and_moves(kind):
    net = trunk()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    own = dict(net.named_parameters())
    model = detector(kind, net)
    places = [value for _, value in model.named_parameters(remove_duplicate=False)]
    for name, value in own.items():
        assert sum(place is value for place in places) == 1, name
        assert value.requires_grad, name
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss(model).backward()
    optimizer.step()
    still = [name for name, value in own.items() if torch.equal(value, before[name])]
    assert not still
    unmoved = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not unmoved


def test_c4_is_three_stages_on_the_image_and_one_on_regions():
    net = trunk()
    reference = copy.deepcopy(net).eval()
    model = detector("faster_rcnn_c4", net, head_batch_norm=True).eval()
    images = torch.rand(2, 3, 64, 96)
    assert torch.equal(model.backbone(images), reference.stage_map(images, 3))
    regions = torch.rand(5, model.backbone.out_channels, 7, 7)
    head = model.roi_heads.box_head
    assert isinstance(head.norm, nn.BatchNorm2d) and head.norm.num_features == net.feature_dim
    head.norm.running_mean.fill_(0.25)
    expected = (reference.layer4(regions) - 0.25).mean((2, 3)) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(head(regions), expected)
    assert not hasattr(net, "layer4")
    plain = detector("faster_rcnn_c4", head_batch_norm=False)
    assert not any(isinstance(part, _BatchNorm) for part in [plain.roi_heads.box_head.norm])
    assert detector("faster_rcnn_c4", roi_size=14).roi_heads.box_roi_pool.output_size == (14, 14)


def test_maps_in_one_pass_are_the_trunks_own():
    images = torch.rand(1, 3, 96, 96)
    for net, stages in (
        (trunk(), [1, 2, 3, 4]),
        (TimmTrunk(3, model="test_resnet"), [1, 3, 4]),
        (AlexNet(3, fc_layers=[]), [2, 5]),
        (RegNetY(3, size="400MF"), [1, 2, 4]),
    ):
        net.eval()
        maps = StageMaps(net, stages, 3)
        found = maps(images)
        assert len(found) == len(stages)
        for one, stage, width in zip(found, stages, maps.widths, strict=True):
            torch.testing.assert_close(one, net.stage_map(images, stage))
            assert one.shape[1] == width


def test_maps_against_torchvision():
    torch.manual_seed(0)
    theirs = resnet18().eval()
    net = ResNet(3, depth=18).eval()
    net.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    images = torch.rand(1, 3, 64, 64)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    model = detector("mask_rcnn_fpn", net).eval()
    for found, stage in zip(model.backbone.maps(images), ("layer1", "layer2", "layer3", "layer4"), strict=True):
        x = getattr(theirs, stage)(x)
        torch.testing.assert_close(found, x)
    assert list(model.backbone(images)) == ["0", "1", "2", "3", "pool"]
    assert [tuple(one.shape[1:]) for one in model.backbone(images).values()] == [
        (16, side, side) for side in (16, 8, 4, 2, 1)
    ]


@pytest.mark.parametrize("kind", ["faster_rcnn_c4", "faster_rcnn_fpn", pytest.param("detr", marks=needs_transformers)])
def test_frozen_norms_stay(kind):
    net = trunk()
    model = detector(kind, net, batch_norm="frozen", head_batch_norm=True)
    states = {name: value.clone() for name, value in model.state_dict().items() if "running" in name or ".bn" in name}
    loss(model).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    frozen = [module for module in norms if not module.training]
    assert len(frozen) == len([name for name in trunk().state_dict() if name.endswith("running_mean")])
    assert all(not value.requires_grad for module in frozen for value in module.parameters())
    after = model.state_dict()
    changed = {name for name, value in states.items() if not torch.equal(value, after[name])}
    assert all("trunk" not in name and "stage." not in name for name in changed)
    if kind != "detr":
        assert changed  # the new ones' statistics


def test_trained_norms_move_and_synced_ones_span_processes():
    model = detector("faster_rcnn_fpn", head_batch_norm=True)
    loss(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
    spanning = detector("faster_rcnn_fpn", head_batch_norm=True, batch_norm="synced", freeze_at=2)
    kinds = {type(module).__name__ for module in spanning.modules() if isinstance(module, _BatchNorm)}
    assert kinds == {"AllReduceBatchNorm"}
    still = [module for module in spanning.modules() if isinstance(module, _BatchNorm) and not module.training]
    assert len(still) == 3  # of the stem, and two of the one block of the first stage


@pytest.mark.parametrize(
    ("freeze_at", "stages"), [(0, ()), (1, ("conv1", "bn1")), (2, ("conv1", "bn1", "layer1")), (5, ("",))]
)
def test_freeze_at(freeze_at, stages):
    net = trunk()
    names = dict(net.named_parameters())
    detector("faster_rcnn_fpn", net, freeze_at=freeze_at)
    frozen = {name for name, value in names.items() if not value.requires_grad}
    assert frozen == {name for name in names if name.startswith(stages or ("none",))}
    assert net.bn1.training == (not frozen)
    timm = TimmTrunk(3, model="test_resnet")
    detector("faster_rcnn_fpn", timm, freeze_at=2)
    assert not any(value.requires_grad for value in timm.net.conv1.parameters())
    assert any(value.requires_grad for value in timm.net.layer4.parameters())


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_one_batch_is_learnt(kind):
    model = detector(kind)
    rate = 2e-3 if kind == "detr" else 5e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for step in range(25):
        optimizer.zero_grad()
        value = loss(model, seed=step)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_detections(kind):
    model = detector(kind, score_threshold=0.0).eval()
    with torch.inference_mode():
        (found, other) = model(batch()[0])
        (alone,) = model(batch()[0][:1])
    assert found["boxes"].shape == (len(found["labels"]), 4) and len(other["scores"])
    assert int(found["labels"].min()) >= 1 and int(found["labels"].max()) <= 3
    assert float(found["boxes"].min()) >= 0 and float(found["boxes"].max()) <= 64
    torch.testing.assert_close(alone["scores"], found["scores"])
    if kind == "mask_rcnn_fpn":
        assert found["masks"].shape[1:] == (1, 28, 28)


def test_region_masks_lie_in_their_boxes():
    masks = region_masks(torch.ones(1, 1, 28, 28), torch.tensor([[4.0, 6.0, 12.0, 18.0]]), 20, 30)
    assert masks.shape == (1, 20, 30) and masks[0, 7:17, 5:11].all()
    assert (
        not masks[0, :5].any() and not masks[0, 20:].any() and not masks[0, :, :3].any() and not masks[0, :, 14:].any()
    )
    assert region_masks(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), 5, 6).shape == (0, 5, 6)


@needs_transformers
def test_detr_losses_are_those_of_the_formula():
    """Every query but one for each image is 'no object' (weight 0.1); boxes are centre and size, relative."""
    from scipy.optimize import linear_sum_assignment
    from torchvision.ops import box_convert, generalized_box_iou

    model = detector("detr", batch_norm="frozen")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for module in model.net.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    images, targets = batch()
    images[1] = images[1][:, :, :60]  # padded to the batch
    found = model(images, targets)
    joined = torch.zeros(2, 3, 64, 64)
    seen = torch.zeros(2, 64, 64)
    for row, image in enumerate(images):
        joined[row, :, :, : image.shape[2]], seen[row, :, : image.shape[2]] = (image - 0.5) / 0.25, 1
    output = model.net(joined, seen)
    logits, boxes = output.logits.detach(), output.pred_boxes.detach()
    labels = torch.full((2, 8), 3)
    distance, overlap = 0.0, 0.0
    for row, target in enumerate(targets):
        width = images[row].shape[2]
        wanted = box_convert(target["boxes"], "xyxy", "cxcywh") / torch.tensor([width, 64.0, width, 64])
        corners = [box_convert(value, "cxcywh", "xyxy") for value in (boxes[row], wanted)]
        gains = generalized_box_iou(*corners)
        cost = 5 * torch.cdist(boxes[row], wanted, p=1) - 2 * gains
        cost -= logits[row].softmax(-1)[:, target["labels"] - 1]
        query = int(linear_sum_assignment(cost.numpy())[0][0])
        labels[row, query] = target["labels"] - 1
        distance += (boxes[row, query] - wanted[0]).abs().sum()
        overlap += 1 - gains[query, 0]
    expected = cross_entropy(logits.transpose(1, 2), labels, torch.tensor([1.0, 1, 1, 0.1]))
    torch.testing.assert_close(found["loss_ce"].detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["loss_bbox"].detach(), 5 * distance / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["loss_giou"].detach(), 2 * overlap / 2, rtol=1e-4, atol=1e-5)


def test_mistakes_are_told(monkeypatch):
    vit = VisionTransformer(3, size="tiny", patch_size=16, image_size=32, depth=1)
    with pytest.raises(UserError, match="VisionTransformer gives no maps stage by stage"):
        detector("faster_rcnn_fpn", vit)
    with pytest.raises(UserError, match="faster_rcnn_c4 divides a ResNet"):
        detector("faster_rcnn_c4", TimmTrunk(3, model="test_resnet"))
    with pytest.raises(UserError, match="two of the strides 4, 8, 16, 32"):
        detector("faster_rcnn_fpn", TimmTrunk(3, model="test_vit", options={"dynamic_img_size": True}))
    with pytest.raises(UserError, match=r"EVALUATION.anchors has 2 sides, and this network's pyramid 5 maps"):
        detector("mask_rcnn_fpn", anchors=(8, 16))
    with pytest.raises(UserError, match=r"freeze_at=6.*1 to 5"):
        detector("faster_rcnn_fpn", freeze_at=6)
    with pytest.raises(UserError, match=r"freeze_at=1.*2 to"):
        detector("faster_rcnn_fpn", TimmTrunk(3, model="test_resnet"), freeze_at=1)
    with pytest.raises(UserError, match="must be a multiple of 8"):
        detector("detr", width=12)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install \"vissl_like\[detr\]\""):
        detector("detr")


def test_a_pyramid_on_a_regnet_and_its_first_stages_frozen():
    net = RegNetY(3, size="400MF")
    model = detector("faster_rcnn_fpn", net, freeze_at=2)
    assert model.backbone.maps.widths == [48, 104, 208, 440]  # the widths of RegNetY-400MF in the paper's model zoo
    frozen = {
        name.split(".")[0] + name.split(".")[1] for name, value in net.named_parameters() if not value.requires_grad
    }
    assert frozen == {"stem0", "stem1", "trunk_outputblock1"}
