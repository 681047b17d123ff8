"""Every number that the thesis' suites show beside ours, against the thesis' tables typed here by rows."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml

from vissl_like.config import load_settings
from vissl_like.engines.suite_jobs import jobs_of
from vissl_like.evaluation import detection, retrieval
from vissl_like.evaluation.functional.retrieval import RetrievalScores

SUITES = Path(__file__).parents[2] / "configs/benchmark/suite"

TABLE_5_2 = """
R50 supervised 79.3/79.3; SimCLR 69.1/60.7; MoCo v2 71.1/61.9; InfoMin 73.0/65.3; Barlow Twins 73.2/66.0;
    OBoW 73.8/61.9; BYOL 74.4/64.8; DeepCluster-v2 75.2/67.1; SwAV 75.3/65.7; DINO 75.3/67.5
ViT-S/16 supervised 79.8/79.8; BYOL 71.4/66.6; MoCo v2 72.7/64.4; SwAV 73.5/66.3; DINO 77.0/74.5
ViT-B/16 DINO 78.2/76.1
ViT-S/8 DINO 79.7/78.3
ViT-B/8 DINO 80.1/77.4
"""
"""Linear / k-NN."""


def table_5_2(column):
    """Name -> number of a column."""
    found = {}
    for line in re.sub(r"\n\s+", " ", TABLE_5_2.strip()).splitlines():
        network, _, cells = line.partition(" ")
        for cell in cells.split(";"):
            method, values = cell.strip().rsplit(" ", 1)
            found[f"{method} {network}"] = float(values.split("/")[column])
    return found


LINEAR, KNN = table_5_2(0), table_5_2(1)


def of(table, *networks):
    return {name: value for name, value in table.items() if name.endswith(networks)}


VITS = ("ViT-S/16", "ViT-B/16", "ViT-S/8", "ViT-B/8")
VOC_AP50 = {"supervised": 81.3, "MoCo": 81.5, "PIRL": 80.7, "BoWNet": 81.3, "MoCo v2": 82.5, "SwAV": 82.6}
"""Table 4.2, detection on VOC07+12."""
R50 = {
    "imagenet_knn": of(KNN, "R50"),
    "imagenet_linear": of(LINEAR, "R50"),
    # Table 5.5: logistic regression and k-NN of DINO's ResNet-50.
    "imagenet_logistic": {"DINO R50": 72.1},
    "imagenet_10_percent_logistic": {"DINO R50": 67.8},
    "imagenet_10_percent_knn": {"DINO R50": 59.3},
    "imagenet_1_percent_logistic": {"DINO R50": 55.1},
    "imagenet_1_percent_knn": {"DINO R50": 47.2},
    "flowers_logistic": {"DINO R50": 95.6},
    "flowers_knn": {"DINO R50": 87.9},
    # Table 4.1, top-1.
    "imagenet_1_percent_finetune": {"supervised R50": 25.4, "PIRL R50": 30.7, "SimCLR R50": 48.3, "SwAV R50": 53.9},
    "imagenet_10_percent_finetune": {
        **{"supervised R50": 56.4, "UDA R50": 68.8, "FixMatch R50": 71.5, "PIRL R50": 60.4, "SimCLR R50": 65.6},
        "SwAV R50": 70.2,
    },
    "places205_linear": {},
    "inaturalist2018_linear": {},
    # Table 4.2.
    "voc07_svm": {
        **{"supervised R50": 87.5, "RotNet R50": 64.6, "MoCo R50": 79.8, "PIRL R50": 81.1, "PCL R50": 84.0},
        **{"BoWNet R50": 79.3, "SimCLR R50": 86.4, "MoCo v2 R50": 87.1, "SwAV R50": 88.9},
    },
    "voc07_low_shot": {},
    "voc07_detection": {f"{method} R50": ("AP50_voc07", value) for method, value in VOC_AP50.items()},
    "coco_mask_rcnn": {"supervised R50": 39.7, "MoCo v2 R50": 39.8, "SwAV R50": 41.6},
    "coco_detr": {"supervised R50": 40.8, "MoCo v2 R50": 42.0, "SwAV R50": 42.1},
    "voc12_segmentation": {},
    # Table 5.3.
    "roxford": {
        **{"DINO R50, medium": 35.4, "DINO R50, hard": ("map_hard", 11.1)},
        **{"supervised R101 with R-MAC, medium": 49.8, "supervised R101 with R-MAC, hard": ("map_hard", 18.5)},
    },
    "rparis": {
        **{"DINO R50, medium": 55.9, "DINO R50, hard": ("map_hard", 27.5)},
        **{"supervised R101 with R-MAC, medium": 74.0, "supervised R101 with R-MAC, hard": ("map_hard", 52.1)},
    },
    # Table 5.4.
    "copydays": {"Multigrain R50, 224 px": 75.1, "Multigrain R50, largest side 800 px": 82.5},
}
SMALL = "DINO ViT-S/16"
VIT = {
    "imagenet_knn": of(KNN, *VITS),
    "imagenet_linear": of(LINEAR, *VITS),
    # Table 5.5, of DINO's ViT-S.
    "imagenet_logistic": {SMALL: 75.7},
    "imagenet_10_percent_logistic": {SMALL: 72.2},
    "imagenet_10_percent_knn": {SMALL: 69.1},
    "imagenet_1_percent_logistic": {SMALL: 64.5},
    "imagenet_1_percent_knn": {SMALL: 61.3},
    "flowers_logistic": {SMALL: 96.4},
    "flowers_knn": {SMALL: 89.1},
    # Table 5.7, ImageNet.
    "imagenet_finetune": {
        **{"supervised ViT-S/16": 79.9, SMALL: 81.5, "supervised ViT-B/16": 81.8, "DINO ViT-B/16": 82.8}
    },
    # Table 5.3.
    "roxford": {
        **{"supervised ViT-S/16, medium": 33.5, "supervised ViT-S/16, hard": ("map_hard", 8.9)},
        **{f"{SMALL}, medium": 41.8, f"{SMALL}, hard": ("map_hard", 13.7)},
        **{f"{SMALL} of Landmarks, medium": 51.5, f"{SMALL} of Landmarks, hard": ("map_hard", 24.3)},
    },
    "rparis": {
        **{"supervised ViT-S/16, medium": 63.0, "supervised ViT-S/16, hard": ("map_hard", 37.2)},
        **{f"{SMALL}, medium": 63.1, f"{SMALL}, hard": ("map_hard", 34.4)},
        **{f"{SMALL} of Landmarks, medium": 75.3, f"{SMALL} of Landmarks, hard": ("map_hard", 51.6)},
    },
    # Table 5.4.
    "copydays": {"supervised ViT-B/16, 224 px": 76.4, "DINO ViT-B/16, 224 px": 81.7, "DINO ViT-B/8, 320 px": 85.5},
    # Table 5.6, J&F.
    "davis": {
        **{"supervised ViT-S/8": 66.0, SMALL: 61.8, "DINO ViT-B/16": 62.3, "DINO ViT-S/8": 69.9, "DINO ViT-B/8": 71.4}
    },
    # Figure 5.4, whose table is that of DINO's paper.
    "voc12_attention": {
        **{"random ViT-S/16": 22.0, "supervised ViT-S/16": 27.3, SMALL: 45.9},
        **{"random ViT-S/8": 21.8, "supervised ViT-S/8": 23.7, "DINO ViT-S/8": 44.7},
    },
}


def reference(value):
    """As a suite writes it: a number of what counts, or one of a metric that is named."""
    return dict(zip(("metric", "value"), value, strict=True)) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("suite", "numbers"), [("thesis", R50), ("thesis_vit", VIT)])
def test_numbers_beside_ours_are_the_thesis(suite, numbers):
    entries = yaml.safe_load((SUITES / f"{suite}.yaml").read_text())["ENGINE"]["entries"]
    assert set(entries) == set(numbers)
    for name, expected in numbers.items():
        source = "paper" if name == "voc12_attention" else "thesis"
        wanted = {f"{label} ({source})": reference(value) for label, value in expected.items()}
        assert entries[name].get("references", {}) == wanted, name


@pytest.mark.parametrize(("suite", "count"), [("thesis", 22), ("thesis_vit", 15)])
def test_every_entry_is_a_valid_evaluation(suite, count):
    below = load_settings([f"config=benchmark/suite/{suite}", "config.EVALUATE.weights=net"])
    jobs = jobs_of(below, below.resolved.ENGINE.entries, None)
    found = {job.entry: job.loaded.resolved for job in jobs}
    assert len(found) == count
    assert found["imagenet_knn"].EVALUATE.interpolation == "bicubic" and found["imagenet_knn"].EVALUATE.resize == 256
    assert found["imagenet_linear"].EVALUATE.interpolation == ("bilinear" if suite == "thesis" else "bicubic")
    assert found["imagenet_1_percent_knn"].DATA.PROBE_TRAIN.path == "data/imagenet_1_percent.csv"
    assert found["imagenet_1_percent_knn"].DATA.PROBE_TEST.path == "data/imagenet/val"
    assert found["roxford"].EVALUATION.crop_queries is False and len(found["roxford"].EVALUATION.scales) == 3
    assert {settings.EVALUATE.weights for settings in found.values()} == {"net"}


@pytest.mark.parametrize(("suite", "with_floors"), [("thesis", set()), ("thesis_vit", {"voc12_attention"})])
def test_nothing_is_trained_twice_unless_floors_are_wanted(suite, with_floors):
    def floors(*more):
        below = load_settings([f"config=benchmark/suite/{suite}", "config.EVALUATE.weights=net", *more])
        jobs = jobs_of(below, below.resolved.ENGINE.entries, None)
        return {job.entry for job in jobs if job.loaded.resolved.EVALUATE.floors}, {job.entry for job in jobs}

    assert floors()[0] == with_floors
    wanted, all_entries = floors("config.EVALUATE.floors=true")
    assert wanted == all_entries


def test_metrics_that_references_name_are_measured():
    """Else the figures would stand in no column."""
    named = set()
    for suite in ("thesis", "thesis_vit"):
        entries = yaml.safe_load((SUITES / f"{suite}.yaml").read_text())["ENGINE"]["entries"]
        for entry, said in entries.items():
            figures = [figure for figure in said.get("references", {}).values() if isinstance(figure, dict)]
            named |= {(entry, figure["metric"]) for figure in figures}
    assert named == {("voc07_detection", "AP50_voc07"), ("roxford", "map_hard"), ("rparis", "map_hard")}
    scores = RetrievalScores(0.5, torch.tensor([0.5]), {}, 0.5, counted=1, skipped=0)
    assert "map_hard" in retrieval._metrics({"medium": scores, "hard": scores})
    assert 'metrics["AP50_voc07"] = ' in inspect.getsource(detection)
