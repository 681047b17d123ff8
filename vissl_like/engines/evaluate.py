"""The evaluation engine: a trained network and its floors, measured in one way."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vissl_like.data.named import NamedImages
from vissl_like.distributed import comm
from vissl_like.engines.interrupts import interrupts
from vissl_like.engines.train import prepare_folder
from vissl_like.engines.trained import (
    Weights,
    build_trained,
    find_weights,
    look_of,
    open_source,
    protocol_of,
    trained_identity,
    trunk_section,
)
from vissl_like.evaluation.base import Evaluation, LeftOut
from vissl_like.evaluation.bench import Bench, Probe
from vissl_like.evaluation.code import code_digest
from vissl_like.evaluation.keeper import Keeper
from vissl_like.evaluation.names import TRAINED
from vissl_like.evaluation.record import make_record, summary, write_results
from vissl_like.evaluation.results import ResultStore, result_key
from vissl_like.evaluation.scoring import Scored, align_classes, count_classes, score
from vissl_like.evaluation.store import FeatureStore
from vissl_like.evaluation.subjects import (
    Look,
    Protocol,
    Source,
    Subject,
    network_subject,
    pixel_subject,
    untrained_subject,
)
from vissl_like.registry import ENGINES, EVALUATIONS
from vissl_like.trainer.components import build, build_trunk, plain_values
from vissl_like.utils.errors import UserError


@ENGINES.register("evaluate")
class EvaluateEngine:
    """Measures a network in one way (EVALUATION) beside floors: the same network untrained, raw pixels, chance.

    Takes the newest checkpoint of OUTPUT_DIR or EVALUATE.weights, prints a table, and writes evaluation_<name>.json
    and, with each test image's prediction, evaluation_<name>.npz into OUTPUT_DIR.
    """

    required_settings = ("EVALUATION",)
    used_sections = ("DATA", "MODEL", "DISTRIBUTED", "EVALUATION", "EVALUATE", "TRAIN")

    def __init__(self, loaded: Any):
        self.loaded = loaded

    def run(self) -> int:
        """Evaluates.

        Returns:
            0, or 130 or 143 if Ctrl-C or SIGTERM stopped it.

        Raises:
            UserError: no labelled images, no weights, or weights that do not fit.
        """
        output_dir = prepare_folder(self.loaded.resolved.OUTPUT_DIR)
        store = FeatureStore(output_dir / "features")
        given = prepare(self.loaded, output_dir)
        try:
            with interrupts():
                scored = measure(given, store, output_dir, tell=True)
        except KeyboardInterrupt as stopped:
            name = str(stopped.args[0]) if stopped.args else "SIGINT"
            if comm.is_main():
                print(
                    f"\n{name}: stopped; features and trainings are kept in {output_dir}. The same command goes on.",
                    file=sys.stderr,
                    flush=True,
                )
            return 143 if name == "SIGTERM" else 130
        if comm.is_main():
            record = record_of(self.loaded, given, scored)
            files = write_results(output_dir, self.loaded.resolved.EVALUATION.name, record, scored)
            store.drop_unused()
            for keeper in given.kept:
                keeper.drop()
            print(f"{summary(record, scored)}\nwritten: {', '.join(str(file) for file in files)}", flush=True)
        return 0


@dataclass
class SetUp:
    """An evaluation and what it is to measure.

    Attributes:
        evaluation: how.
        options: its name and options.
        subjects: the trained network first, then the floors that were asked for.
        protocol: how images are brought to them.
        look: images as the networks want them.
        probe: labelled images, None where the evaluation needs none.
        weights: of the trained network.
        holdout: see ``Bench``.
        notices: what the user should know.
        kept: states of trainings whose results are not on disk yet.
    """

    evaluation: Evaluation
    options: dict[str, Any]
    subjects: list[Subject]
    protocol: Protocol
    look: Look
    probe: Probe | None
    weights: Weights
    holdout: float
    notices: list[str]
    kept: list[Keeper] = field(default_factory=list)

    def bench(self, subject: Subject, store: FeatureStore, folder: Path) -> Bench:
        """A subject on its bench."""
        code = code_digest(type(self.evaluation))
        return Bench(subject, self.protocol, self.look, self.probe, store, self.holdout, folder, code, self.kept)


def prepare(loaded: Any, output_dir: Path) -> SetUp:
    """Opens and builds everything; nothing is measured yet. Every process calls it.

    Raises:
        UserError: no labelled images, no weights, or weights that do not fit.
    """
    settings = loaded.resolved
    evaluation: Evaluation = build(EVALUATIONS, settings.EVALUATION)
    weights = find_weights(settings, output_dir)
    look = look_of(settings, weights)
    protocol = protocol_of(loaded)
    probe = open_probe(settings, look) if evaluation.labelled else None
    subjects, notices = choose_subjects(settings, evaluation, probe, weights, look, protocol)
    options = plain_values(settings.EVALUATION)
    return SetUp(evaluation, options, subjects, protocol, look, probe, weights, settings.EVALUATE.holdout, notices)


def measure(
    given: SetUp, store: FeatureStore, folder: Path, results: ResultStore | None = None, *, tell: bool = False
) -> list[Scored]:
    """Measures all subjects; every process calls it, the main one gets the results.

    Args:
        given: what is measured how.
        store: keeps features.
        folder: where evaluations may leave files of their own.
        results: keeps results; those that it has are not made again.
        tell: say which subject is being measured.

    Raises:
        UserError: the first cannot be measured; every process raises it. A floor that cannot is left out, which is
            said: what the network reached is not lost by it.
    """
    scored: list[Scored] = []
    comm.prepare_patience()
    for subject in given.subjects:
        problem: str | None = None
        if tell and comm.is_main():
            print(f"measuring {subject.name} ...", flush=True)
        try:
            found = _one(given, given.bench(subject, store, folder), results)
            scored += [] if found is None else [found]
        except LeftOut as reason:
            given.notices.append(str(reason))
        except UserError as error:
            problem = str(error)
        except torch.OutOfMemoryError as error:
            problem = f"the GPU's memory is full; lower EVALUATE.batch_size or the size of images ({error})"
        # The main process may compute alone for long; whoever fails, the others must not wait in vain.
        problems = [found for found in comm.gather_patiently(problem) if found is not None]
        if problems and subject is given.subjects[0]:
            raise UserError(problems[0])
        if problems:
            scored = [row for row in scored if row.name != subject.name]
            given.notices.append(f"{subject.name} is left out: {problems[0]}")
    chance = scored[0].result.chance if scored and len(given.subjects) > 1 else None
    return scored if chance is None else [*scored, Scored(chance.name, chance)]


def _one(given: SetUp, bench: Bench, results: ResultStore | None) -> Scored | None:
    """One subject's result, kept or made."""
    if results is None:
        return score(bench, given.evaluation)
    # Whoever edits a protocol must not be shown what it said before: the bench knows its code.
    options = {**given.options, "processes": comm.world_size()} if given.evaluation.trains else given.options
    key = result_key(options, given.evaluation.identity(bench), bench)
    kept = results.get(key) if comm.is_main() else None
    if comm.broadcast_object(kept is not None):
        return kept
    found = score(bench, given.evaluation)
    if found is not None:
        try:
            results.put(key, found)
            while given.kept:
                given.kept.pop().drop()
        except OSError as error:
            given.notices.append(f"the result of {bench.subject.name} is not kept in {results.folder}: {error}")
    return found


def record_of(loaded: Any, given: SetUp, scored: list[Scored]) -> dict[str, Any]:
    """Everything about an evaluation but the predictions; see ``make_record``."""
    return make_record(
        scored,
        name=loaded.resolved.EVALUATION.name,
        **origin_of(loaded, given),
        notices=[*given.notices, *remarks(scored)],
    )


def origin_of(loaded: Any, given: SetUp) -> dict[str, Any]:
    """Weights, images and settings that results come from, for the record."""
    settings, written, weights = loaded.resolved, loaded.record(), given.weights
    return {
        "weights": {"path": str(weights.path), "sha256": weights.digest, "backbone": weights.record},
        "data": {} if given.probe is None else given.probe.facts(),
        "settings": {
            "EVALUATION": written["EVALUATION"],
            "EVALUATE": written["EVALUATE"],
            "SEED": settings.SEED,
        },
    }


def remarks(scored: list[Scored]) -> list[str]:
    """What evaluations noticed, with the subjects that it holds for."""
    holders: dict[str, list[str]] = {}
    for row in scored:
        for text in row.result.details.get("notices", []):
            holders.setdefault(text, []).append(row.name)
    return [f"{', '.join(names)}: {text}" for text, names in holders.items()]


def open_probe(settings: Any, look: Look) -> Probe:
    """The labelled images, as the network wants them.

    Raises:
        UserError: there are none, they have no labels, or the two sets do not fit each other.
    """
    if settings.DATA.PROBE_TRAIN is None:
        raise UserError(
            "this evaluation needs labelled images: give config.DATA.PROBE_TRAIN a folder with one sub-folder per class"
        )
    train = open_source(settings.DATA.PROBE_TRAIN, look)
    test = None if settings.DATA.PROBE_TEST is None else open_source(settings.DATA.PROBE_TEST, look)
    num_classes = count_classes(train.dataset, None if test is None else test.dataset)
    if test is not None:
        if test.dataset.channels != train.dataset.channels:
            raise UserError(
                f"DATA.PROBE_TRAIN has {train.dataset.channels} channel(s), DATA.PROBE_TEST {test.dataset.channels}; "
                "give both the same 'channels'"
            )
        align_classes(train.dataset, test.dataset)
    return Probe(train, test, num_classes)


def typical_images(evaluation: Evaluation, look: Look) -> Source | None:
    """Images for the BatchNorm statistics of an untrained network, None where the evaluation names none."""
    files = evaluation.typical_images()
    if not files:
        return None
    named = NamedImages(files, channels=look.channels, mean=list(look.mean), std=list(look.std))
    return Source(named)


def choose_subjects(
    settings: Any, evaluation: Evaluation, probe: Probe | None, weights: Weights, look: Look, protocol: Protocol
) -> tuple[list[Subject], list[str]]:
    """The trained network first, then the floors that were asked for; and remarks."""
    trunk, notices = build_trained(settings, weights, look)
    section = trunk_section(settings, weights)
    subjects = [network_subject(TRAINED, trained_identity(settings, weights, trunk), trunk, protocol)]
    if not settings.EVALUATE.floors:
        return subjects, notices
    calibration = typical_images(evaluation, look) if probe is None else probe.train
    subjects.append(
        untrained_subject(
            lambda: build_trunk(section, look.channels),
            f"{section} calibrated on {None if calibration is None else calibration.identity}",
            None if calibration is None else calibration.dataset,
            protocol,
        )
    )
    if evaluation.pixels:
        subjects.append(pixel_subject())
    return subjects, notices
