import pytest

from vissl_like.config.load import load_settings
from vissl_like.utils.errors import SettingsError


def one(problems, *overrides):
    found = problems(*overrides)
    assert len(found) == 1, found
    return found[0]


def test_all_problems_at_once_with_places_and_nearest_names(base, tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "BASES: [base.yaml]\n"
        "TRIAN: {length: 3 epochs}\n"
        "TRAIN:\n"
        "  length: 10\n"
        "  global_batch: -4\n"
        "  globl_batch: 4\n"
        "LOSS: {temprature: 1}\n"
        "MODEL: {HEAD: toy_haed}\n"
        "DATA:\n"
        "  TRANSFORM:\n"
        "    views:\n"
        "      - {size: 0, cuont: 1}\n"
    )
    with pytest.raises(SettingsError) as caught:
        load_settings(["config=bad.yaml", "config.SEED=1.5"])
    expected = [
        "SEED = 1.5 (command line): must be a whole number >= 0",
        "DATA.TRANSFORM.views[0].size = 0 (bad.yaml:12): must be a whole number >= 1",
        "DATA.TRANSFORM.views[0].cuont = 1 (bad.yaml:12): unknown. Did you mean 'count'?",
        "MODEL.HEAD.name (bad.yaml:8): unknown head 'toy_haed'. Did you mean 'toy_head'?",
        "LOSS.temprature (bad.yaml:7): the 'toy_pair' component has no such option. Did you mean 'temperature'?",
        "TRAIN.length = 10 (bad.yaml:4): has no unit: write a number with a unit, such as '10 epochs'",
        "TRAIN.global_batch = -4 (bad.yaml:5): must be a whole number >= 1",
        "TRAIN.globl_batch (bad.yaml:6): unknown setting. Did you mean 'global_batch'?",
        "TRIAN (bad.yaml:2): unknown setting. Did you mean 'TRAIN'?",
    ]
    found = caught.value.problems
    assert len(found) == len(expected), found
    for start in expected:
        assert any(text.startswith(start) for text in found), start
    assert "9 problems in the settings:\n  1. " in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("TRAIN.base_lr=1", "TRAIN.base_lr (command line): unknown setting. Did you mean 'OPTIMIZER.base_lr'?"),
        ("OPTIMIZER.base_lr=0", "OPTIMIZER.base_lr = 0 (command line): must be a number > 0."),
        ("OPTIMIZER.base_batch=-1", "must be a whole number >= 1 or null"),
        ("OPTIMIZER.momentum=1.1", "OPTIMIZER.momentum = 1.1 (command line): must be a number >= 0 and <= 1."),
        ("OPTIMIZER.nesterov=true", "no such option"),
        ("LOSS.temperature=true", "LOSS.temperature = true (command line): must be a number > 0."),
        ("LOSS.temperature='0.1'", "remove the quotes"),
        ("LOSS.temperature=null", "must be a number > 0"),
        ("LOSS.start=5", "has no unit"),
        ("SCHEDULES.lr.warmup=ten epochs", "= 'ten epochs' (command line): write a number with a unit"),
        ("SCHEDULES.wd=toy_line", "SCHEDULES.wd (command line): unknown setting. Known here: lr, weight_decay."),
        ("MODEL.TRUNK.depth=19", "must be one of 18, 50"),
        ("MODEL.TRUNK.blocks=[1, 0]", "MODEL.TRUNK.blocks[1] = 0 (command line): must be a whole number >= 1"),
        ("MODEL.TRUNK.channels=3", "Its options: depth, width, blocks."),
        ("DATA.SAMPLER.seed=3", "It has no options."),
        ("DATA.TRANSFORM.size=[1]", "DATA.TRANSFORM.size = [1] (command line): has 1 entries"),
        ("DATA.WORKERS=many", "DATA.WORKERS = 'many' (command line): must be a whole number >= 0 or 'auto'"),
        ("DATA.MAX_SKIPPED=200%", "a percentage such as '1%'"),
        ("TRAIN.precision=bf8", "Did you mean 'bf16'?"),
        ("TRAIN.channels_last=yes", "write true"),
        ("TRAIN.length=50%", "a percentage of what?"),
        ("TRAIN.length=0 epochs", "must be longer than nothing"),
        ("TRAIN.length=null", "must be a duration"),
        ("CHECKPOINT.every=0%", "must be longer than nothing"),
        (
            "TRAIN.accumulation=3",
            "cannot be divided equally into 1 process(es) x 3 forward(s). Nearest that can: 63 or 66.",
        ),
        ("DISTRIBUTED.processes=3", "Nearest that can: 63 or 66."),
        ("EVALUATE.resize=50", "EVALUATE.resize = 50 (command line): must be at least image_size, 96."),
        ("DISTRIBUTED.port=80", "must be a whole number >= 1024 and <= 65535 or null"),
        ("TRAIN=null", "TRAIN = null (command line): must be a group of settings"),
        ("MODEL.WEIGHTS=/x", "MODEL.WEIGHTS = '/x' (command line): must be a group of settings"),
        ("LOSS=3", "LOSS = 3 (command line): must be a name, or a group with 'name' and options."),
        ("LOSS={}", None),
        ("LOSS.name=null", "LOSS (command line): has no name. Known: "),
        ("LOSS.name=../registry", "unknown loss '../registry'"),
        ("LOSS.name='a\\nb'", "unknown loss"),
        ("LOSS.name=[1]", "unknown loss"),
        ("HOOKS=[toy_print]", "must be a group of names"),
        ("HOOKS.toy_print=true", "{} switches it on"),
        ("HOOKS.toy_print.level=-1", "HOOKS.toy_print.level = -1 (command line): must be a whole number >= 0."),
        ("HOOKS.toy_prnt={}", "unknown hook 'toy_prnt'. Did you mean 'toy_print'?"),
        ("HOOKS.toy_probe={}", "DATA.PROBE_TRAIN: missing; the hook 'toy_probe' needs it"),
        ("DATA.PROBE_TEST={recursive: true}", "DATA.PROBE_TEST (command line): has no name"),
        ("DATA.PROBE_TEST=toy", None),
        ("DATA.TRAIN.path=???", "DATA.TRAIN.path: missing; command line leaves it to you: config.DATA.TRAIN.path=..."),
        ("SEED=${TRAIN.nothing}", "SEED (command line): there is no setting TRAIN.nothing."),
        ("SEED=${TRAIN.length}", "SEED = '10 epochs' (command line): must be a whole number >= 0"),
        ("TRAIN=${DATA}", "unknown setting"),
        ("PLUGINS=x", "PLUGINS = 'x' (command line): must be a list of texts; write [x]."),
    ],
)
def test_one_mistake(load, problems, override, message):
    if message is None:
        load(override)
    else:
        assert any(message in text for text in problems(override)), problems(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SYNC_BATCH_NORM_GROUP=3"], "does not divide the 2 processes; it can be 1, 2, or null"),
        (["MODEL.SYNC_BATCH_NORM_GROUP=2", "MODEL.SYNC_BATCH_NORM=false"], "leave one of the two out"),
        (["DISTRIBUTED.sharding=full", "TRAIN.precision=fp16"], "use bf16, fp32 or auto"),
    ],
)
def test_what_several_processes_cannot_do(load, problems, overrides, message):
    load(*overrides)  # one can
    (found,) = problems("DISTRIBUTED.processes=2", *overrides)
    assert message in found


def test_a_key_with_dots_in_a_file(base, tmp_path):
    (tmp_path / "dots.yaml").write_text("BASES: [base.yaml]\nTRAIN.length: 5 epochs\n")
    with pytest.raises(
        SettingsError, match=r"TRAIN.length \(dots.yaml:2\): unknown setting. In a file, write the parts"
    ):
        load_settings(["config=dots.yaml"])


def test_missing_options_and_settings(base, tmp_path, toys):
    (tmp_path / "little.yaml").write_text(f"PLUGINS: [{toys}]\nENGINE: toy_train\nLOSS: toy_pair\nOPTIMIZER: toy_sgd\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(["config=little.yaml"])
    found = "\n".join(caught.value.problems)
    assert (
        "LOSS.margin: missing; the loss 'toy_pair' (little.yaml:3) needs it (must be given). It must be a number"
        in found
    )
    assert "OPTIMIZER.base_lr: missing; the engine 'toy_train' needs it" in found
    assert "as config.TRAIN.length='10 epochs'" in found
    assert found.count("DATA.TRAIN: missing") == 1 and "MODEL.TRUNK: missing" in found
    assert "OPTIMIZER: missing" not in found


def test_engines_say_what_they_need(base, tmp_path, toys, problems):
    (tmp_path / "look.yaml").write_text(f"PLUGINS: [{toys}]\nENGINE: toy_look\nDATA: {{SAMPLER: toy_order}}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(["config=look.yaml"])
    assert [text.split(":")[0] for text in caught.value.problems] == ["DATA.PROBE_TEST"]
    assert load_settings(["config=look.yaml", "config.DATA.PROBE_TEST=/x"]).resolved.LOSS is None


def test_needs_of_the_loss(load, problems):
    text = one(problems, "MODEL.HEAD=toy_head", "LOSS=toy_cluster")
    assert text.startswith(
        "LOSS.name (command line): the loss 'toy_cluster' needs logits, which none of MODEL.HEAD 'toy_head'"
    )
    assert "These do: MODEL.HEAD: " in text and "toy_prototypes" in text
    text = one(problems, "DATA.TRANSFORM.views=[{size: 8, count: 1}]")
    assert "needs at least 2 views of each image, but the transform 'toy_crops' gives 1" in text
    assert "gives 1" in one(problems, "DATA.TRANSFORM=toy_whole")
    load("DATA.TRANSFORM.views=[{size: 8}, {size: 4}]")
    load("LOSS=toy_cluster", "DATA.TRANSFORM.views=[{size: 8}]")


def test_nothing_is_imported_by_checking(toys, load):
    """The plugin raises when imported; every test above has checked it."""
    assert "raise RuntimeError" in toys.read_text()
    load()
