"""A process that stands still tells where, and ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vissl_like.distributed import watchdog

ROOT = Path(__file__).parents[2]


def run(body):
    code = f"import threading, time\nfrom vissl_like.distributed import watchdog\n{body}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def test_a_stall_ends_with_stage_and_stacks():
    done = run(
        "def waits_for_ever():\n    time.sleep(50)\n"
        "threading.Thread(target=waits_for_ever, daemon=True).start()\n"
        "def stands():\n    time.sleep(50)\n"
        "watchdog.arm(0.3, 'process 3 of 8 on somewhere')\nwatchdog.beat('step 7 of 9')\nstands()\n"
    )
    assert done.returncode == watchdog.STALLED == 4
    assert "process 3 of 8 on somewhere has stood still" in done.stderr and "step 7 of 9" in done.stderr
    assert "in stands" in done.stderr and "in waits_for_ever" in done.stderr


@pytest.mark.parametrize(
    "life",
    [
        "for _ in range(10):\n    watchdog.beat('step'); time.sleep(0.1)\n",
        "watchdog.beat('step')\nfor _ in range(10):\n    watchdog.go_on('features'); time.sleep(0.1)\n",
        "time.sleep(0.8)\n",
        "watchdog.go_on('features'); time.sleep(0.8)\n",
        "watchdog.beat('step'); watchdog.rest(); time.sleep(0.8)\n",
        "watchdog.beat('step'); watchdog.disarm(); time.sleep(0.8)\n",
    ],
    ids=["alive", "amid something long", "before the first beat", "going on unwatched", "at rest", "disarmed"],
)
def test_a_living_process_is_left_alone(life):
    done = run(f"watchdog.arm(0.4, 'process 0')\n{life}print('lives')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "lives\n", "")


def test_without_a_limit_there_is_no_watching():
    watchdog.arm(0, "process 0")
    assert watchdog._watchdog is None


def test_a_beat_costs_next_to_nothing():
    watchdog.arm(100, "process 0")
    begin = time.perf_counter()
    for _ in range(10_000):
        watchdog.beat("step")
    watchdog.disarm()
    assert time.perf_counter() - begin < 1.0  # a tenth of a millisecond each, on a busy machine


@pytest.mark.slow
def test_a_training_that_stands_still(tmp_path):
    plugin = Path(__file__).parent / "stall_plugin.py"
    command = [sys.executable, "tools/run_distributed_engines.py", "config=quick/synthetic"]
    more = [f"config.PLUGINS=[{plugin}]", "config.HOOKS.stand_still={step: 2}", f"config.OUTPUT_DIR={tmp_path}"]
    more += ["config.DISTRIBUTED={processes: 2, stall_minutes: 0.1, device: cpu}"]
    done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == watchdog.STALLED, done.stderr
    for rank in (0, 1):
        assert f"process {rank} of 2 on " in done.stderr
    assert "in on_step" in done.stderr and "step 2 of 12" in done.stderr
