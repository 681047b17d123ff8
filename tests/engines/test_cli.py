import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import vissl_like
from vissl_like.engines import cli
from vissl_like.utils.errors import UserError

ROOT = Path(vissl_like.__file__).resolve().parents[1]
VALID = """
PLUGINS: [cli_toys.py]
ENGINE: cli_engine
DATA: {TRANSFORM: null, SAMPLER: null}
"""
TOYS = """
from vissl_like.registry import ENGINES

@ENGINES.register("cli_engine")
class Engine:
    "Needs nothing."
    required_settings = ()
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_toys.py").write_text(TOYS)
    (tmp_path / "valid.yaml").write_text(VALID)
    (tmp_path / "bad.yaml").write_text("BASES: [valid.yaml]\nTRIAN: 1\nSEED: -1\nTRAIN: {length: 3}\n")
    from vissl_like import plugins
    from vissl_like.registry import ENGINES

    outside, announced = dict(ENGINES._outside), dict(plugins._announced)
    yield tmp_path
    ENGINES._outside = outside
    plugins._announced.clear()
    plugins._announced.update(announced)


def process(*arguments, cwd):
    """Runs the tool as a user does; ``(status, stdout, stderr, seconds of processor time)``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/run_distributed_engines.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout, done.stderr, seconds


def test_check(settings, capsys):
    assert cli.main(["--check", "config=valid.yaml"]) == 0
    assert capsys.readouterr().out == "The settings are valid.\n"
    assert cli.main(["config=bad.yaml", "--check"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: 3 problems in the settings:") and captured.out == ""
    assert "TRIAN (bad.yaml:2)" in captured.err and "SEED = -1 (bad.yaml:3)" in captured.err


def test_show_list_help_version(settings, capsys):
    assert cli.main(["--show", "config=valid.yaml", "config.SEED=3"]) == 0
    assert "SEED: 3" in capsys.readouterr().out
    assert cli.main(["--list", "losses"]) == 0
    assert "swav" in capsys.readouterr().out
    assert cli.main(["config=valid.yaml", "--list", "engines"]) == 0
    assert "cli_engine" in capsys.readouterr().out
    assert cli.main(["--help", "TRAIN.length"]) == 0
    assert "TRAIN.length" in capsys.readouterr().out
    assert cli.main(["-h"]) == 0
    assert "All settings" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{vissl_like.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: vissl-like"),
        (["--chek", "config=valid.yaml"], "Did you mean '--check'?"),
        (["--check", "--show"], "cannot be given together"),
        (["SEED=1"], "Did you mean 'config.SEED=1'?"),
        (["config=nowhere"], "there is no settings file 'nowhere'"),
        (["config=quick/elvp"], "Did you mean 'quick/elpv'?"),
        (["--list", "loses"], "Did you mean 'losses'?"),
        (["--help", "nothing_like_it"], "there is no help on"),
    ],
)
def test_mistakes_are_told_without_a_traceback(settings, capsys, arguments, message):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_settings_are_handed_to_launch(settings, monkeypatch):
    seen = []
    fake = type(sys)("vissl_like.distributed.launch")
    fake.launch = lambda loaded: seen.append(loaded) or 7
    monkeypatch.setitem(sys.modules, "vissl_like.distributed.launch", fake)
    assert cli.main(["config=valid.yaml", "config.SEED=3"]) == 7
    assert seen[0].resolved.SEED == 3 and seen[0].resolved.ENGINE.name == "cli_engine"

    def interrupted(loaded):
        raise KeyboardInterrupt

    fake.launch = interrupted
    assert cli.main(["config=valid.yaml"]) == 130

    def mistaken(loaded):
        raise UserError("mend this")

    fake.launch = mistaken
    assert cli.main(["config=valid.yaml"]) == 2


def test_a_bad_yaml_is_checked_in_under_a_second_without_torch(settings):
    """Processor time, the best of three: other work on the machine must not decide this test."""
    runs = [process("--check", "config=bad.yaml", cwd=settings) for _ in range(3)]
    assert {(status, out) for status, out, _, _ in runs} == {(2, "")}
    assert runs[0][2].startswith("error: 3 problems")
    assert min(seconds for *_, seconds in runs) < 1.0
    code = (
        "import sys; from vissl_like.engines import cli; cli.main(['--check', 'config=valid.yaml']); "
        "cli.main(['--show', 'config=valid.yaml']); cli.main(['--list']); cli.main(['--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=settings, env=_with_root(), capture_output=True).returncode
        == 0
    )


def test_importing_the_package_is_cheap():
    code = "import time; t = time.perf_counter(); import vissl_like; print(time.perf_counter() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], env=_with_root(), capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.3


@pytest.mark.parametrize("flag", ["--help", "--version"])  # more and less than a buffer
def test_a_closed_pipe_is_not_an_error(settings, flag):
    tool = ROOT / "tools/run_distributed_engines.py"
    command = f"{sys.executable} {tool} {flag} | true; exit ${{PIPESTATUS[0]}}"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", command], cwd=settings, env=buffered, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def _with_root():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
