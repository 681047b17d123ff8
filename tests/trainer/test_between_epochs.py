from contextlib import nullcontext
from types import SimpleNamespace

import torch

from vissl_like.records import Batch, Progress, Skipped
from vissl_like.trainer.between_epochs import EpochFeatures


def test_a_pass_is_watched_batch_by_batch_and_what_follows_is_not(monkeypatch):
    told = []
    monkeypatch.setattr("vissl_like.distributed.watchdog.beat", told.append)
    monkeypatch.setattr("vissl_like.distributed.watchdog.rest", lambda: told.append("rest"))
    batch = Batch([torch.zeros(2, 1, 4, 4)], torch.arange(2), None, [])

    def model(views):
        return views[0].sum()

    model.head = SimpleNamespace(before_forward=lambda progress: None)

    class Loader(list):
        skipped = (Skipped("a.png", "cut short"),)

    parts = SimpleNamespace(
        model=model,
        make_loader=lambda first, last: Loader([batch] * (last - first)),
        signals=SimpleNamespace(requested=None),
        step=SimpleNamespace(precision=SimpleNamespace(autocast=nullcontext), normalise=lambda view: view),
    )
    features = EpochFeatures(parts, Progress(6, 9, 3))
    for _ in features.one_pass([0]):
        told.append("used")
    assert features.skipped == [Skipped("a.png", "cut short")]
    stage = "pass over the data before step 6"
    assert told == [stage, *[stage, "used"] * 3, "rest"]
