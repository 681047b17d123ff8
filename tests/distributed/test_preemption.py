"""Signals in and out of a job."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vissl_like.distributed import preemption
from vissl_like.trainer import signals
from vissl_like.trainer.signals import StopSignals

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(preemption, "_first", None)
    monkeypatch.setattr(preemption, "_job_process", None)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_noted_and_handlers_come_back(name, capsys):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested == preemption.noted() == name
    assert signal.getsignal(number) == before
    assert f"{name}: finishing this step" in capsys.readouterr().err


def test_what_announces_the_end_of_a_job_counts_more_than_its_end():
    for name in ("SIGTERM", "SIGUSR2", "SIGTERM"):
        preemption.note(name)
    assert preemption.noted() == "SIGUSR2"


def test_a_second_signal_leaves_at_once_but_not_in_a_job(monkeypatch, capsys):
    monkeypatch.setattr(signals, "TOGETHER_S", 0.0)
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(preemption, "_job_process", os.getpid())
    with StopSignals() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert stop.requested == "SIGTERM"
    assert "again" not in capsys.readouterr().err.split("\n")[-2]


def test_forked_helpers_are_silent():
    with StopSignals() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR2)
            os._exit(0 if stop.requested is None and preemption.noted() is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_in_a_job_outside_training_the_first_signal_ends_the_work():
    code = (
        "import os, signal, time\nfrom vissl_like.distributed import preemption\npreemption.enter_job()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGUSR2); time.sleep(9)\nexcept KeyboardInterrupt:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print(preemption.noted(), preemption.in_job())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "SIGUSR2 True\n" and done.stderr.count("\n") == 1


def test_outside_a_job_nothing_is_taken_over():
    assert not preemption.in_job() and preemption.noted() is None
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
