"""Components from their sections of the settings."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from torch import nn

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.registry import DATASETS, TRUNKS, Registry

READ_BY_THE_PROGRAM = ("name", "base_lr", "base_batch")
"""Keys of a component section that are not options of the component."""


def build(registry: Registry, section: Any, *given: Any) -> Any:
    """A component from its section: ``name`` chooses, the other keys are its options.

    Args:
        registry: where the name is looked up.
        section: mapping with ``name``.
        given: positional arguments that the program supplies.
    """
    plain = plain_values(section)
    options = {key: value for key, value in plain.items() if key not in READ_BY_THE_PROGRAM}
    return registry.get(plain["name"])(*given, **options)


def plain_values(section: Any) -> dict[str, Any]:
    """A settings section as plain dictionaries and lists."""
    if OmegaConf.is_config(section):
        return OmegaConf.to_container(section, resolve=True)  # type: ignore[return-value]
    return dict(section)


def build_dataset(section: Any) -> ImageDataset:
    """A dataset from its section."""
    return build(DATASETS, section)


def build_trunk(section: Any, channels: int) -> nn.Module:
    """A trunk from its section; ``feature_dim`` is its width."""
    return build(TRUNKS, section, channels)
