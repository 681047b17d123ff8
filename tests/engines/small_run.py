"""A folder of photos and a run folder with a checkpoint, made without training."""

import numpy as np
import torch
from PIL import Image

from vissl_like.config import load_settings
from vissl_like.models.trunks.resnet import ResNet
from vissl_like.trainer.checkpoint import CheckpointStore

TRUNK = {"name": "resnet", "depth": 10, "width": 0.125, "stem": "small"}
RECORD = {"arch": "resnet", "arch_options": {k: v for k, v in TRUNK.items() if k != "name"}, "channels": 1}


def photos(folder, per_class=12, classes=("dark", "light"), seed=0, size=20):
    """Grey PNGs, ``folder/<class>/<number>.png``; classes differ in brightness."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 120, (size, size)) + 120 * number // max(1, len(classes) - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    return folder


def checkpoint(output_dir, step=7, seed=0, **record):
    """A checkpoint of an untrained small network."""
    torch.manual_seed(seed)
    trunk = ResNet(record.get("channels", 1), depth=10, width=0.125, stem="small")
    store = CheckpointStore(output_dir / "checkpoints", 5, None, None, say=lambda text, level: None)
    facts = {**RECORD, "step": step, "mean": [0.5], "std": [0.25], "method": "swav", **record}
    (output_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    folder = store.save(step, {}, {}, trunk.state_dict(), facts, {"metrics": {}})
    assert folder is not None
    return folder


def settings(output_dir, *more, train=None, probe_train=None, probe_test=None):
    """Checked settings for small grey images."""
    arguments = ["config=quick/synthetic", f"config.OUTPUT_DIR={output_dir}", "config.EVALUATE.image_size=16"]
    for key, path in (("TRAIN", train), ("PROBE_TRAIN", probe_train), ("PROBE_TEST", probe_test)):
        if path is not None:
            arguments.append(f"config.DATA.{key}={{name: auto, path: {path}, channels: 1}}")
    arguments += [
        "config.DATA.TRANSFORM.grayscale=0",
        "config.DATA.TRANSFORM.jitter=null",
        "config.MODEL.TRUNK={name: resnet, depth: 10, width: 0.125, stem: small}",
        "config.DISTRIBUTED.device=cpu",
    ]
    return load_settings([*arguments, *more])
