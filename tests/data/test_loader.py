import os
import pickle
import re
import signal
import textwrap
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_in_processes

from vissl_like.data import processes as loading
from vissl_like.data.datasets.base import ImageDataset, UnreadableImage
from vissl_like.data.loader import TrainLoader, auto_workers, iterate_images, skip_limit
from vissl_like.data.processes import explain_worker_death, iterate_workers
from vissl_like.plugins import announce_plugins
from vissl_like.registry import DATASETS, SAMPLERS, TRANSFORMS
from vissl_like.utils.errors import UserError

VIEWS = [{"count": 2, "size": 16, "scale": [0.3, 1.0]}, {"count": 1, "size": 8, "scale": [0.1, 0.3]}]


class Numbered(ImageDataset):
    """Image i is grey of value i; the unreadable ones are given."""

    def __init__(self, count=20, bad=(), labelled=False):
        super().__init__(channels=1)
        self.count, self.bad = count, set(bad)
        if labelled:
            self.labels = np.arange(count) * 10

    def __len__(self):
        return self.count

    def read(self, index):
        if index in self.bad:
            raise UnreadableImage(self.path(index), "bad")
        return Image.new("L", (20, 20), index)

    def path(self, index):
        return f"image {index}"


class Worker(Numbered):
    """Tells what its process is like."""

    def read(self, index):
        ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return Image.new("L", (20, 20), 100 * ignores + torch.get_num_threads())


class Dying(Numbered):
    """Takes its process down when image 7 is asked for."""

    def __init__(self):
        super().__init__()
        self.main = os.getpid()

    def read(self, index):
        if index == 7 and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


class Wrong(Numbered):
    """Has a mistake in its code."""

    def read(self, index):
        raise ZeroDivisionError("a mistake")


def _message_of_a_death(rank, world_size):
    try:
        list(loader(Dying(), workers=1))
    except Exception as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise it again out of any line that follows
        # Raised amid other work it is no UserError yet: the engine explains it the same way.
        return str(error if isinstance(error, UserError) else explain_worker_death(error))
    return "nothing was raised"


def _square(key):
    return key * key


def _broken(key):
    raise ConnectionResetError("a mistake of the function")


def plain(channels=1):
    return TRANSFORMS.get("center")(channels, size=8, resize=8)


def crops(channels=3):
    colour = {} if channels == 3 else {"grayscale": 0, "jitter": None}
    return TRANSFORMS.get("multi_crop")(channels, views=VIEWS, **colour)


def loader(dataset, transform=None, batch=4, total=10, name="shuffled", accumulation=1, **options):
    sampler = SAMPLERS.get(name)(len(dataset), batch, accumulation, 0, 1, 3)
    options = {"workers": 0, "seed": 3, "total_steps": total, **options}
    return TrainLoader(dataset, transform or plain(), sampler, **options)


def as_lists(batches):
    return [([view.tolist() for view in batch.views], batch.index.tolist()) for batch in batches]


@pytest.fixture
def photos(tmp_path, picture):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        picture(number, (40, 30)).save(folder / f"{number:02d}.png")
    return folder


class TestBatches:
    def test_shapes_and_labels(self):
        batches = list(loader(Numbered(labelled=True), crops(1), accumulation=2, total=3, batch=3))
        assert len(batches) == 6 == len(loader(Numbered(), accumulation=2, total=3, batch=3))
        for batch in batches:
            assert [tuple(view.shape) for view in batch.views] == [(3, 1, 16, 16), (3, 1, 16, 16), (3, 1, 8, 8)]
            assert all(view.dtype == torch.uint8 and view.is_contiguous() for view in batch.views)
            assert batch.index.dtype == torch.int64 == batch.label.dtype and not batch.skipped
            assert torch.equal(batch.label, batch.index * 10) and len(batch) == 3
            assert torch.equal(batch.views[2][:, 0, 0, 0].long(), batch.index)  # image i is of value i
        assert next(iter(loader(Numbered()))).label is None

    def test_the_same_whatever_the_workers(self, photos):
        dataset = DATASETS.get("folder")(path=str(photos))
        alone = as_lists(loader(dataset, crops()))
        assert alone == as_lists(loader(dataset, crops(), workers=2, prefetch=3))
        assert alone == as_lists(loader(dataset, crops(), workers=1, start_method="spawn"))
        assert alone != as_lists(loader(dataset, crops(), seed=4))

    def test_views_can_be_made_again_from_the_key(self, photos):
        from vissl_like.data.transforms.parameters import sample_generator

        dataset, transform = DATASETS.get("folder")(path=str(photos)), crops()
        batches = list(loader(dataset, transform, total=6))
        for step in (0, 5):  # three steps an epoch
            index = int(batches[step].index[2])
            views = transform(dataset.read(index), sample_generator(3, step // 3, index))
            for view, expected in zip(batches[step].views, views, strict=True):
                assert np.array_equal(view[2].numpy(), expected)

    @pytest.mark.parametrize("start", [1, 4, 9, 10])
    def test_resuming_gives_the_rest(self, photos, start):
        dataset = DATASETS.get("folder")(path=str(photos))
        whole = as_lists(loader(dataset, crops(), accumulation=2, batch=2))
        assert as_lists(loader(dataset, crops(), accumulation=2, batch=2, start_step=start)) == whole[2 * start :]

    def test_the_global_generator_is_left_alone(self):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(loader(Numbered(), total=2))
        assert torch.equal(before, torch.get_rng_state())

    def test_workers_leave_ctrl_c_to_the_main_process_and_use_one_thread(self):
        for batch in loader(Worker(), workers=2, total=4):
            assert batch.views[0].unique().tolist() == [101]

    def test_breaking_off_ends_the_workers(self):
        import multiprocessing

        batches = iter(loader(Numbered(), workers=2, total=10_000))
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        batches.close()
        assert multiprocessing.active_children() == []


class TestUnreadable:
    def test_the_next_readable_image_takes_the_place(self):
        dataset = Numbered(bad=[3, 4, 19])
        one = loader(dataset, name="sequential", total=5, max_skipped=3)
        batches = list(one)
        assert batches[0].index.tolist() == [0, 1, 2, 5] and batches[1].index.tolist() == [5, 5, 6, 7]
        assert batches[4].index.tolist() == [16, 17, 18, 0]
        assert batches[0].views[0][3].unique().tolist() == [5]
        assert [item.path for item in batches[0].skipped] == ["image 3", "image 4"]
        assert [item.path for item in one.skipped] == ["image 3", "image 4", "image 19"]
        assert as_lists(batches) == as_lists(loader(dataset, name="sequential", total=5, max_skipped=3, workers=2))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_different_images_are_counted_over_the_run(self, workers):
        one = loader(Numbered(bad=[2, 9, 15]), total=30, max_skipped=3, workers=workers)
        assert len(list(one)) == 30 and len(one.skipped) == 3
        with pytest.raises(UserError, match=r"3 images could not be read, more than the 2 allowed") as caught:
            list(loader(Numbered(bad=[2, 9, 15]), total=30, max_skipped=2, workers=workers))
        assert all(f"image {number}: bad" in str(caught.value) for number in (2, 9, 15))

    def test_at_most_ten_are_named(self):
        with pytest.raises(UserError) as caught:
            list(loader(Numbered(40, bad=range(5, 30)), name="sequential", max_skipped=11))
        assert str(caught.value).count(": bad") == 10 and "..." in str(caught.value)

    @pytest.mark.parametrize("limit", ["100%", 5])
    def test_nothing_readable_at_all(self, limit):
        with pytest.raises(UserError, match=r"none of the 20 images|6 images could not be read"):
            list(loader(Numbered(bad=range(20)), max_skipped=limit))

    def test_real_files(self, photos):
        (photos / "03.png").write_bytes((photos / "03.png").read_bytes()[:-400])
        (photos / "07.png").write_text("no image")
        one = loader(DATASETS.get("folder")(path=str(photos)), crops(), total=3, max_skipped="20%", workers=1)
        assert len(list(one)) == 3
        assert {os.path.basename(item.path) for item in one.skipped} == {"03.png", "07.png"}

    def test_limits(self):
        assert [skip_limit(value, 250) for value in ("1%", "0%", "100%", "0.1%", 7, "7", 0)] == [3, 0, 250, 1, 7, 7, 0]
        for bad in ("1 %x", "many", -1, "-1%", "101%", 1.5):
            with pytest.raises(UserError, match="MAX_SKIPPED"):
                skip_limit(bad, 100)


class TestProcesses:
    def test_a_worker_that_dies_is_reported(self):
        """In a process of its own: torch raises the death out of whatever line runs, this test's or pytest's own."""
        assert re.search(r"worker died.*\n.*memory ran out", run_in_processes(_message_of_a_death, 1)[0])
        assert explain_worker_death(RuntimeError("some other trouble")) is None

    def test_a_connection_broken_by_a_dead_worker_is_explained(self):
        """What is seen when the worker dies while it hands over a batch."""

        class Worker:
            def __init__(self, exitcode):
                self.exitcode = exitcode

            def join(self, timeout):
                pass

        broken = ConnectionResetError(104, "Connection reset by peer")
        assert "worker died" in str(explain_worker_death(broken, [Worker(None), Worker(-9)]))
        assert explain_worker_death(broken, [Worker(None), Worker(0)]) is None
        assert explain_worker_death(ZeroDivisionError(), [Worker(-9)]) is None

    def test_a_mistake_in_a_dataset_is_not_dressed_up(self):
        for workers in (0, 1):
            with pytest.raises(ZeroDivisionError, match="a mistake"):
                list(loader(Wrong(), workers=workers))

    def test_plugin_dataset_in_spawned_workers(self, tmp_path):
        file = tmp_path / "stripes_plugin.py"
        file.write_text(
            textwrap.dedent('''
            """A dataset outside the package."""
            from PIL import Image

            from vissl_like.data.datasets.base import ImageDataset
            from vissl_like.registry import DATASETS
            from vissl_like.utils.kinds import Count


            @DATASETS.register("spawned_stripes")
            class Stripes(ImageDataset):
                """Flat grey images.

                Options:
                    count: number of images.
                """

                def __init__(self, *, count: Count = 8):
                    super().__init__(channels=1)
                    self.count = count

                def __len__(self):
                    return self.count

                def read(self, index):
                    return Image.new("L", (16, 16), index)

                def path(self, index):
                    return f"stripes/{index}"
            '''),
            encoding="utf-8",
        )
        plugins = announce_plugins([str(file)])
        dataset = DATASETS.get("spawned_stripes")(count=9)
        assert type(dataset).__module__.startswith("vissl_like_plugin_")
        batches = list(loader(dataset, total=2, workers=1, start_method="spawn", plugins=plugins))
        for batch in batches:
            assert torch.equal(batch.views[0][:, 0, 0, 0].long(), batch.index)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_any_function_of_any_keys(self, workers):
        assert list(iterate_workers(_square, range(3, 8), workers)) == [9, 16, 25, 36, 49]
        assert list(iterate_workers(partial(pow, 2), iter([3, 1]), workers)) == [8, 2]
        with pytest.raises(ConnectionResetError, match="a mistake"):
            list(iterate_workers(_broken, [1], workers))

    def test_workers_of_an_iteration_do_not_outlive_the_program(self):
        before = set(loading._workers)
        made = iterate_workers(_square, range(1000), 1)
        next(made)
        (worker,) = set(loading._workers) - before  # what is ended at exit
        assert worker.is_alive()
        made.close()
        assert not worker.is_alive()

    def test_plugins_are_loaded_before_the_function(self, tmp_path):
        file = tmp_path / "told_plugin.py"
        file.write_text('import pathlib\npathlib.Path(__file__).with_suffix(".told").write_text("loaded")\n')
        plugins = announce_plugins([str(file)])
        assert list(iterate_workers(_square, [2], 1, plugins=plugins, start_method="spawn")) == [4]
        assert (tmp_path / "told_plugin.told").read_text() == "loaded"

    def test_auto_workers(self, monkeypatch):
        cases = [(1, 1, 0), (2, 1, 1), (2, 2, 0), (16, 1, 15), (16, 4, 3), (128, 4, 16), (4, 8, 0)]
        for cores, processes, expected in cases:
            monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
            assert auto_workers(processes) == expected


class TestEvaluation:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_dataset_order_without_the_unreadable(self, workers):
        dataset = Numbered(11, bad=[0, 1, 2, 5, 9, 10], labelled=True)
        batches = list(iterate_images(dataset, plain(), 3, workers))
        assert [batch.index.tolist() for batch in batches] == [[3, 4], [6, 7, 8]]
        assert [[item.path for item in batch.skipped] for batch in batches] == [
            ["image 0", "image 1", "image 2", "image 5"],
            ["image 9", "image 10"],
        ]
        for batch in batches:
            assert torch.equal(batch.label, batch.index * 10) and batch.views[0].shape == (len(batch), 1, 8, 8)
            assert torch.equal(batch.views[0][:, 0, 0, 0].long(), batch.index)

    def test_indices(self):
        (first, second) = iterate_images(Numbered(), plain(), 3, 0, indices=np.array([7, 3, 3, 11]))
        assert first.index.tolist() == [7, 3, 3] and second.index.tolist() == [11] and first.label is None

    def test_nothing_readable_and_nothing_at_all(self):
        with pytest.raises(UserError, match="none of the 5 images can be read"):
            list(iterate_images(Numbered(5, bad=range(5)), plain(), 2, 0))
        assert list(iterate_images(Numbered(5), plain(), 2, 0, indices=[])) == []

    def test_transforms_and_samplers_can_be_sent(self):
        for thing in (plain(), crops(), SAMPLERS.get("shuffled")(10, 2, 1, 0, 1, 0)):
            assert pickle.loads(pickle.dumps(thing)).__dict__ == thing.__dict__
