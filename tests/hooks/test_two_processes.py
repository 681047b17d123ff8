"""Hooks on two processes: they conclude the same, do not wait for each other in vain, and only the main one writes."""

from pathlib import Path

import torch
from processes import run_in_processes

from vissl_like.hooks.collapse import CollapseHook
from vissl_like.hooks.console import ConsoleHook
from vissl_like.hooks.events import FILE_NAME, EventsHook
from vissl_like.hooks.non_finite import NonFiniteHook
from vissl_like.hooks.online_knn import OnlineKnnHook
from vissl_like.records import Batch

from .conftest import FakeRun, outputs
from .test_online_knn import Patterns, settings, trunk


def watch(rank, world_size, folder, collapsed_on):
    run = FakeRun(Path(folder), [CollapseHook(action="stop", every=1, patience=3), EventsHook(every=2)], total=1000)
    run.is_main = rank == 0
    run.start()
    generator = torch.Generator().manual_seed(rank)
    for _ in range(10):
        rows = torch.ones(32, 16) if rank in collapsed_on else torch.randn(32, 16, generator=generator)
        run.do_step(output=outputs(rows))
    run.end()
    return [run.stop_reason, [event.fields["spread"] for event in run.events("collapse_watch")]]


def test_processes_agree_on_a_collapse(tmp_path):
    (reason, spreads), (other_reason, other_spreads) = run_in_processes(watch, 2, str(tmp_path), [0, 1])
    assert reason == other_reason == "collapse: same_embedding"
    assert spreads == other_spreads
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_one_odd_process_is_not_the_whole_run(tmp_path):
    (reason, spreads), (other_reason, other_spreads) = run_in_processes(watch, 2, str(tmp_path), [1])
    assert reason is None and other_reason is None
    assert spreads == other_spreads and 0.4 < spreads[0] < 0.6


def measure(rank, world_size, folder):
    run = FakeRun(Path(folder), [OnlineKnnHook(k=5, max_images=21)], settings=settings())
    run.is_main = rank == 0
    run.build_dataset = {"train": Patterns(40), "test": Patterns(20)}.__getitem__
    run.dataset = Patterns(40)
    torch.manual_seed(0)
    run.model.trunk = trunk()
    run.start()
    fields = run.events("knn")[0].fields
    return [fields["top1"], fields["train_images"], fields["test_images"]]


def test_knn_divides_the_images_and_gives_all_processes_the_answer_of_one(tmp_path):
    (alone,) = run_in_processes(measure, 1, str(tmp_path))
    assert run_in_processes(measure, 2, str(tmp_path)) == [alone, alone]
    assert alone[1:] == [21, 20]


def explode(rank, world_size, folder):
    run = FakeRun(Path(folder), [NonFiniteHook(), ConsoleHook()], step=5)
    run.is_main = rank == 0
    run.last_batch = Batch([torch.full((1, 3, 2, 2), rank, dtype=torch.uint8)], torch.tensor([rank]))
    run.start()
    run.emit("non_finite", what=["loss part loss"], ranks=[1], lr=0.1, grad_norm=1.0, indices=[rank], paths=[])


def test_the_process_that_met_the_bad_batch_keeps_it(tmp_path):
    run_in_processes(explode, 2, str(tmp_path))
    stem = "non_finite_step_5_rank_1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}.json", f"{stem}.safetensors"]
