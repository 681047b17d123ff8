"""A whole run over tar archives of which one member is corrupt and one archive is cut off."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def archives(folder):
    """Two archives of twenty images; in the first, image 7 is garbage; the second is cut off within its last member."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(20 * shard, 20 * shard + 20):
                buffer = io.BytesIO()
                Image.effect_noise((40, 40), 60 + number).save(buffer, "PNG")
                data = buffer.getvalue() if number != 7 else buffer.getvalue()[:60] + bytes(500)
                member = tarfile.TarInfo(f"{number:02d}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            end = archive.offset
    os.truncate(folder / "1.tar", end - 600)
    return folder


@pytest.mark.slow
def test_a_run_skips_and_says_what_is_corrupt_in_archives(tmp_path):
    folder = archives(tmp_path / "shards")
    command = [
        *(sys.executable, "tools/run_distributed_engines.py", "config=quick/folder", "config=data/tar"),
        *("config.MODEL.TRUNK={name: resnet, depth: 10, width: 0.125}", "config.TRAIN.length=2 epochs"),
        *("config.DATA.TRANSFORM.views=[{count: 2, size: 32, scale: [0.3, 1.0]}]", "config.DATA.SAMPLER.block=10"),
        *(f"config.DATA.TRAIN.path={folder}/{{0..1}}.tar", f"config.OUTPUT_DIR={tmp_path / 'out'}"),
    ]
    environment = {**os.environ, "VISSL_LIKE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "39 images, labels none, 1 skipped at scan" in said
    assert "0.tar:07.png" in said and "cut off" in said
    assert any((tmp_path / "out" / "checkpoints").iterdir())
