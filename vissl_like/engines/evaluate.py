"""The evaluation engine: a trained network and its floors, scored on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vissl_like.distributed import comm
from vissl_like.engines.train import prepare_folder
from vissl_like.engines.trained import (
    Weights,
    build_trained,
    find_weights,
    open_source,
    protocol_of,
    trained_identity,
    trunk_section,
)
from vissl_like.evaluation.base import Evaluation, Features
from vissl_like.evaluation.record import make_record, summary, write_results
from vissl_like.evaluation.scoring import (
    Scored,
    align_classes,
    count_classes,
    score,
    score_majority,
    train_and_test,
)
from vissl_like.evaluation.store import FeatureStore
from vissl_like.evaluation.subjects import (
    TRAINED,
    Protocol,
    Source,
    Subject,
    network_subject,
    pixel_subject,
    subject_features,
    too_many_pixels,
    untrained_subject,
)
from vissl_like.registry import ENGINES, EVALUATIONS
from vissl_like.trainer.components import build, build_trunk, plain_values
from vissl_like.utils.errors import UserError


@ENGINES.register("evaluate")
class EvaluateEngine:
    """Scores frozen features on labelled images beside floors: raw pixels, the same network untrained.

    Takes the newest checkpoint of OUTPUT_DIR or EVALUATE.weights, prints a table, and writes evaluation_<name>.json
    and, with each test image's prediction, evaluation_<name>.npz into OUTPUT_DIR.
    """

    required_settings = ("DATA.PROBE_TRAIN", "EVALUATION")
    used_sections = ("DATA", "MODEL", "DISTRIBUTED", "EVALUATION", "EVALUATE", "TRAIN")

    def __init__(self, loaded: Any):
        self.loaded = loaded

    def run(self) -> int:
        """Evaluates.

        Returns:
            0.

        Raises:
            UserError: no labelled images, no weights, or weights that do not fit.
        """
        settings = self.loaded.resolved
        output_dir = prepare_folder(settings.OUTPUT_DIR)
        protocol = protocol_of(self.loaded)
        evaluation: Evaluation = build(EVALUATIONS, settings.EVALUATION)
        evaluation.device = protocol.device
        probe = open_probe(settings)
        weights = find_weights(settings, output_dir)
        subjects, notices = choose_subjects(settings, probe, weights, protocol)
        store = FeatureStore(output_dir / "features")
        features = [probe_features(subject, probe, protocol, store, settings) for subject in subjects]
        error: UserError | None = None
        if comm.is_main():  # scoring is for one process; the others only learn whether it was possible
            try:
                self._score(subjects, features, evaluation, probe, weights, notices)
                store.drop_unused()
            except UserError as caught:
                error = caught
        failure = comm.broadcast_object(None if error is None else str(error))
        if failure is not None:
            raise UserError(failure)
        return 0

    def _score(
        self,
        subjects: list[Subject],
        features: list[tuple[Features, Features]],
        evaluation: Evaluation,
        probe: Probe,
        weights: Weights,
        notices: list[str],
    ) -> None:
        """Scores all subjects on the same images, prints the table and writes the files."""
        settings = self.loaded.resolved
        scored = [
            score(subject, evaluation, train, test, probe.num_classes)
            for subject, (train, test) in zip(subjects, features, strict=True)
        ]
        train, test = features[0]
        if settings.EVALUATE.floors:
            scored.append(score_majority(train, test, probe.num_classes))
        record = make_record(
            scored,
            train,
            test,
            name=settings.EVALUATION.name,
            weights={"path": str(weights.path), "sha256": weights.digest, "backbone": weights.record},
            data=probe.facts(),
            settings={
                "EVALUATION": plain_values(settings.EVALUATION),
                "EVALUATE": plain_values(settings.EVALUATE),
                "SEED": settings.SEED,
            },
            notices=[*notices, *remarks(scored)],
        )
        write_results(Path(settings.OUTPUT_DIR).expanduser(), settings.EVALUATION.name, record, scored)
        print(summary(record, scored), flush=True)


def remarks(scored: list[Scored]) -> list[str]:
    """What evaluations noticed, with the subjects that it holds for."""
    holders: dict[str, list[str]] = {}
    for row in scored:
        for text in row.result.details.get("notices", []):
            holders.setdefault(text, []).append(row.name)
    return [f"{', '.join(names)}: {text}" for text, names in holders.items()]


@dataclass
class Probe:
    """Labelled images to learn from and to be scored on (None: a share of the former)."""

    train: Source
    test: Source | None
    num_classes: int

    def facts(self) -> dict[str, Any]:
        """What the record says of them."""
        classes = self.train.dataset.classes
        return {
            "train": self.train.settings,
            "test": None if self.test is None else self.test.settings,
            "held_out_of_train": self.test is None,
            "num_classes": self.num_classes,
            "classes": None if classes is None else list(classes),
        }


def open_probe(settings: Any) -> Probe:
    """The labelled images.

    Raises:
        UserError: there are none, they have no labels, or the two sets do not fit each other.
    """
    if settings.DATA.PROBE_TRAIN is None:
        raise UserError(
            "an evaluation needs labelled images: give config.DATA.PROBE_TRAIN a folder with one sub-folder per class"
        )
    train = open_source(settings.DATA.PROBE_TRAIN)
    test = None if settings.DATA.PROBE_TEST is None else open_source(settings.DATA.PROBE_TEST)
    num_classes = count_classes(train.dataset, None if test is None else test.dataset)
    if test is not None:
        if test.dataset.channels != train.dataset.channels:
            raise UserError(
                f"DATA.PROBE_TRAIN has {train.dataset.channels} channel(s), DATA.PROBE_TEST {test.dataset.channels}; "
                "give both the same 'channels'"
            )
        align_classes(train.dataset, test.dataset)
    return Probe(train, test, num_classes)


def choose_subjects(
    settings: Any, probe: Probe, weights: Weights, protocol: Protocol
) -> tuple[list[Subject], list[str]]:
    """The trained network first, then the floors that were asked for; and remarks."""
    dataset = probe.train.dataset
    trunk, notices = build_trained(settings, weights, dataset)
    section = trunk_section(settings, weights.record)
    subjects = [network_subject(TRAINED, trained_identity(settings, weights), trunk, protocol)]
    if not settings.EVALUATE.floors:
        return subjects, notices
    subjects.append(
        untrained_subject(
            lambda: build_trunk(section, dataset.channels),
            f"{section} calibrated on {probe.train.identity}",
            dataset,
            protocol,
        )
    )
    too_many = too_many_pixels(dataset, protocol)
    if too_many is None:
        subjects.append(pixel_subject(protocol))
    else:
        notices.append(too_many)
    return subjects, notices


def probe_features(
    subject: Subject, probe: Probe, protocol: Protocol, store: FeatureStore, settings: Any
) -> tuple[Features, Features]:
    """A subject's features to learn from and to be scored on; every process calls it, the main one gets them."""
    train = subject_features(subject, probe.train, protocol, store)
    test = None if probe.test is None else subject_features(subject, probe.test, protocol, store)
    if not comm.is_main():
        return train, train
    return train_and_test(train, test, settings.EVALUATE.holdout, settings.SEED)
