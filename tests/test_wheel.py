"""What is installed: the wheel holds every module, setting and template, and works without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with the wheel's content; built from a copy, so that the checkout stays as it is."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("vissl_like", "configs"):
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, "dist"], cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = place / "dist" / done.stdout.strip().splitlines()[-1]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "installed")
    return place / "installed"


def test_every_file_that_is_needed_is_in_it(installed):
    wanted = {f.relative_to(ROOT).as_posix() for f in (ROOT / "vissl_like").rglob("*.py")}
    wanted |= {f.relative_to(ROOT).as_posix() for f in (ROOT / "vissl_like").rglob("*.j2")}
    wanted |= {f"vissl_like/{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "configs").rglob("*.yaml")}
    found = {f.relative_to(installed).as_posix() for f in installed.rglob("*") if f.is_file()}
    assert len(wanted) > 300 and not wanted - found
    assert not {name.partition("/")[0] for name in found} & {
        "tests",
        "dev",
        "docs",
        "tools",
        "extra_scripts",
        "configs",
    }


@pytest.mark.skipif(shutil.which("cc") is None, reason="the native kernel needs a C compiler")
def test_the_native_kernel_is_in_it(installed, tmp_path):
    code = "from vissl_like.data.transforms import native; print(native.why(), native.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed), "VISSL_LIKE_NATIVE": "1"}
    # `-c` puts the working folder first on the path: with the checkout there its own kernel would answer.
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "by the native kernel" in done.stdout and str(installed) in done.stdout, done.stderr


def test_it_trains_without_the_checkout(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    where = "import vissl_like, sys; print(vissl_like.__file__); from vissl_like.engines.cli import main; "
    given = ["config=quick/synthetic", "config.OUTPUT_DIR=out", "config.TRAIN.length=1 steps"]
    code = f"{where}sys.exit(main({given!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert (tmp_path / "out/checkpoints/step_00000001/backbone.safetensors").is_file()
