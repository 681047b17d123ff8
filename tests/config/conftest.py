"""Components for tests of the settings, in a plugin of their own, so that these tests do not depend on other rooms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vissl_like import plugins
from vissl_like.config.load import LoadedSettings, load_settings
from vissl_like.registry import REGISTRIES
from vissl_like.utils.errors import SettingsError

TOYS = '''
"""Components that only their signatures matter of."""
from __future__ import annotations
from typing import Literal, TypedDict
from vissl_like.registry import (DATASETS, ENGINES, EVALUATIONS, HEADS, HOOKS, LOSSES, OPTIMIZERS, SAMPLERS, SCHEDULES,
    TRANSFORMS, TRUNKS)
from vissl_like.utils.kinds import Count, Duration, Fraction, Index, NonNegative, Positive

raise RuntimeError("settings are checked without importing components")

Size = int | tuple[int, int]

class View(TypedDict, total=False):
    size: Count
    count: Count
    scale: tuple[Fraction, Fraction]

@DATASETS.register("toy_drawn")
def drawn(*, images: Count = 10):
    """Images drawn by rule; there is no path."""

@DATASETS.register("toy_files")
class Files:
    """Images in files."""
    def __init__(self, *, path: str, recursive: bool = True): ...

@TRANSFORMS.register("toy_crops")
class Crops:
    """Crops of several sizes."""
    def __init__(self, channels: int, *, views: list[View], size: Size = 32): ...

@TRANSFORMS.register("toy_whole")
class Whole:
    """The image as it is."""
    def __init__(self, channels: int): ...

@SAMPLERS.register("toy_order")
class Order:
    """One after the other."""

@TRUNKS.register("toy_trunk")
class Trunk:
    """A trunk."""
    def __init__(
        self, channels: int, *, depth: Literal[18, 50] = 18, width: Positive = 1.0, blocks: list[Count] | None = None
    ): ...

@HEADS.register("toy_head")
class Head:
    """A head without logits."""
    gives_logits = False
    def __init__(self, features: int, *, dim: Count = 8): ...

@HEADS.register("toy_prototypes")
class Prototypes(Head):
    """A head with logits."""
    gives_logits = True

class Base:
    needs_views = 1
    needs_logits = False

@LOSSES.register("toy_pair")
class Pair(Base):
    """Compares two views.

    Options:
        temperature: softmax temperature
        start: when it begins
        margin: must be given
    """
    needs_views = 2
    needs_index = True
    def __init__(
        self, context: object, *, temperature: Positive = 0.1, start: Duration = "1 epochs", margin: float
    ): ...

@LOSSES.register("toy_cluster")
class Cluster(Base):
    """Compares assignments."""
    needs_logits = True
    def __init__(
        self, context: object, *, names: list[str] = [], weights: dict[str, float] | None = None
    ): ...

@OPTIMIZERS.register("toy_sgd")
def toy_sgd(parameters: list, lr: float, *, momentum: Fraction = 0.9, weight_decay: NonNegative = 0.0):
    """Steps downhill."""

@SCHEDULES.register("toy_line")
class Line:
    """A straight line."""
    def __init__(self, base: float, *, warmup: Duration = "0 steps"): ...

@HOOKS.register("toy_print")
class Print:
    """Prints."""
    def __init__(self, *, every: Duration = "10 steps", level: Index = 1): ...

@HOOKS.register("toy_probe")
class Probe:
    """Measures on labelled images."""
    required_settings = ("DATA.PROBE_TRAIN",)

@EVALUATIONS.register("toy_score")
class Score:
    """Scores."""
    def __init__(self, *, k: list[Count] = [20]): ...

@ENGINES.register("toy_look")
class Look:
    """Looks at the data only."""
    used_sections = ("DATA",)
    required_settings = ("DATA.PROBE_TEST",)

@ENGINES.register("toy_train")
class Train:
    """Trains; needs what an engine needs by default."""
'''

BASE = """
PLUGINS: [{toys}]
ENGINE: toy_train
DATA:
  TRAIN: {{name: toy_files, path: /photos}}
  TRANSFORM:
    name: toy_crops
    views:
      - {{size: 64, count: 2, scale: [0.25, 1]}}
      - {{size: 32, count: 4}}
  SAMPLER: toy_order
MODEL:
  TRUNK: {{name: toy_trunk, width: 2}}
  HEAD: toy_prototypes
LOSS:
  name: toy_pair
  margin: 1
OPTIMIZER: {{name: toy_sgd, base_lr: 0.3, base_batch: 256, weight_decay: 1e-6}}
SCHEDULES: {{lr: {{name: toy_line, warmup: 2 epochs}}}}
TRAIN:
  length: 10 epochs
  global_batch: 64
HOOKS:
  toy_print: {{every: 5 steps}}
EVALUATION: toy_score
"""


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin file; one place for all tests, since a name may come from one file only."""
    file = tmp_path_factory.mktemp("toys") / "toys.py"
    file.write_text(TOYS)
    return file


@pytest.fixture(autouse=True)
def clean_registries():
    """Leaves the registries as they were."""
    outside = {name: dict(registry._outside) for name, registry in REGISTRIES.items()}
    announced = dict(plugins._announced)
    yield
    for name, registry in REGISTRIES.items():
        registry._outside = outside[name]
    plugins._announced.clear()
    plugins._announced.update(announced)


@pytest.fixture
def base(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid settings file, ``base.yaml``, in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "base.yaml"
    file.write_text(BASE.format(toys=toys))
    return file


@pytest.fixture
def load(base: Path) -> Callable[..., LoadedSettings]:
    """Loads ``base.yaml`` with overrides, written without ``config.`` in front."""
    return lambda *overrides: load_settings(["config=base.yaml", *(f"config.{text}" for text in overrides)])


@pytest.fixture
def problems(load: Callable[..., LoadedSettings]) -> Callable[..., list[str]]:
    """The problems that overrides make."""

    def find(*overrides: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load(*overrides)
        return caught.value.problems

    return find
