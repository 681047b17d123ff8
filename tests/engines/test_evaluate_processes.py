"""Evaluations in several processes: whoever fails, all of them learn it, and nobody waits in vain."""

import time
from pathlib import Path

import pytest
from processes import run_in_processes
from torch import nn

from vissl_like.distributed import comm
from vissl_like.engines.evaluate import SetUp, measure
from vissl_like.engines.trained import Weights
from vissl_like.evaluation.base import Evaluation, EvaluationResult, LeftOut
from vissl_like.evaluation.store import FeatureStore
from vissl_like.evaluation.subjects import Look, Protocol, network_subject, pixel_subject
from vissl_like.utils.errors import UserError


class Fake(Evaluation):
    """Fails, leaves pixels out, or takes its time, on one rank."""

    def __init__(self, kind, failing):
        self.kind, self.failing = kind, failing

    def run(self, bench):
        if self.kind == "left out" and bench.subject.pixels:
            raise LeftOut("no room")
        if self.kind == "fails" and comm.rank() == self.failing:
            raise UserError(f"process {self.failing} cannot")
        if self.kind == "slow" and comm.is_main():
            time.sleep(0.5)
        return EvaluationResult("fake", {"top1": 50.0}) if comm.is_main() else None

    def identity(self, bench):
        return "fake"


def attempt(rank, world_size, kind, failing):
    protocol = Protocol(image_size=8)
    look = Look(1, (0.5,), (0.25,))
    subjects = [network_subject("net", "net", nn.Flatten(), protocol), pixel_subject()]
    given = SetUp(Fake(kind, failing), {}, subjects, protocol, look, None, Weights(Path("x"), "", {}), 0.25, [])
    try:
        scored = measure(given, FeatureStore(Path("unused")), Path("unused"))
    except UserError as error:
        return [str(error)]
    finally:
        comm.forget_patience()
    return [*(row.name for row in scored), *given.notices]


@pytest.mark.parametrize("failing", [0, 1])
def test_all_learn_of_the_failure_of_one(failing):
    assert run_in_processes(attempt, 2, "fails", failing) == [[f"process {failing} cannot"]] * 2


def test_the_main_process_has_the_results():
    assert run_in_processes(attempt, 2, "slow", 0) == [["net", "raw pixels"], []]


def test_what_is_left_out_is_noted():
    assert run_in_processes(attempt, 2, "left out", 0) == [["net", "no room"], ["no room"]]
