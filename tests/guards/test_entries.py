"""Every registered entry is described, tested and used in a YAML; every YAML validates; every package ships."""

import configparser
import re
from pathlib import Path

import pytest

from vissl_like.config import load_settings
from vissl_like.registry import REGISTRIES

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
RUNNABLE = [path for path in CONFIGS if path.relative_to(ROOT / "configs").parts[0] in ("pretrain", "quick")]
LAYERS = [
    path
    for path in CONFIGS
    if path.relative_to(ROOT / "configs").parts[0] in ("data", "benchmark", "watch", "trunk", "ablation", "clusters")
]
NOT_NAMED_IN_SETTINGS = [("transforms", "center"), ("meters", "accuracy")]
"""Used by evaluations, which size images by EVALUATE.image_size and count by themselves."""
ENTRIES = [
    (plural, component.name)
    for plural, registry in REGISTRIES.items()
    for component in registry.components()
    if ROOT / "vissl_like" in component.file.parents
]
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
YAMLS = "\n".join(path.read_text(encoding="utf-8") for path in [*CONFIGS, *ROOT.glob("docs/**/*.yaml")])


def test_nothing_disappears_unnoticed():
    counts = {plural: sum(kind == plural for kind, _ in ENTRIES) for plural in REGISTRIES}
    assert counts == {
        "trunks": 7,
        "heads": 6,
        "teachers": 4,
        "losses": 7,
        "hooks": 8,
        "optimizers": 4,
        "schedules": 3,
        "datasets": 8,
        "transforms": 3,
        "samplers": 3,
        "meters": 1,
        "engines": 8,
        "evaluations": 15,
    }


@pytest.mark.parametrize(("plural", "name"), ENTRIES)
def test_entry_is_described_tested_and_in_a_yaml(plural, name):
    component = REGISTRIES[plural].describe(name)
    assert len(component.summary) > 15 and component.summary.endswith((".", ")"))
    undocumented = [option for option, facts in component.options.items() if not facts.doc]
    assert not undocumented, f"options without a line in the docstring: {undocumented}"
    module = f"{REGISTRIES[plural].package}.{name}"
    assert module in TESTS or f'"{name}"' in TESTS or re.search(rf"\b{name}\b", TESTS)
    if (plural, name) not in NOT_NAMED_IN_SETTINGS:
        assert re.search(rf"(name: {name}\b|^\s+{name}:)", YAMLS, re.MULTILINE), f"no YAML uses {plural}/{name}"


def test_number_of_recipes():
    bases = [path for path in CONFIGS if path.relative_to(ROOT / "configs").parts[0] == "base"]
    assert (len(RUNNABLE), len(LAYERS), len(bases)) == (52, 95, 12)
    assert len(RUNNABLE) + len(LAYERS) + len(bases) == len(CONFIGS)


@pytest.mark.parametrize("path", LAYERS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_layer_validates_over_a_recipe(path):
    """Over the recipe that its header names, where it names one."""
    name = str(path.relative_to(ROOT / "configs").with_suffix(""))
    command = re.search(r"Command:\s+vissl-like config=(\S+) config=(\S+)", path.read_text(encoding="utf-8"))
    assert command is None or command[2] == name
    paths = ["config.DATA.TRAIN.path=/photos", "config.DATA.PROBE_TRAIN.path=/labelled"]
    assert load_settings([f"config={command[1] if command else 'quick/folder'}", f"config={name}", *paths])


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_recipe_validates_and_has_a_true_header(path):
    name = str(path.relative_to(ROOT / "configs").with_suffix(""))
    text = path.read_text(encoding="utf-8")
    more = ["config.DATA.TRAIN.path=/photos"] if "config.DATA.TRAIN" in text else []
    settings = load_settings([f"config={name}", *more])
    assert settings.resolved.TRAIN.length
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for word in ("Command:", "Hardware:", "Time:", "Expected:"):
        assert word in header, f"the header lacks {word!r}"
    command = re.search(r"Command:\s+vissl-like config=(\S+)", header)
    assert command and command[1] == name


def test_every_package_is_listed_for_the_wheel():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    found = {
        ".".join(folder.relative_to(ROOT).parts)
        for folder in [ROOT / "vissl_like", *(ROOT / "vissl_like").rglob("*")]
        if (folder / "__init__.py").is_file()
    }
    assert listed == found | {"vissl_like.configs"}


def test_no_machine_paths_or_hosts():
    pattern = re.compile(r"(/root/|/home/\w|/tmp/\w+\.py|pypi\.org|registry\.npmjs|deb\.debian\.org)")
    patterns = ("*.md", "docs/**/*", "vissl_like/**/*.py", "configs/**/*", "dev/**/*", "extra_scripts/*", "tools/*")
    for file in [file for pattern in patterns for file in ROOT.glob(pattern)]:
        made = any(part == "__pycache__" or part.startswith(".") for part in file.relative_to(ROOT).parts)
        if file.is_file() and not made and file.suffix != ".png":
            assert not pattern.search(file.read_text(encoding="utf-8", errors="ignore")), file
