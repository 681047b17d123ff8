import copy
import pickle
import random

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vissl_like.config.load import load_settings
from vissl_like.config.show import show_text
from vissl_like.config.yaml_text import dump_yaml
from vissl_like.utils.errors import SettingsError, UserError


def plain(loaded):
    return OmegaConf.to_container(loaded.resolved)


def test_a_file_with_defaults(load):
    loaded = load()
    settings = loaded.resolved
    assert settings.TRAIN.global_batch == 64 and settings.TRAIN.accumulation == "auto" and settings.SEED == 0
    assert settings.LOSS == {"name": "toy_pair", "margin": 1.0} and type(settings.LOSS.margin) is float
    assert settings.OPTIMIZER == {"name": "toy_sgd", "base_lr": 0.3, "base_batch": 256, "weight_decay": 1e-6}
    assert settings.MODEL.TRUNK.width == 2.0 and type(settings.MODEL.TRUNK.width) is float
    assert settings.DATA.SAMPLER == {"name": "toy_order"}
    assert settings.HOOKS.toy_print.every == "5 steps"
    assert loaded.sources == ["base.yaml"]
    assert loaded.plugins[0].endswith("toys.py")
    assert loaded.origins["TRAIN.length"] == "base.yaml:21"
    assert loaded.origins["DATA.TRANSFORM.views[1].size"] == "base.yaml:10"
    assert "SEED" not in loaded.origins


def test_settings_are_read_only_and_closed(load):
    settings = load().resolved
    with pytest.raises(OmegaConfBaseException):
        settings.SEED = 1
    with pytest.raises(OmegaConfBaseException):
        getattr(settings.TRAIN, "no_such_setting")  # noqa: B009


def test_loaded_settings_travel_to_other_processes(load):
    loaded = load("SEED=3")
    other = pickle.loads(pickle.dumps(loaded))
    assert plain(other) == plain(loaded) and other.given == loaded.given and other.plugins == loaded.plugins


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("TRAIN.global_batch=128", "TRAIN.global_batch", 128),
        ("TRAIN.clip_norm=1e-3", "TRAIN.clip_norm", 0.001),
        ("TRAIN.clip_norm=3", "TRAIN.clip_norm", 3.0),
        ("TRAIN.length=500 steps", "TRAIN.length", "500 steps"),
        ("OUTPUT_DIR=/tmp/a=b", "OUTPUT_DIR", "/tmp/a=b"),
        ("OUTPUT_DIR='10'", "OUTPUT_DIR", "10"),
        ("EVALUATION.k=[1, 5]", "EVALUATION.k", [1, 5]),
        ("MODEL={TRUNK: {depth: 50}, SYNC_BATCH_NORM: true}", "MODEL.TRUNK.depth", 50),
        ("MODEL={TRUNK: {depth: 50}, SYNC_BATCH_NORM: true}", "MODEL.TRUNK.width", 2.0),
        ("DATA.TRANSFORM.views=[{size: 8, count: 2}]", "DATA.TRANSFORM.views", [{"size": 8, "count": 2}]),
        ("DATA.TRAIN=/other", "DATA.TRAIN", {"name": "auto", "path": "/other"}),
        ("DATA.TRAIN.path=/other", "DATA.TRAIN", {"name": "toy_files", "path": "/other"}),
        ("DATA.TRAIN.recursive=false", "DATA.TRAIN.path", "/photos"),
        ("DATA.PROBE_TRAIN.path=/labelled", "DATA.PROBE_TRAIN", {"name": "auto", "path": "/labelled"}),
        ("DATA.MAX_SKIPPED=2%", "DATA.MAX_SKIPPED", "2%"),
        ("MODEL.WEIGHTS.allow_missing=['head.*']", "MODEL.WEIGHTS.allow_missing", ["head.*"]),
        ("OPTIMIZER.base_batch=null", "OPTIMIZER.base_batch", None),
    ],
)
def test_overrides(load, override, key, expected):
    loaded = load(override)
    found = OmegaConf.select(loaded.resolved, key)
    found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
    assert found == expected and type(found) is type(expected)


def test_overrides_stand_above_files_wherever_they_are_written(base):
    loaded = load_settings(["config.SEED=5", "config=base.yaml", "config.SEED=6"])
    assert loaded.resolved.SEED == 6
    assert loaded.sources == ["base.yaml", "command line"]


def test_another_name_starts_a_component_afresh(load):
    loaded = load("LOSS.names=[a]", "LOSS.name=toy_cluster")
    assert loaded.resolved.LOSS == {"name": "toy_cluster", "names": ["a"]}
    assert loaded.changes["LOSS.name"].old == "toy_pair"
    assert "LOSS.margin" not in loaded.origins
    assert load("LOSS=toy_cluster").resolved.LOSS == {"name": "toy_cluster"}
    same = load("LOSS={name: toy_pair, temperature: 1}").resolved.LOSS
    assert same == {"name": "toy_pair", "margin": 1.0, "temperature": 1.0}


def test_a_path_replaces_a_dataset_that_has_none(base, load):
    (base.parent / "drawn.yaml").write_text("BASES: [base.yaml]\nDATA: {TRAIN: {name: toy_drawn, images: 3}}\n")
    loaded = load_settings(["config=drawn.yaml", "config.DATA.TRAIN.path=/photos"])
    assert loaded.resolved.DATA.TRAIN == {"name": "auto", "path": "/photos"}
    loaded = load_settings(["config=drawn.yaml", "config.DATA.TRAIN.images=4"])
    assert loaded.resolved.DATA.TRAIN == {"name": "toy_drawn", "images": 4}


def test_hooks_are_added_adjusted_and_removed(load, problems):
    assert plain(load("HOOKS.toy_print.level=2"))["HOOKS"] == {"toy_print": {"every": "5 steps", "level": 2}}
    removed = load("HOOKS.toy_print=null")
    assert plain(removed)["HOOKS"] == {} and "toy_print" not in removed.given["HOOKS"]
    added = load("HOOKS.toy_probe={}", "DATA.PROBE_TRAIN=/x")
    assert list(added.resolved.HOOKS) == ["toy_print", "toy_probe"]
    assert "null removes a hook" in problems("HOOKS.toy_probe=null")[0]


def test_bases_are_laid_below_and_once(base, tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "left.yaml").write_text("BASES: [base.yaml]\nSEED: 1\nTRAIN: {length: 1 epochs}\n")
    (tmp_path / "deeper/right.yaml").write_text("BASES: ../base.yaml\nTRAIN: {global_batch: 8}\n")
    (tmp_path / "top.yaml").write_text("BASES: [left.yaml, deeper/right.yaml]\nSEED: 2\n")
    loaded = load_settings(["config=top.yaml"])
    assert loaded.sources == ["base.yaml", "left.yaml", "deeper/right.yaml", "top.yaml"]
    settings = loaded.resolved
    assert (settings.SEED, settings.TRAIN.length, settings.TRAIN.global_batch) == (2, "1 epochs", 8)
    assert loaded.origins["TRAIN.length"] == "left.yaml:3"
    change = loaded.changes["TRAIN.length"]
    assert (change.old, change.new) == ("10 epochs", "1 epochs")
    assert (change.old_origin, change.new_origin) == ("base.yaml:21", "left.yaml:3")
    assert "BASES" not in loaded.given


def test_several_configs_are_laid_over_each_other(base, tmp_path):
    (tmp_path / "more.yaml").write_text("SEED: 7\nHOOKS: {toy_print: {level: 3}}\n")
    loaded = load_settings(["config=base.yaml", "config=more.yaml"])
    assert loaded.resolved.SEED == 7 and loaded.resolved.HOOKS.toy_print == {"every": "5 steps", "level": 3}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "BASES: [b.yaml]", "b": "BASES: [a.yaml]"}, "BASES go in a circle: a.yaml -> b.yaml -> a.yaml"),
        ({"a": "BASES: [a.yaml]"}, "go in a circle"),
        ({"a": "SEED: 1\nBASES:\n  - basse.yaml"}, "a.yaml:3: BASES: there is no settings file 'basse.yaml'"),
        ({"a": "BASES: [3]"}, "a.yaml:1: BASES: 3 is not the name"),
        ({"a": "- 1"}, "a.yaml:1: settings are groups"),
        ({"a": "SEED: 1\nSEED: 2"}, "a.yaml:2: 'SEED' is given twice"),
    ],
)
def test_files_that_cannot_be_composed(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_settings(["config=a.yaml"])
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"SEED: 1\n# caf\xe9\n")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 1_000_001)
    (tmp_path / "folder.yaml").mkdir()
    for name, message in [
        ("latin.yaml", "latin.yaml:2: not UTF-8"),
        ("huge.yaml", "larger than"),
        ("folder.yaml", "there is no settings file"),
        ("nowhere.yaml", "there is no settings file"),
        ("a\0b", "not the name"),
        ("x" * 5000 + ".yaml", "cannot be reached"),
    ]:
        with pytest.raises(UserError) as caught:
            load_settings([f"config={name}"])
        assert message in str(caught.value)


def test_names_mean_files_under_the_configs_folder(tmp_path, monkeypatch, base):
    (tmp_path / "configs/quick").mkdir(parents=True)
    (tmp_path / "configs/quick/toy.yaml").write_text(base.read_text())
    monkeypatch.setattr("vissl_like.config.files.configs_folder", lambda: tmp_path / "configs")
    assert load_settings(["config=quick/toy"]).resolved.TRAIN.global_batch == 64
    assert load_settings(["config=quick/toy.yaml"]).resolved.TRAIN.global_batch == 64
    with pytest.raises(UserError, match="Did you mean 'quick/toy'"):
        load_settings(["config=quick/tot"])


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("DATA.TRAIN=/photos", "Did you mean 'config.DATA.TRAIN=/photos'?"),
        ("--config.SEED=1", "cannot read the argument"),
        ("my.yaml", "Did you mean 'config=my.yaml'?"),
        ("config.SEED", "write config.KEY=VALUE"),
        ("config.TRAIN..length=1", "not a key"),
        ("config." + "a." * 500 + "b=1", "not a key"),
        ("config.BASES=[x]", "BASES can only be written in a file"),
        ("config.MODEL.WEIGHTS.allow_missing=[*.bias]", "in quotes"),
    ],
)
def test_arguments_that_cannot_be_read(argument, hint):
    with pytest.raises(UserError) as caught:
        load_settings([argument])
    assert hint in str(caught.value)


def test_what_was_given_makes_the_same_run(load, tmp_path):
    loaded = load("SEED=${TRAIN.global_batch}", "LOSS=toy_cluster", "OUTPUT_DIR='1e-3'", "HOOKS.toy_print=null")
    (tmp_path / "given.yaml").write_text(dump_yaml(loaded.given))
    again = load_settings(["config=given.yaml"])
    assert plain(again) == plain(loaded) and again.plugins == loaded.plugins
    assert loaded.given["SEED"] == "${TRAIN.global_batch}"


def test_loading_changes_nothing_that_is_shared(load):
    first = plain(load())
    second = load("DATA.TRANSFORM.views=[{size: 1, count: 9}]", "MODEL.WEIGHTS.allow_missing=[x]")
    second.given["TRAIN"]["length"] = "spoilt"
    assert plain(load()) == first


def test_plugins_are_collected_and_found_beside_their_yaml(base, toys, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/more.py").write_text(
        "from vissl_like.registry import LOSSES\n@LOSSES.register('toy_more')\nclass More:\n    'More.'\n"
    )
    (tmp_path / "elsewhere/more.yaml").write_text("BASES: [../base.yaml]\nPLUGINS: [more.py]\nLOSS: toy_more\n")
    loaded = load_settings(["config=elsewhere/more.yaml"])
    assert loaded.plugins[:2] == [str(toys), str(tmp_path / "elsewhere/more.py")]
    assert loaded.resolved.LOSS.name == "toy_more"


def test_broken_plugins_are_reported_with_everything_else(problems, tmp_path):
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "binary.py").write_bytes(b"\x00\xff")
    found = problems("PLUGINS=[broken.py, nowhere.py, no.such.module, binary.py]", "SEED=-1")
    assert sum(text.startswith("PLUGINS: ") for text in found) == 4
    assert any(text.startswith("SEED = -1") for text in found)


def test_random_settings_never_end_in_anything_but_a_message(base, tmp_path):
    """YAML made of bits of settings, valid and not: what comes out is settings or a UserError."""
    keys = "TRAIN DATA LOSS name path views HOOKS PLUGINS ENGINE lr length WEIGHTS x OPTIMIZER SCHEDULES BASES MODEL"
    keys = [*keys.split(), "HEAD", "TRANSFORM", "global_batch", "size", "toy_print", "a.b", "0"]
    scalars = "1 -1 0.5 1e400 5% true null toy_pair toy_crops auto ??? ${TRAIN} ${LOSS.name} ${.name} ${oc.env:HOME} ${"
    scalars = [*scalars.split(), "10 epochs", "''", "[]", "{}", "base.yaml", "'\\0'", "9" * 30]
    generator = random.Random(0)

    def some(depth):
        kind = generator.random()
        if depth == 0 or kind < 0.4:
            return generator.choice(scalars)
        inner = [some(depth - 1) for _ in range(generator.randrange(4))]
        if kind < 0.55:
            return f"[{', '.join(inner)}]"
        return "{" + ", ".join(f"{generator.choice(keys)}: {value}" for value in inner) + "}"

    outcomes = {"valid": 0, "refused": 0}
    for _ in range(150):
        count = generator.randrange(1, 6)
        text = "\n".join(f"{key}: {some(3)}" for key in generator.sample(keys, count))
        if generator.random() < 0.2:  # and then damaged
            place = generator.randrange(len(text))
            text = text[:place] + generator.choice("{}[]:,&*!|>'\"%@`#\t\n\x00\ud7ff-?") + text[place:]
        (tmp_path / "random.yaml").write_text(text)
        try:
            load_settings(["config=base.yaml", "config=random.yaml"])
            outcomes["valid"] += 1
        except UserError as error:
            assert str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100 and outcomes["valid"] > 0


def test_random_overrides_never_end_in_anything_but_a_message(load, base):
    generator = random.Random(1)
    values = ["", "null", "[", "{a: 1}", "1", "x=y", "'", "[1, {b: 2}]", "${SEED}", "*", "- a", "\n", "true", "-1.5"]
    keys = "TRAIN TRAIN.length LOSS LOSS.name HOOKS HOOKS.toy_print DATA.TRANSFORM.views nope.nope PLUGINS ENGINE"
    keys = [*keys.split(), "SEED.x", "MODEL.WEIGHTS.path", "OPTIMIZER", "DATA.TRAIN.path.deeper", "LOSS.weights.a"]
    refused = 0
    for _ in range(120):
        overrides = [f"{generator.choice(keys)}={generator.choice(values)}" for _ in range(generator.randrange(1, 4))]
        try:
            load(*overrides)
        except UserError:
            refused += 1
    assert refused > 80


def test_given_is_not_the_resolved_one(load):
    loaded = load()
    before = copy.deepcopy(loaded.given)
    assert "WORKERS" not in before["DATA"] and "base_batch" in before["OPTIMIZER"]
    with pytest.raises(SettingsError):
        load("SEED=x")


def test_the_record_keeps_references_to_the_environment(load, base, monkeypatch):
    monkeypatch.setenv("TOY_TOKEN", "hunter2")
    loaded = load("SLURM.comment=run of ${oc.env:TOY_TOKEN}", "SLURM.account=${SLURM.comment}")
    assert loaded.resolved.SLURM.comment == "run of hunter2" == loaded.resolved.SLURM.account
    record = loaded.record()
    assert record["SLURM"]["comment"] == "run of ${oc.env:TOY_TOKEN}"
    assert record["SLURM"]["account"] == "${SLURM.comment}"
    assert "hunter2" not in str(record) + show_text(loaded) + str(loaded.given)
    plain = load()
    assert plain.record() == OmegaConf.to_container(plain.resolved)
