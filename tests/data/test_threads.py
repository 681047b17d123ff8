import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from vissl_like.data.datasets.base import ImageDataset, UnreadableImage
from vissl_like.data.loader import TrainLoader, iterate_images, serves_threads
from vissl_like.data.threads import iterate_threads
from vissl_like.data.transforms import native
from vissl_like.data.transforms.whole import Longest
from vissl_like.data.worker import ViewSource
from vissl_like.registry import DATASETS, SAMPLERS, TRANSFORMS
from vissl_like.utils.errors import UserError

VIEWS = [{"count": 2, "size": 16, "scale": [0.3, 1.0]}, {"count": 3, "size": 8, "scale": [0.1, 0.3]}]


class Slow(ImageDataset):
    """Image i is grey of value i; even ones take longest, so that rows are filled out of order."""

    thread_safe = True

    def __init__(self, count=20, bad=(), wait_s=0.002):
        super().__init__(channels=1)
        self.count, self.bad, self.wait_s = count, set(bad), wait_s
        self.labels = np.arange(count) * 10
        self.threads = set()

    def __len__(self):
        return self.count

    def read(self, index):
        self.threads.add(threading.current_thread().name)
        time.sleep(self.wait_s * (index % 2 == 0))
        if index in self.bad:
            raise UnreadableImage(self.path(index), "bad")
        return Image.new("L", (20, 20), index)

    def path(self, index):
        return f"image {index}"


def plain(channels=1):
    return TRANSFORMS.get("center")(channels, size=8, resize=8)


def crops(channels=3):
    colour = {} if channels == 3 else {"grayscale": 0, "jitter": None}
    return TRANSFORMS.get("multi_crop")(channels, views=VIEWS, **colour)


def loader(dataset, transform=None, batch=4, total=10, accumulation=1, **options):
    sampler = SAMPLERS.get("shuffled")(len(dataset), batch, accumulation, 0, 1, 3)
    options = {"workers": 2, "seed": 3, "total_steps": total, "start_method": "thread", **options}
    return TrainLoader(dataset, transform or plain(), sampler, **options)


def as_lists(batches):
    return [
        ([view.tolist() for view in batch.views], batch.index.tolist(), [item.path for item in batch.skipped])
        for batch in batches
    ]


@pytest.fixture
def photos(tmp_path, picture):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        picture(number, (40, 30)).save(folder / f"{number:02d}.{'png' if number % 2 else 'jpg'}")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kept", ["none", "ram"])
def test_the_same_batches_as_without_workers_and_as_with_processes(photos, channels, kept):
    dataset = DATASETS.get("folder")(path=str(photos), channels=channels, cache=kept)
    alone = as_lists(loader(dataset, crops(channels), workers=0))
    by_threads = loader(dataset, crops(channels), workers=3)
    assert by_threads.by_threads and not loader(dataset, start_method="fork").by_threads
    assert as_lists(by_threads) == alone
    assert as_lists(loader(dataset, crops(channels), start_method="fork")) == alone


def test_rows_are_filled_by_all_threads_and_out_of_order():
    dataset = Slow()
    batches = list(loader(dataset, batch=10, total=4, workers=4))
    assert dataset.threads == {f"views_{number}" for number in range(4)}
    for batch in batches:
        assert torch.equal(batch.views[0][:, 0, 0, 0].long(), batch.index)
        assert torch.equal(batch.label, batch.index * 10)


@pytest.mark.parametrize("start", [1, 9])
def test_resuming_gives_the_rest(photos, start):
    dataset = DATASETS.get("folder")(path=str(photos))
    whole = as_lists(loader(dataset, crops(), accumulation=2, batch=2))
    assert as_lists(loader(dataset, crops(), accumulation=2, batch=2, start_step=start)) == whole[2 * start :]


def test_unreadable_images_are_replaced_in_training_and_left_out_in_measuring():
    bad = [0, 1, 2, 5, 9, 10]
    options = {"max_skipped": "100%", "total": 4}
    assert as_lists(loader(Slow(bad=bad), **options)) == as_lists(loader(Slow(bad=bad), workers=0, **options))
    every = [list(iterate_images(Slow(11, bad), plain(), 4, number, start_method="thread")) for number in (0, 3)]
    assert as_lists(every[0]) == as_lists(every[1])
    assert [batch.index.tolist() for batch in every[1]] == [[3], [4, 6, 7], [8]]
    assert all(torch.equal(batch.views[0][:, 0, 0, 0].long(), batch.index) for batch in every[1])
    with pytest.raises(UserError, match=r"none of the 20 images|images could not be read"):
        list(loader(Slow(bad=range(20)), max_skipped=3))


def test_breaking_off_ends_the_threads_without_making_what_was_begun():
    dataset = Slow(1000, wait_s=0.05)
    batches = iter(loader(dataset, batch=100, total=10))
    started = time.monotonic()
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("views")]
    assert time.monotonic() - started < 30


def test_only_a_few_batches_are_begun_ahead():
    asked = []

    class Counted(Slow):
        def read(self, index):
            asked.append(index)
            return super().read(index)

    source = ViewSource(Counted(wait_s=0), plain(), 0, [], replace=True, limit=0)
    batches = iterate_threads(source, ([(0, row)] for row in range(20)), 1, prefetch=2, pin_memory=False)
    next(batches)
    deadline = time.monotonic() + 10
    while len(asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert asked == [0, 1, 2]
    assert [packed.index.item() for packed in batches] == list(range(1, 20))


def test_a_mistake_in_a_dataset_comes_through():
    class Wrong(Slow):
        def read(self, index):
            raise ZeroDivisionError("a mistake")

    with pytest.raises(ZeroDivisionError, match="a mistake"):
        list(loader(Wrong()))


def test_who_is_served_by_threads(monkeypatch):
    dataset, unsafe = Slow(), Slow()
    unsafe.thread_safe = False
    monkeypatch.setattr(native, "available", lambda: True)
    assert serves_threads(dataset, crops(1), None, pin_memory=False)
    assert not serves_threads(dataset, crops(1), None, pin_memory=True)  # the GPU's training needs the lock
    assert serves_threads(dataset, crops(1), "thread", pin_memory=True)
    assert not serves_threads(dataset, crops(1), "spawn", pin_memory=False)
    assert not serves_threads(unsafe, crops(1), None, pin_memory=False)
    assert not serves_threads(dataset, Longest(1, 8), "thread", pin_memory=False)
    with pytest.raises(UserError, match="thread_safe"):
        serves_threads(unsafe, crops(1), "thread", pin_memory=False)
    monkeypatch.setattr(native, "available", lambda: False)
    assert not serves_threads(dataset, crops(1), None, pin_memory=False)
    assert serves_threads(dataset, crops(1), "thread", pin_memory=False)
