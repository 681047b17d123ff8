"""How good the features are, measured while they are learnt."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from vissl_like.data.datasets.base import ImageDataset
from vissl_like.data.loader import count_workers
from vissl_like.distributed import comm
from vissl_like.evaluation.base import Features, stratified_split
from vissl_like.evaluation.features import extract_features
from vissl_like.evaluation.knn import KnnEvaluation
from vissl_like.evaluation.scoring import align_classes
from vissl_like.hooks.base import Hook, RunView
from vissl_like.registry import HOOKS
from vissl_like.utils.errors import UserError
from vissl_like.utils.kinds import Count, Duration, Positive


@HOOKS.register("online_knn")
class OnlineKnnHook(Hook):
    """Weighted k-NN on the trunk's features during training, on DATA.PROBE_TRAIN and DATA.PROBE_TEST.

    Needs labelled probe images and is off without them. Without PROBE_TEST, the share EVALUATE.holdout of PROBE_TRAIN
    is held out, the same images each time. Classes are matched by name, as in evaluations. Training computes the same
    numbers with and without it. Emits ``knn`` with ``top1`` (per cent), ``k``, ``temperature`` and the numbers of
    images.

    Options:
        every: distance between measurements; the end of the run is always measured
        at_start: also measure the network before its first step, to have something to compare with
        k: neighbours that vote
        temperature: of the votes exp(cosine / temperature), above 0
        max_images: at most this many images of each probe set, evenly drawn, so that it stays a small part of the run
        image_size: side of the images in px; null = EVALUATE.image_size
    """

    def __init__(
        self,
        *,
        every: Duration = "20%",
        at_start: bool = True,
        k: Count = 20,
        temperature: Positive = 0.07,
        max_images: Count = 5000,
        image_size: Count | None = None,
    ):
        super().__init__()
        self.every, self.at_start, self.max_images, self.image_size = every, at_start, max_images, image_size
        self.k = k
        self._evaluation = KnnEvaluation(k=[k], temperature=temperature)
        self._sets: tuple[ImageDataset, ImageDataset | None] | None = None
        self._distance = 0
        self._told: set[str] = set()

    def on_start(self, run: RunView) -> None:
        """Opens the probe images, says when it will measure, and measures the start.

        Raises:
            UserError: the probe images do not fit each other or the network.
        """
        self._sets = self._open(run)
        if self._sets is None:
            return
        self._distance = max(1, run.progress.steps_of(self.every))
        here = run.progress.step
        if self.at_start and here == 0:
            self._measure(run)
        following = min(here - here % self._distance + self._distance, run.progress.total_steps)
        if here < run.progress.total_steps:
            run.say(f"k-NN: next at step {following}, then every {self._distance} steps and at the end")

    def on_step(self, run: RunView) -> None:
        """Measures when it is time."""
        step = run.progress.step
        if self._sets is not None and (step % self._distance == 0 or step == run.progress.total_steps):
            self._measure(run)

    def _open(self, run: RunView) -> tuple[ImageDataset, ImageDataset | None] | None:
        """The probe sets, or None (said) where there are none or they have no labels."""
        data = run.settings.DATA
        if data.PROBE_TRAIN is None:
            run.say("k-NN is off: DATA.PROBE_TRAIN names no labelled images to measure on")
            return None
        train = run.build_dataset(data.PROBE_TRAIN)
        test = None if data.PROBE_TEST is None else run.build_dataset(data.PROBE_TEST)
        for name, dataset in (("PROBE_TRAIN", train), ("PROBE_TEST", test)):
            if dataset is None:
                continue
            if dataset.labels is None:
                run.say(f"k-NN is off: the images of DATA.{name} have no labels (one sub-folder per class gives them)")
                return None
            if dataset.channels != run.dataset.channels:
                raise UserError(
                    f"DATA.{name} has {dataset.channels} channel(s), DATA.TRAIN has {run.dataset.channels}: the same "
                    f"network must take both. Set DATA.{name}.channels={run.dataset.channels}."
                )
        if test is not None:
            test = align_classes(train, test)
        return train, test

    def _measure(self, run: RunView) -> None:
        with _untouched_randomness():
            train, test = self._features(run)
        assert train.labels is not None and test.labels is not None
        num_classes = int(torch.cat([train.labels, test.labels]).max()) + 1
        result = self._evaluation(train, test, num_classes)
        for notice in result.details["notices"]:
            self._say_once(run, f"k-NN: {notice}")
        top1 = result.metrics["top1"]
        run.emit(
            "knn",
            top1=top1,
            k=self.k,
            temperature=self._evaluation.temperature,
            train_images=len(train),
            test_images=len(test),
            skipped=len(train.skipped) + len(test.skipped),
            text=f"k-NN at step {run.progress.step}: {top1:.1f} % of {len(test)} images (k={self.k})",
        )

    def _features(self, run: RunView) -> tuple[Features, Features]:
        assert self._sets is not None
        train_set, test_set = self._sets
        settings = run.settings

        def extract(dataset: ImageDataset) -> Features:
            return extract_features(
                run.trunk,
                dataset,
                image_size=self.image_size or settings.EVALUATE.image_size,
                resize=settings.EVALUATE.resize,
                batch_size=settings.EVALUATE.batch_size,
                device=run.device,
                workers=count_workers(settings.DATA.WORKERS, comm.local_world_size()),
                plugins=run.plugins,
                start_method=settings.DATA.START_METHOD,
                max_images=self.max_images,
                channels_last=run.plan.channels_last,
                share=True,
            )

        train = extract(train_set)
        if test_set is not None:
            return train, extract(test_set)
        assert train.labels is not None
        kept, held, _ = stratified_split(train.labels, settings.EVALUATE.holdout, settings.SEED)
        return train.select(kept), train.select(held)

    def _say_once(self, run: RunView, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            run.say(text)


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    """Puts back the states of random and numpy.random, which a dataset may draw from.

    Torch's generators, buffers and every module's mode are put back by ``extract_features``.
    """
    python, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
