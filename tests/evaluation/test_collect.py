"""Features of many images: in a file beyond what memory may hold, and those of several processes."""

from pathlib import Path

import pytest
import torch
from processes import run_in_processes
from tiny_data import ArrayDataset, random_images
from torch import nn

from vissl_like.evaluation import collect
from vissl_like.evaluation import features as features_module
from vissl_like.evaluation.features import extract_features
from vissl_like.utils.errors import UserError


def net():
    """Four features of an image of any number of grey pixels."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    trunk.feature_dim = 4
    return trunk


def extract(trunk, dataset, **options):
    return extract_features(trunk, dataset, **{"image_size": 8, "batch_size": 4, **options})


def many(monkeypatch=None):
    """Makes 4 features of 4 bytes of some images too many for memory, and little at a time what is gathered."""
    for module, name, value in ((features_module, "MOST_BYTES", 64), (collect, "GATHER_BYTES", 64)):
        setattr(module, name, value) if monkeypatch is None else monkeypatch.setattr(module, name, value)


def test_many_features_go_into_a_file(tmp_path, monkeypatch):
    dataset = ArrayDataset(random_images(23), labels=range(23), broken=[2, 22])
    expected = extract(net(), dataset)
    assert expected.file is None and not list(tmp_path.iterdir())
    many(monkeypatch)
    assert extract(net(), dataset).file is None  # no folder was named
    folder = tmp_path / "features"
    found = extract(net(), dataset, folder=folder)
    assert found.file.parent == folder and found.file.stat().st_size > 21 * 16
    assert torch.equal(found.features, expected.features) and torch.equal(found.indices, expected.indices)
    assert torch.equal(found.labels, expected.labels) and found.skipped == expected.skipped
    found.features[0] = 7.0  # what is written to them stays in memory
    layer = nn.Linear(4, 2)
    layer(found.features).sum().backward()
    again = extract(net(), dataset, folder=folder)
    assert torch.equal(again.features, expected.features) and again.file != found.file
    del found
    assert list(folder.iterdir()) == [again.file]
    del again
    assert not list(folder.iterdir())
    assert len(extract(net(), ArrayDataset(random_images(4)), folder=folder)) == 4 and not list(folder.iterdir())


def test_nothing_is_left_of_an_extraction_that_failed(tmp_path, monkeypatch):
    many(monkeypatch)
    trunk = net()

    def forward(images):
        if (tmp_path / "features").exists():  # amid the writing
            raise KeyboardInterrupt
        return trunk(images)

    with pytest.raises(KeyboardInterrupt):
        extract(
            trunk,
            ArrayDataset(random_images(40)),
            encode=lambda _, images: forward(images),
            folder=tmp_path / "features",
        )
    assert not list((tmp_path / "features").iterdir())


def test_a_folder_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    many(monkeypatch)
    (tmp_path / "features").write_text("a file in the way")
    with pytest.raises(UserError, match=r"too many for memory and cannot be written into .*features.*OUTPUT_DIR"):
        extract(net(), ArrayDataset(random_images(40)), folder=tmp_path / "features")


def told(dataset, trunk=None, **options):
    """What a process gets of shared images: features, labels, indices, skipped, whether in a file; or an error."""
    try:
        found = extract(trunk or net(), dataset, share=True, **options)
    except UserError as error:
        return str(error)
    skipped = [item.path for item in found.skipped]
    return found.features.clone(), found.labels, found.indices, skipped, found.file is not None


def shared_images(count, broken):
    return ArrayDataset(random_images(count), labels=range(count), broken=broken)


UNEVEN = [
    (11, [3]),
    (3, []),
    (1, []),
    (12, [0, 4, 8]),
    (6, [1, 2, 5]),
]  # some processes have no image, or no readable one
IN_FILE = [(30, []), (30, list(range(0, 20, 2))), (30, list(range(1, 30, 2)))]


def _full_disk(folder):
    """The main process's disk is full when rows are gathered; everything else has room."""
    with pytest.MonkeyPatch.context() as patch:
        gathering, placing = features_module.gather, collect.FeatureFile.place
        patch.setattr(features_module, "MOST_BYTES", 10**6)
        patch.setattr(features_module, "gather", lambda *given: gathering(*given[:-1], 64))
        calls = []

        def place(self, positions, rows):
            calls.append(1)
            if len(calls) == 2:
                self._stream.close()
                self._stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
            placing(self, positions, rows)

        patch.setattr(collect.FeatureFile, "place", place)
        text = told(shared_images(30, []), folder=folder)
    return text, len(list(folder.iterdir())) if folder.exists() else 0


def _in_four_processes(rank, world_size, folder):
    folder = Path(folder)
    found = {"uneven": [told(shared_images(*case)) for case in UNEVEN]}
    found["none"] = [told(shared_images(0, [])), told(shared_images(3, [0, 1, 2]))]
    broken = net()
    if rank == 1:
        broken[0].weight.data[:] = float("nan")
    found["failing"] = told(shared_images(6, []), trunk=broken)
    many()
    found["file"] = [told(shared_images(*case), folder=folder / str(rank)) for case in IN_FILE]
    found["left"] = len(list((folder / str(rank)).iterdir()))
    if Path("/dev/full").exists():
        found["full"] = _full_disk(folder / "full" / str(rank))
    return found


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What four processes get, of everything that is asked of them: starting them takes long."""
    return run_in_processes(_in_four_processes, 4, str(tmp_path_factory.mktemp("four")))


@pytest.mark.parametrize("case", range(len(UNEVEN)))
def test_processes_share_the_images(four, case):
    """Also where one of them has no image, or only unreadable ones."""
    count, broken = UNEVEN[case]
    kept = [index for index in range(count) if index not in broken]
    rows = extract(net(), ArrayDataset(random_images(count))).features[kept]
    for found in four:
        features, labels, indices, skipped, filed = found["uneven"][case]
        torch.testing.assert_close(features, rows)
        assert indices.tolist() == labels.tolist() == kept
        assert sorted(skipped) == [f"memory[{index}]" for index in broken] and not filed


def test_every_process_says_that_there_is_no_image(four):
    for found in four:
        empty, unreadable = found["none"]
        assert "there is no image" in empty
        assert "none of the 3 images can be read" in unreadable and unreadable.count("made broken") == 3


def test_what_one_process_cannot_do_all_report(four):
    texts = {found["failing"] for found in four}
    assert len(texts) == 1 and "features of 2 of 2 images are not finite, the first is image 1" in texts.pop()


@pytest.mark.parametrize("case", range(len(IN_FILE)))
def test_rows_of_all_processes_go_into_the_main_ones_file(four, case):
    count, broken = IN_FILE[case]
    kept = [index for index in range(count) if index not in broken]
    rows = extract(net(), ArrayDataset(random_images(count))).features[kept]
    main, *others = (found["file"][case] for found in four)
    torch.testing.assert_close(main[0], rows)
    assert main[1].tolist() == main[2].tolist() == kept
    assert len(main[3]) == len(broken) and main[4]
    for other in others:
        assert other[0].shape == (0, 4) and other[1].shape == other[2].shape == (0,)
        assert len(other[3]) == len(broken) and not other[4]


def test_processes_leave_no_files(four):
    assert [found["left"] for found in four] == [0, 0, 0, 0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_of_the_main_process_holds_up_nobody(four):
    for found in four:
        text, files = found["full"]
        assert "cannot be written" in text and "No space left" in text and files == 0
