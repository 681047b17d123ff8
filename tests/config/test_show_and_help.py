import re

import pytest

from vissl_like.config.annotations import parse_kind
from vissl_like.config.load import load_settings
from vissl_like.config.render import MOST_USED, help_text, list_text
from vissl_like.config.schema import Settings, defaults, field_at, walk
from vissl_like.config.show import show_text
from vissl_like.config.values import find_problems
from vissl_like.registry import REGISTRIES
from vissl_like.utils.errors import UserError


def test_shown_settings_make_the_same_run_and_say_where_they_come_from(load, tmp_path):
    loaded = load("TRAIN.global_batch=128", "LOSS.temperature=0.5", "MODEL.WEIGHTS.allow_missing=[a, 'b: c']")
    text = show_text(loaded)
    (tmp_path / "shown.yaml").write_text(text)
    again = load_settings(["config=shown.yaml"])
    assert again.resolved == loaded.resolved
    origins = dict(re.findall(r"^ *(\w+): .*?  # (.+)$", text, re.MULTILINE))
    assert origins["global_batch"] == "command line" and origins["temperature"] == "command line"
    assert origins["length"] == "base.yaml:21" and origins["margin"] == "base.yaml:17"
    assert origins["PREFETCH"] == "default"
    assert "#   TRAIN.global_batch: 64 (base.yaml:22) -> 128 (command line)" in text
    assert "  # start: 1 epochs  (default)" in text
    assert "- {size: 32, count: 4}" in text and "# base.yaml:10" in text


def test_only_what_the_engine_uses_is_shown(load):
    text = show_text(load("ENGINE=toy_look", "DATA.PROBE_TEST=/x"))
    sections = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert sections == ["PLUGINS", "ENGINE", "SEED", "OUTPUT_DIR", "DATA"]


def test_hooks_without_options_stay_switched_on(load, tmp_path):
    loaded = load("HOOKS={toy_print: null}", "HOOKS.toy_probe={}", "DATA.PROBE_TRAIN=/x")
    (tmp_path / "shown.yaml").write_text(show_text(loaded))
    assert dict(load_settings(["config=shown.yaml"]).resolved.HOOKS) == {"toy_probe": {}}


def test_every_setting_is_declared_whole():
    entries = dict(walk())
    assert len(entries) > 60
    for key, entry in entries.items():
        assert entry.metadata["help"], key
        assert (
            "section" in entry.metadata
            or "component" in entry.metadata
            or "components" in entry.metadata
            or (parse_kind(entry.metadata["kind"]).understood())
        ), key
        registry = entry.metadata.get("component") or entry.metadata.get("components")
        assert registry is None or registry in REGISTRIES, key


def test_defaults_are_allowed_values():
    plain = defaults()
    checked = 0
    for key, entry in walk():
        if "kind" not in entry.metadata:
            continue
        value = plain
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            assert find_problems(parse_kind(entry.metadata["kind"]), value) == [], key
            checked += 1
    assert checked > 30


def test_help_lists_every_setting_the_most_used_first():
    text = help_text()
    for key, entry in walk():
        if "section" not in entry.metadata:
            assert f"  {key}\n" in text, key
    assert (
        text.index("Most used") < text.index("  DATA.TRAIN\n") < text.index("All settings") < text.index("  PLUGINS\n")
    )
    assert all(field_at(key) is not None for key in MOST_USED)
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "      a whole number >= 1; default none: must be given" in text


def test_help_on_a_topic(load):
    load()
    assert help_text("TRAIN.length").splitlines()[0] == "  TRAIN.length"
    assert "TRAIN.threads" in help_text("TRAIN") and "SEED" not in help_text("TRAIN")
    assert "OPTIMIZER.base_lr" in help_text("OPTIMIZER")
    text = help_text("losses/toy_pair")
    assert "Compares two views." in text and "needs views: 2" in text
    assert "  temperature: default 0.1\n      softmax temperature\n      a number > 0" in text
    assert "  margin: must be given" in text
    assert help_text("toy_pair") == text
    assert help_text("losses") == list_text("losses")
    with pytest.raises(UserError, match=r"Did you mean 'TRAIN\.length'"):
        help_text("TRAIN.lenght")
    with pytest.raises(UserError, match="Did you mean 'toy_pair'"):
        help_text("losses/toy_piar")


def test_list(load):
    load()
    text = list_text()
    assert all(f"{kind}:\n" in text for kind in REGISTRIES)
    assert re.search(r"  toy_pair +Compares two views\.  \(", list_text("losses"))
    with pytest.raises(UserError, match="Did you mean 'losses'"):
        list_text("loses")


def test_schema_and_defaults_agree_with_omegaconf():
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(OmegaConf.structured(Settings)) == defaults()
