"""docs/add_a_method.md, run as it says: in a process of its own, with workers that are spawned."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_example_trains_from_its_yaml(tmp_path, method):
    done = subprocess.run(
        [
            sys.executable,
            "tools/run_distributed_engines.py",
            "config=docs/example_plugin/align.yaml",
            f"config.OUTPUT_DIR={tmp_path}",
            f"config.DATA.START_METHOD={method}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    said = [record["text"] for record in records if record["kind"] == "message"]
    assert sum(text.startswith("alignment ") for text in said) == 2
    assert "alignment" in next(record for record in records if record["kind"] == "step")["parts"]


def test_the_command_line_knows_it():
    done = subprocess.run(
        [
            sys.executable,
            "tools/run_distributed_engines.py",
            "--check",
            "config=docs/example_plugin/align.yaml",
            "config.LOSS.wieght=2",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "wieght" in done.stderr and "'weight'" in done.stderr
