"""Everything in one command: train, evaluate, report."""

from __future__ import annotations

import copy
import sys
from typing import Any

from omegaconf import OmegaConf

from vissl_like.distributed import comm
from vissl_like.engines.evaluate import EvaluateEngine
from vissl_like.engines.report import ReportEngine
from vissl_like.engines.train import TrainEngine
from vissl_like.registry import ENGINES
from vissl_like.utils.errors import UserError

EVALUATIONS = ("knn", "linear")


@ENGINES.register("full")
class FullEngine:
    """Trains, scores the features by k-NN and a linear probe if labelled images are given, and writes the report.

    A run that is stopped is not evaluated; the same command goes on. EVALUATION's options hold for the evaluation that
    it names, the other one has its defaults.
    """

    def __init__(self, loaded: Any):
        self.loaded = loaded

    def run(self) -> int:
        """Trains to the end, then evaluates and reports.

        Returns:
            0, or what the training returned when it did not reach its end, or 2 when an evaluation was impossible
            (said; the report is written all the same).
        """
        settings = self.loaded.resolved
        status = TrainEngine(self.loaded).run()
        if status != 0:
            return status
        if settings.DATA.PROBE_TRAIN is None:
            _say("No evaluation: DATA.PROBE_TRAIN names no labelled images.")
        else:
            for name in wanted_evaluations(settings):
                try:
                    EvaluateEngine(with_evaluation(self.loaded, name)).run()
                except UserError as error:
                    _say(f"The {name} evaluation is not possible: {error}")
                    status = 2
        ReportEngine(self.loaded).run()
        return status


def wanted_evaluations(settings: Any) -> list[str]:
    """k-NN and linear, and the one that the settings name if it is another."""
    named = [] if settings.EVALUATION is None else [settings.EVALUATION.name]
    return list(dict.fromkeys([*EVALUATIONS, *named]))


def with_evaluation(loaded: Any, name: str) -> Any:
    """The settings with another evaluation at its defaults; unchanged if it is the one that they name."""
    section = loaded.resolved.EVALUATION
    if section is not None and section.name == name:
        return loaded
    changed = copy.copy(loaded)
    changed.resolved = copy.deepcopy(loaded.resolved)
    OmegaConf.set_readonly(changed.resolved, False)
    changed.resolved.EVALUATION = {"name": name}
    OmegaConf.set_readonly(changed.resolved, True)
    return changed


def _say(text: str) -> None:
    if comm.is_main():
        print(text, file=sys.stderr, flush=True)
